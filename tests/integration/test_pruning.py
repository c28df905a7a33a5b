"""What is kept no longer goes, in parts, whoever is killed between them; the books stay provable all along."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
import uuid_utils.compat as uuids

from config.settings import Settings, load
from tests.acceptance.stage import Zygote
from tests.integration.books import ACTOR, Store, opened, set_clock
from tests.integration.cli_support import Fermata, forked, silence
from tests.integration.test_batch_plans import ONE_OF_EACH
from tests.servers import Database
from worker.artifacts.folder import FolderStore
from worker.boot import opened_pruner
from worker.credits.operations import Cancel, Claimed
from worker.credits.outcomes import Ending
from worker.failpoints import MOMENTS
from worker.local.waiting import finished
from worker.pruning import Pruned, Pruner
from worker.store.audit import Audit, audit
from worker.store.pruning import Pruning

DAY = timedelta(days=1)
SHORT = {"jobs_kept_days": 30, "inputs_kept_days": 30, "events_kept_days": 30, "journal_kept_days": 60}


def settings(**more: Any) -> Settings:
    return load({}, environment="test", **{**SHORT, **more})


@asynccontextmanager
async def pruner_of(store: Store, folder: Path, **more: Any) -> AsyncIterator[Pruner]:
    """Over this store and a folder of audio."""
    artifacts = FolderStore(folder)
    await artifacts.prepare()
    async with opened_pruner(store.engine, artifacts, settings(**more)) as pruner:
        yield pruner


async def pass_months(database: Database, months: int) -> None:
    """Let so many months go by, with partitions made in time."""
    for _ in range(months):
        await database.advance(31 * DAY)
        async with database.connection() as connection:
            await connection.execute("SELECT fermata_make_partitions(3)")


async def both_audits(store: Store) -> tuple[Audit, Audit]:
    """All of it, and what it takes with the word of the checkpoints."""
    return await audit(store.engine), await audit(store.engine, since_checkpoints=True)


async def a_past(store: Store, months: int) -> Claimed:
    """Each month some jobs that end, one that fails, a debt that is paid; one job runs over the end of each month."""
    account = await store.account("ada", 100_000)
    for other in ("bob", "cy"):
        await store.account(other, 1000 if other == "bob" else 0)
    await store.accounts.subscribe("cy", "starter", "s-1", ACTOR)  # 150 credits a month
    held = await store.running(account, quoted=7)
    for month in range(months):
        await store.settle(account, await store.running(account, quoted=10), measured=6)
        await store.settle("bob", await store.running("bob", quoted=5), Ending.ENGINE_ERROR)
        over = await store.running(account, quoted=30)
        await pass_months(store.database, 1)
        await store.settle(account, over, measured=20)
        await store.accounts.topup("cy", f"t-{month}", ACTOR, amount=1000)
        await store.settle("cy", await store.running("cy", quoted=160))
        await store.accounts.chargeback("cy", f"t-{month}", ACTOR)
    return held


async def partitions(store: Store) -> list[str]:
    """The months of the journal that hang on it, those with entries."""
    names = await store.fetch(
        "SELECT DISTINCT tableoid::regclass::text AS name FROM journal WHERE tableoid <> 'journal_default'::regclass"
    )
    return sorted(row["name"] for row in names)


async def test_closed_months_are_audited_by_their_checkpoints(database: Database) -> None:
    """Every month that is over is closed, once; with the word of checkpoints the audit comes to the same."""
    async with opened(database) as store:
        await a_past(store, 3)
        pruning = Pruning(store.engine, settings())
        while await pruning.close_month():
            pass
        assert 3 == await pruning.closed_months()
        whole, since = await both_audits(store)
        unfinished = {"stale_lease", "stale_hold"}  # of the one that runs all the time
        assert unfinished == {one.rule for one in (*whole.violations, *since.violations)}
        assert (whole.entries, whole.lots, None) == (since.entries, since.lots, whole.since)
        now = await store.value("SELECT fermata_now()")
        assert since.since == now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        # What it read is what came since.
        read = await store.value("SELECT count(*) FROM journal WHERE at >= $1", since.since)
        assert 0 < read < since.entries / 2


async def test_a_month_that_is_not_over_for_a_day_is_not_closed(database: Database) -> None:
    """Somebody's transaction of its last second may still be under way."""
    async with opened(database) as store:
        await store.account("ada", 5)
        now = await store.value("SELECT fermata_now()")
        ends = (now.replace(day=1) + 32 * DAY).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        pruning = Pruning(store.engine, settings())
        await database.advance(ends + timedelta(hours=23) - now)
        assert 0 == await pruning.close_month()
        await database.advance(timedelta(hours=2))
        assert 1 == await pruning.close_month()


@pytest.mark.parametrize("accounts", [1, 100])
async def test_a_month_that_a_clock_ahead_closed_is_opened_again(database: Database, accounts: int) -> None:
    """Closed whole or for one account: what comes into it afterwards is in its checkpoints once it is over."""
    async with opened(database) as store:
        await set_clock(store, "2032-01-20T10:00:00Z")
        for account in ("ada", "bob"):
            await store.account(account, 100)
            await store.settle(account, await store.running(account, 10))
        held = await store.running("ada", 10, job_seconds=60 * 86_400.0)
        await set_clock(store, "2032-03-03T10:00:00Z")  # for a minute
        while await store.value("SELECT fermata_close_month($1)", accounts):
            if accounts == 1:
                break  # whoever closes it dies
        await set_clock(store, "2032-01-21T10:00:00Z")
        await store.settle("ada", held)
        await store.settle("bob", await store.running("bob", 10))
        told = (await audit(store.engine)).violations
        assert accounts == 1 or any("fermata prune opens it again" in one.what for one in told)
        pruning = Pruning(store.engine, settings())
        assert 1 == await pruning.close_month()
        assert (0, 0) == (await pruning.close_month(), await pruning.closed_months())
        assert () == (await audit(store.engine)).violations
        opened_again = "SELECT count(*) FROM audit_log WHERE what = 'journal_months.reopen'"
        assert (1 if accounts == 1 else 2) == await store.value(opened_again)
        await set_clock(store, "2032-02-03T10:00:00Z")
        while await pruning.close_month():
            pass
        assert 1 == await pruning.closed_months()
        assert ((), ()) == tuple(one.violations for one in await both_audits(store))
        async with database.connection(as_owner=True) as owner:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute("DELETE FROM checkpoints")


@pytest.mark.parametrize(
    ("rule", "tampering"),
    [
        ("bucket_is_fold", "UPDATE checkpoints SET committed = committed + 1"),
        ("bucket_is_fold", "DELETE FROM checkpoints WHERE account_id = 'ada'"),
        ("debt_is_explained", "UPDATE checkpoints SET debt_paid = 0"),
        ("reserve_is_draw", "DELETE FROM carried_draws"),
        ("entries_without_draw", "UPDATE carried_draws SET job_id = gen_random_uuid()"),
        ("reserved_after_expiry", "UPDATE lots SET expires_at = created_at + interval '1 millisecond'"),
        ("append_only_is_guarded", "ALTER TABLE checkpoints DISABLE TRIGGER checkpoints_no_truncate"),
        ("months_are_in_line", "UPDATE journal_months SET entries = entries + 1"),
        (
            "months_are_in_line",  # its entries are here, and nobody would read them any more
            "UPDATE journal_months SET detached_at = closed_at "
            "WHERE starts_at = (SELECT min(starts_at) FROM journal_months)",
        ),
    ],
)
async def test_whoever_changes_a_checkpoint_is_found(database: Database, rule: str, tampering: str) -> None:
    """Also by the audit that takes their word: buckets and draws must still come out."""
    async with opened(database) as store:
        await a_past(store, 3)
        pruning = Pruning(store.engine, settings())
        while await pruning.close_month():
            pass
        async with database.connection(as_owner=True) as owner:
            for table in ("checkpoints", "carried_draws"):
                await owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")
            await owner.execute(tampering)
            for table in ("checkpoints", "carried_draws"):
                await owner.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_append_only")
        whole, since = await both_audits(store)
    assert rule in {one.rule for one in since.violations}
    if any(table in tampering for table in ("checkpoints SET", "FROM checkpoints", "carried_draws")):
        assert "checkpoint_is_fold" in {one.rule for one in whole.violations}


@pytest.mark.parametrize(
    ("rule", "tampering"),
    [
        ("checkpoint_is_fold", "UPDATE journal SET amount = amount + 1 WHERE move = 'commit' AND at < $1"),
        ("checkpoint_is_fold", "DELETE FROM journal WHERE move = 'grant' AND at < $1"),
        (
            "lot_is_granted_once",
            "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
            "SELECT account_id, at, lot_id, move, 1, reason, actor FROM journal WHERE move = 'grant' AND at < $1",
        ),
        ("checkpoint_is_fold", "UPDATE journal SET at = at - interval '40 days' WHERE move = 'grant' AND at < $1"),
        ("settle_is_split", "UPDATE journal SET job_id = gen_random_uuid() WHERE move = 'commit' AND at < $1"),
        (
            "reserve_is_draw",
            "UPDATE reservations SET draw_amounts = ARRAY[amount + 1] WHERE draw_lots[2] IS NULL AND settled_at < $1",
        ),
        ("settle_is_split", "UPDATE reservations SET charged = charged - 1 WHERE charged > 0 AND settled_at < $1"),
        ("entries_without_draw", "DELETE FROM reservations WHERE settled_at < $1"),
    ],
)
async def test_whoever_changes_a_month_that_is_closed_is_found(database: Database, rule: str, tampering: str) -> None:
    """By the full audit: it holds what stands for a month against what is there, and its draws too."""
    async with opened(database) as store:
        await a_past(store, 3)
        pruning = Pruning(store.engine, settings())
        while await pruning.close_month():
            pass
        closed = await store.value("SELECT max(ends_at) FROM journal_months")
        async with database.connection(as_owner=True) as owner:
            await owner.execute("ALTER TABLE journal DISABLE TRIGGER journal_append_only")
            await owner.execute(tampering, closed)
            await owner.execute("ALTER TABLE journal ENABLE TRIGGER journal_append_only")
        whole, _ = await both_audits(store)
    assert rule in {one.rule for one in whole.violations}


async def test_old_months_are_detached_once_their_jobs_are_gone(database: Database, tmp_path: Path) -> None:
    """Then the audit goes on from their checkpoints; what is detached can't be changed, and nothing is lost."""
    async with opened(database) as store:
        held = await a_past(store, 4)
        await store.settle("ada", held)
        balances = [await store.buckets(account) for account in ("ada", "bob")]
        before, _ = await both_audits(store)
        assert () == before.violations
        months = await partitions(store)
        async with pruner_of(store, tmp_path, jobs_kept_days=400) as pruner:
            assert [] == (await pruner.run()).months_detached  # its jobs are still here
        async with pruner_of(store, tmp_path) as pruner:
            done = await pruner.run()
            assert (Pruned(), []) == (await pruner.run(), (await pruner.run()).months_detached)
        assert months[:2] == done.months_detached
        assert months[2:] == await partitions(store)
        whole, since = await both_audits(store)
        assert ((), ()) == (whole.violations, since.violations)
        assert (before.entries, before.lots) == (whole.entries, whole.lots) == (since.entries, since.lots)
        assert whole.since is not None
        assert whole.since < since.since  # type: ignore[operator]  # not None: the assertion above
        assert balances == [await store.buckets(account) for account in ("ada", "bob")]
        async with database.connection(as_owner=True) as owner:
            kept = await owner.fetchval(f"SELECT count(*) FROM {months[0]}")
            assert kept == await owner.fetchval("SELECT entries FROM journal_months ORDER BY starts_at LIMIT 1")
            for rewriting in ("UPDATE {} SET amount = 1", "DELETE FROM {}", "TRUNCATE {}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                    await owner.execute(rewriting.format(months[0]))
            # Archived elsewhere it may go; the audit needs it no more.
            await owner.execute(f"DROP TABLE {months[0]}")
        assert () == (await audit(store.engine)).violations
        # And life goes on.
        await store.settle("ada", await store.running("ada", quoted=10), measured=6)
        assert () == (await audit(store.engine, since_checkpoints=True)).violations


async def test_a_chargeback_is_answered_as_the_first_time_long_after_its_month(
    database: Database, tmp_path: Path
) -> None:
    """Whatever became of what jobs still held of it, and when its entries are no longer at hand."""
    async with opened(database) as store:
        account, accounts = await store.account("dee"), store.accounts
        await accounts.subscribe(account, "creator", "s-1", ACTOR)  # 1,200 credits a month
        await accounts.topup(account, "t-1", ACTOR, amount=500)
        await store.settle(account, await store.running(account, quoted=1230))
        kept, spent = await store.running(account, quoted=40), await store.running(account, quoted=20)
        first = await accounts.chargeback(account, "t-1", ACTOR)
        assert (410, 60, 30) == (first.revoked, first.held, first.owed)
        await pass_months(database, 1)
        await store.settle(account, kept, measured=15)
        await store.settle(account, spent)
        again = replace(first, replayed=True)
        assert again == await accounts.chargeback(account, "t-1", ACTOR)
        await accounts.topup(account, "t-2", ACTOR, amount=50)  # pays what is owed for it
        await pass_months(database, 3)
        async with pruner_of(store, tmp_path) as pruner:
            assert 1 < len((await pruner.run()).months_detached)
        assert again == await accounts.chargeback(account, "t-1", ACTOR)
        assert () == (await audit(store.engine)).violations


#: That would be told of all that is written.
AN_ENDPOINT = (
    "INSERT INTO webhooks (webhook_id, url, events, created_at, actor) "
    "VALUES (gen_random_uuid(), 'https://endpoint.example/all', '{}', fermata_now(), 'test')"
)


async def test_entries_without_a_month_are_moved_to_theirs(database: Database) -> None:
    """Until somebody does, no later month is detached. Nothing is told twice, and all is guarded as before."""
    async with opened(database) as store, database.connection(as_owner=True) as owner:
        await set_clock(store, "2032-01-10T10:00:00Z")
        await owner.execute("SELECT fermata_make_partitions(3)")
        await store.account("ada", 10)
        await database.advance(200 * DAY)  # no scheduler for so long: until the end of July
        await store.accounts.grant("ada", 1, "late", ACTOR)
        await store.operations.do(Cancel("ada", await store.queued("ada"), "no more"))
        for number in range(4):
            await pass_months(database, 1)
            await store.accounts.grant("ada", 1, f"g{number}", ACTOR)
        pruning = Pruning(store.engine, settings())
        while await pruning.close_month():
            pass
        blocked = [month async for month in _detached(pruning)]
        await owner.execute(AN_ENDPOINT)
        counted = "SELECT (SELECT count(*) FROM journal), count(*), (SELECT count(*) FROM deliveries) FROM events"
        before = await owner.fetchrow(counted)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.value("SELECT fermata_empty_defaults()")
        moved = await owner.fetchval("SELECT fermata_empty_defaults()")
        assert moved >= 2
        assert 0 == await owner.fetchval("SELECT fermata_empty_defaults()")
        for default in ("journal_default", "events_default"):
            assert 0 == await store.value(f"SELECT count(*) FROM {default}")  # the app may read it as before
        assert before == await owner.fetchrow(counted)
        assert ((), ()) == tuple(one.violations for one in await both_audits(store))
        for month in await partitions(store):
            for rewriting in ("UPDATE {} SET amount = 1", "DELETE FROM {}", "TRUNCATE {}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                    await owner.execute(rewriting.format(month))
        freed = [month async for month in _detached(pruning)]
        assert (6, ["journal_2032_07", "journal_2032_08"]) == (len(blocked), freed)
        await pass_months(database, 1)  # and life goes on
        await store.accounts.grant("ada", 1, "last", ACTOR)
        assert 0 == await store.value("SELECT count(*) FROM journal_default")


async def _detached(pruning: Pruning) -> AsyncIterator[str]:
    """The months that may go, as they do."""
    while (month := await pruning.detach_month()) is not None:
        yield month


async def test_a_month_that_somebody_reads_is_detached_later(database: Database, tmp_path: Path) -> None:
    """Nobody waits for the journal behind it."""
    async with opened(database) as store:
        await store.settle("ada", await _held_for(store, 4))
        async with pruner_of(store, tmp_path) as pruner:
            async with database.connection() as reader:
                await reader.execute("BEGIN")
                await reader.execute("SELECT count(*) FROM journal")
                assert [] == (await pruner.run()).months_detached
            assert [] != (await pruner.run()).months_detached


async def _held_for(store: Store, months: int) -> Claimed:
    await store.account("ada", 100)
    held = await store.running("ada", quoted=7)
    await pass_months(store.database, months)
    return held


async def old_jobs(database: Database, count: int, account: str = "old", days: int = 100) -> None:
    """That many jobs that were cancelled so long ago, before they ran, one a millisecond."""
    async with database.connection(as_owner=True) as owner:
        await owner.execute(
            "INSERT INTO accounts (account_id, created_at, actor) "
            "VALUES ($1, fermata_now() - interval '200 days', '') ON CONFLICT DO NOTHING",
            account,
        )
        await owner.execute(
            "INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, "
            "metadata, quoted, book_id, on_insufficient, ends_by, actor, created_at, failures_max, ended_at, reason, "
            "charged) SELECT $1, gen_random_uuid(), now() || ' ' || n, '', 'generation', 'generation', 'cancelled', "
            "'{}', '{}', '{}', 5, 1, 'refuse', now, '', now - make_interval(days => $3 + 1), 3, "
            "now - make_interval(days => $3) + n * interval '1 millisecond', 'cancelled', 0 "
            "FROM (SELECT fermata_now() AS now) AS at, generate_series(1, $2::int) AS n",
            account,
            count,
            days,
        )
        await owner.execute(
            "INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged) "
            "SELECT account_id, ended_at, 'ended', job_id, state, kind, queue, reason, charged FROM jobs AS j "
            "WHERE account_id = $1 AND ended_at IS NOT NULL "
            "AND NOT EXISTS (SELECT FROM events AS e WHERE e.job_id = j.job_id)",
            account,
        )


async def outputs_of_old_jobs(database: Database, account: str = "old") -> None:
    """As if each of them had made a sound before it was cancelled."""
    async with database.connection(as_owner=True) as owner:
        await owner.execute(
            "INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, "
            "sample_rate, channels, bytes, created_at, job_id, token, actor) "
            "SELECT account_id, gen_random_uuid(), 'song', 'audio/wav', job_id::text, sha256('x'), 1, 1, 1, 1, "
            "ended_at, job_id, job_id, '' FROM jobs WHERE account_id = $1 AND ended_at IS NOT NULL",
            account,
        )


async def test_jobs_go_with_all_that_is_theirs(database: Database, tmp_path: Path) -> None:
    """After their time and no sooner; unfinished ones and the journal stay, and a dry run had said it all."""
    async with opened(database) as store:
        await old_jobs(database, 2500)
        account = await store.account("ada", 100)
        ended = await store.running(account)
        await store.settle(account, ended)
        waits = await store.queued(account, quoted=1000, on_insufficient="wait", job_seconds=100 * 86_400.0)
        await store.claim(account, waits)
        entries = await store.value("SELECT count(*) FROM journal")
        async with pruner_of(store, tmp_path) as pruner:
            assert 2500 == (await pruner.old())[0].jobs
            assert 2500 == (await pruner.run()).jobs
            assert [ended.job.job_id, waits] == [
                row["job_id"] for row in await store.fetch("SELECT job_id FROM jobs ORDER BY created_at")
            ]
            await pass_months(database, 1)
            old, _ = await pruner.old()
            assert (1, 1) == (old.jobs, old.outputs)
            assert 1 == (await pruner.run()).jobs
        for table in ("reservations", "attempts", "artifacts"):
            assert 0 == await store.value(f"SELECT count(*) FROM {table}")
        assert [waits] == [row["job_id"] for row in await store.fetch("SELECT job_id FROM jobs")]
        assert entries == await store.value("SELECT count(*) FROM journal")
        assert 0 == await store.value("SELECT count(*) FROM events WHERE what = 'ended'")
        assert () == (await audit(store.engine)).violations


async def test_the_database_itself_keeps_what_is_too_young(database: Database) -> None:
    """Whatever a process of ours asks: jobs stay 30 days, the log of changes a year, the journal two months."""
    async with opened(database) as store, database.connection() as app:
        await store.account("ada", 10)
        for call in (
            "fermata_prune_jobs(29, NULL, 10)",
            "fermata_prune_jobs(-5, NULL, 10)",
            "fermata_prune_jobs(29, 10)",  # as the release before does
            "fermata_forget('audit log', 364, 10)",
            "fermata_forget('events', 29, 10)",
            "fermata_forget('lots', 400, 10)",
            "fermata_detach_month(59)",
            "fermata_drop_empty_months(29)",
            "fermata_close_month(0)",
            "fermata_erase_jobs('ada', gen_random_uuid(), '{}', 10)",
            "fermata_erase_artifacts('ada', '{}')",
            "fermata_erase_log('ada', 0, 10)",
        ):
            with pytest.raises(asyncpg.RaiseError):
                await app.execute(f"SELECT {call}")
        async with database.connection(as_owner=True) as owner:
            logged = await owner.fetchval("SELECT count(*) FROM audit_log")
            for rewriting in ("DELETE FROM audit_log", "UPDATE audit_log SET after = after - 'actor'"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                    await owner.execute(rewriting)
        await database.advance(366 * DAY)
        assert logged == await app.fetchval("SELECT fermata_forget('audit log', 365, 10)") > 0


async def test_what_else_grows_goes_too(database: Database, tmp_path: Path) -> None:
    """Events that are no ends, rehearsals, customers' tokens, the log of changes; emptied months of events."""
    async with opened(database) as store:
        await store.account("ada", 10)
        async with database.connection() as app:
            await app.execute(
                "INSERT INTO events (account_id, at, what) SELECT 'ada', fermata_now(), 'credits_low' "
                "FROM generate_series(1, 5)"
            )
            await app.execute(
                "INSERT INTO rehearsals (digest, against, since, until, at, actor, outcome) "
                "SELECT 'x', 1, fermata_now(), fermata_now(), fermata_now(), '', '{}'"
            )
            await app.execute(
                "INSERT INTO api_keys (key_id, prefix, hash, role, label, account_id, created_at, actor, expires_at) "
                "SELECT gen_random_uuid(), 'p', sha256('x'), 'customer', '', 'ada', fermata_now(), '', fermata_now()"
            )
        logged = await store.value("SELECT count(*) FROM audit_log")
        month = await store.value("SELECT 'events_' || to_char(fermata_now() AT TIME ZONE 'UTC', 'YYYY_MM')")
        assert await store.value("SELECT to_regclass($1)::text", month) == month
        async with pruner_of(store, tmp_path, audit_log_kept_days=365) as pruner:
            assert Pruned() == await pruner.run()
            await pass_months(database, 13)
            old, _ = await pruner.old()
            done = await pruner.run()
        assert (5, 1, 1, logged) == (done.events, done.rehearsals, done.tokens, done.audit_log)
        assert (5, 1, 1, logged) == (old.events, old.rehearsals, old.tokens, old.audit_log)
        assert await store.value("SELECT to_regclass($1)::text", month) is None


async def test_two_prunes_at_once_do_it_once(database: Database, tmp_path: Path) -> None:
    """Every scheduler runs the duty: none leads."""
    async with opened(database) as store:
        await a_past(store, 2)
        await old_jobs(database, 1500)
        async with pruner_of(store, tmp_path) as one, pruner_of(store, tmp_path) as other:
            both = await asyncio.gather(one.run(), other.run())
            await one.run()
        assert 1500 <= sum(done.jobs for done in both) < 1600
        _, since = await both_audits(store)
        assert {"stale_lease", "stale_hold"} >= {one.rule for one in since.violations}


#: Every transaction of a prune: for each a process dies in it, before and after its COMMIT.
STEPS = ("prune_jobs", "prune_inputs", "forget_old", "close_month", "detach_month", "drop_empty_months")


async def _much_to_do(database: Database) -> None:
    """Something for each step of a prune."""
    async with opened(database) as store:
        held = await a_past(store, 2)
        await store.settle("ada", held)
        await pass_months(database, 3)
        await store.fetch("SELECT fermata_make_partitions(3)")
    async with database.connection() as app:
        await app.execute(
            "INSERT INTO events (account_id, at, what) SELECT 'ada', fermata_now() - interval '100 days', 'credits_low'"
        )


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_prune_that_is_killed_goes_on_where_it_was(
    fermata: Fermata,
    environment: dict[str, str],
    zygote: Zygote,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    moment: str,
) -> None:
    """Wherever it dies, the books are exact, and the next run takes the rest and comes to the same end."""
    finished(_much_to_do(fermata.database))
    kept = {f"FERMATA_{name.upper()}": str(value) for name, value in SHORT.items()}
    armed = {**environment, **kept, "FERMATA_FAILPOINTS": f"{step}.{moment}:kill"}
    assert -signal.SIGKILL == forked(zygote, armed, tmp_path, "prune")
    assert fermata.ok("audit")["ok"]
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    fermata.ok("prune")
    assert {"jobs": 0, "events": 0, "months_to_close": 0}.items() <= fermata.ok("prune", "--dry-run").items()
    assert (0, True) == (fermata.rows()["jobs"], fermata.ok("audit")["ok"])
    assert fermata.ok("audit", "--since-checkpoints")["since"] > fermata.ok("audit")["since"]


async def test_jobs_run_while_old_ones_go(database: Database, tmp_path: Path) -> None:
    """Claims and settles of the very account whose past is pruned go on, and all of them end."""
    async with opened(database) as store:
        await old_jobs(database, 6000)
        await store.accounts.grant("old", 10_000, "g-1", ACTOR)
        async with pruner_of(store, tmp_path) as pruner:
            pruning = asyncio.create_task(pruner.run())
            ran = 0
            while not pruning.done() or ran < 20:
                await store.settle("old", await store.running("old", quoted=3))
                ran += 1
            assert 6000 == (await pruning).jobs
        assert ran == await store.value("SELECT count(*) FROM jobs WHERE state = 'succeeded'")
        assert () == (await audit(store.engine)).violations


# --- files -------------------------------------------------------------------------------------------------------


def grown_old(path: Path, days: int = 2) -> None:
    """As if it had been written that long ago."""
    when = path.stat().st_mtime - days * 86_400
    os.utime(path, (when, when))


def test_inputs_and_orphans_go_with_their_files(
    fermata: Fermata, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job still names stays; so does a file that may be on its way in; a dry run changes nothing."""
    for name, value in SHORT.items():
        monkeypatch.setenv(f"FERMATA_{name.upper()}", str(value))
    store = tmp_path / "artifacts"
    fermata.account("ada", 100)
    named, old = (
        fermata.ok("artifacts", "put", str(silence(tmp_path / f"{n}.wav", n)), "--account", "ada")["artifact"]
        for n in (1, 2)
    )
    fermata.ok(
        "jobs", "submit", "stem_split", "--account", "ada", "--input", f"mix={named}", "--param", "model=standard"
    )
    finished(fermata.database.advance(40 * DAY))
    folder = next((store / "inputs").iterdir())
    orphan, fresh, stranger = folder / str(uuids.uuid7()), folder / str(uuids.uuid7()), folder / "notes.txt"
    for path in (orphan, fresh, stranger):
        path.write_bytes(b"x" * 10)
    for path in (orphan, stranger):
        grown_old(path)
    bytes_of_old = (folder / old).stat().st_size
    with fermata.nothing_written(store):
        told = fermata.ok("prune", "--dry-run")
    assert (1, 1, bytes_of_old + 10) == (told["inputs"], told["orphans"], told["bytes"])
    done = fermata.ok("prune")
    assert (1, 1, 0) == (done["inputs"], done["orphans"], done["jobs"])
    assert sorted([folder / named, fresh, stranger]) == sorted(folder.iterdir())
    assert [named] == [one["artifact"] for one in fermata.ok("artifacts", "list", "--account", "ada")["artifacts"]]
    # A row whose file is gone is told, not hidden.
    (folder / named).unlink()
    answer = fermata("prune", "--check-files", "--json")
    assert (1, [f"inputs/{folder.name}/{named}"]) == (answer.code, answer.document["without_files"])
    assert 0 == fermata("prune").code


def test_no_store_of_another_database_is_emptied(fermata: Fermata, tmp_path: Path) -> None:
    """Given a store full of files that the database knows nothing of, then none is deleted, and it says why."""
    folder = tmp_path / "artifacts" / "inputs" / "somebody"
    folder.mkdir(parents=True)
    for _ in range(30):
        (path := folder / str(uuids.uuid7())).write_bytes(b"x")
        grown_old(path)
    with fermata.nothing_written(tmp_path / "artifacts"):
        answer = fermata("prune")
    assert (2, True) == (answer.code, "none was deleted" in answer.complaint)


@pytest.mark.parametrize("needed_by", ["a voice", "a job"])
async def test_those_that_stay_keep_no_other_from_going(database: Database, tmp_path: Path, needed_by: str) -> None:
    """Given more than a part of the oldest whose sound is needed, each run goes past them and forgets all others."""
    async with opened(database) as store:
        await old_jobs(database, 2300, days=150)
        await outputs_of_old_jobs(database)
        if needed_by == "a voice":
            async with database.connection(as_owner=True) as owner:
                await owner.execute(
                    "INSERT INTO voices (name, account_id, artifact_id, licence, consent, statistics, created_at, "
                    "actor) SELECT artifact_id::text, account_id, artifact_id, 'own', 'own', '{}', fermata_now(), '' "
                    "FROM artifacts"
                )
        else:
            waits = await store.queued("old", quoted=1, on_insufficient="wait")
            async with database.connection(as_owner=True) as owner:
                await owner.execute(
                    "UPDATE jobs SET inputs = (SELECT jsonb_object_agg(artifact_id, artifact_id) FROM artifacts) "
                    "|| jsonb_build_object('text', 'no artifact') WHERE job_id = $1",
                    waits,
                )
        await old_jobs(database, 1200, days=100)
        async with pruner_of(store, tmp_path) as pruner:
            for left in (1200, 0):
                assert left == (await pruner.old())[0].jobs
                assert left == (await pruner.run()).jobs
        assert 2300 == await store.value("SELECT count(*) FROM events WHERE what = 'ended'")
        assert 2300 == await store.value("SELECT count(*) FROM jobs WHERE state = 'cancelled'")


async def test_a_part_takes_all_of_its_last_instant(database: Database) -> None:
    """Jobs that ended in one batch have one time: the next part goes on behind it and leaves none of them."""
    async with opened(database) as store:
        await old_jobs(database, 30)
        async with database.connection(as_owner=True) as owner:
            for table, column in (("jobs", "ended_at"), ("events", "at")):
                await owner.execute(f"UPDATE {table} SET {column} = date_trunc('day', {column})")
        await old_jobs(database, 5, days=90)
        parts = [(await store.fetch("SELECT * FROM fermata_prune_jobs(30, NULL, 10)"))[0]]
        while parts[-1]["looked_to"] is not None:
            parts += await store.fetch("SELECT * FROM fermata_prune_jobs(30, $1, 10)", parts[-1]["looked_to"])
        assert [30, 5, 0] == [part["gone"] for part in parts]


#: Seconds of processor time for 10,000 inputs and 60,000 jobs: 0.12 as sets, 73 in pairs.
SETS_SECONDS_MAX = 1.5

#: Rows that one end costs, those that are deleted with it among them.
READ_PER_END = 10


@pytest.mark.parametrize("statistics", ["none", "of nothing", "of one job each", "fresh"])
async def test_a_part_reads_what_it_looks_at(database: Database, statistics: str) -> None:
    """However many more there are, of one account or of many, and whatever the planner was told of them."""
    analyze = "ANALYZE jobs, reservations, attempts, refusals, artifacts, voices, events, due, live, parked"
    async with database.connection(as_owner=True) as owner:
        if statistics == "of nothing":
            await owner.execute(analyze)
        await owner.execute(ONE_OF_EACH)
        if statistics == "of one job each":
            await owner.execute(
                "INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, "
                "sample_rate, channels, bytes, created_at, job_id, token, actor) SELECT account_id, job_id, 'song', "
                "'audio/wav', job_id::text, sha256('x'), 1, 1, 1, 1, created_at, job_id, job_id, '' FROM jobs"
            )
            await owner.execute(analyze)
        await old_jobs(database, 20_000)
        await outputs_of_old_jobs(database)
        if statistics == "fresh":
            await owner.execute(analyze)
        after = None
        for _ in range(3):
            async with owner.transaction():
                before = Counter[str](dict(await owner.fetch(_ROWS_READ)))
                part = await owner.fetchrow("SELECT * FROM fermata_prune_jobs(30, $1, 100)", after)
                read = Counter[str](dict(await owner.fetch(_ROWS_READ))) - before
            assert part is not None
            assert 100 == part["gone"]
            assert read["jobs"] >= 100
            assert read.total() <= 100 * READ_PER_END, read
            after = part["looked_to"]


#: By this session, as far as it has not told of it yet: within a transaction it only grows.
_ROWS_READ = """
    SELECT relname::text, CAST(seq_tup_read + COALESCE(idx_tup_fetch, 0) AS bigint) FROM pg_stat_xact_user_tables
"""


async def test_inputs_are_held_against_jobs_as_sets(database: Database) -> None:
    """Of an account with many of both, of which the planner was told nothing, not each with each."""
    async with database.connection(as_owner=True) as owner:
        for table in ("jobs", "artifacts"):
            await owner.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await old_jobs(database, 5000, "other")
        await outputs_of_old_jobs(database, "other")
        await old_jobs(database, 60_000)
        await owner.execute("ANALYZE jobs, artifacts")  # no job names an input yet, and there is none
        await owner.execute(
            "UPDATE jobs SET inputs = jsonb_build_object('mix', gen_random_uuid()) WHERE account_id = 'old'"
        )
        await owner.execute(
            "INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, "
            "sample_rate, channels, bytes, created_at, actor) SELECT 'old', artifact_id, 'x', 'audio/wav', "
            "artifact_id::text, sha256('x'), 1, 1, 1, 1, fermata_now() - interval '100 days', '' "
            "FROM (SELECT CAST(inputs ->> 'mix' AS uuid) FROM jobs WHERE inputs <> '{}' LIMIT 9980) AS n (artifact_id) "
            "UNION ALL SELECT 'old', gen_random_uuid(), 'x', 'audio/wav', n::text, sha256('x'), 1, 1, 1, 1, "
            "fermata_now() - interval '100 days', '' FROM generate_series(1, 20) AS n"
        )
        server = psutil.Process(owner.get_server_pid())
        before = sum(server.cpu_times()[:2])
        gone = await owner.fetch("SELECT * FROM fermata_prune_inputs(30, 'old', $1, 10000)", UUID(int=0))
        assert 20 + 1 == len(gone)
        assert sum(server.cpu_times()[:2]) - before <= SETS_SECONDS_MAX
        assert 9980 == await owner.fetchval("SELECT count(*) FROM artifacts WHERE job_id IS NULL")


async def test_a_sound_that_another_job_waits_for_keeps_its_own(database: Database, tmp_path: Path) -> None:
    """The job that made it is old; the one that will read it is queued. Afterwards both may go."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        made = await store.running(account)
        await store.settle(account, made)
        later = await store.queued(account, job_seconds=100 * 86_400.0)
        async with database.connection(as_owner=True) as owner:
            await owner.execute(
                "UPDATE jobs SET inputs = jsonb_build_object('audio', (SELECT artifact_id FROM artifacts)) "
                "WHERE job_id = $1",
                later,
            )
        await pass_months(database, 2)
        async with pruner_of(store, tmp_path) as pruner:
            assert 0 == (await pruner.run()).jobs
            await store.settle(account, await store.claim(account, later), Ending.INVALID_INPUT)
            assert 1 == (await pruner.run()).jobs
        assert 0 == await store.value("SELECT count(*) FROM artifacts")
