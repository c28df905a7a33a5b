"""The audit finds every way in which the books could be wrong, and nothing in books that are right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.integration.books import ACTOR, Store, an_output, opened
from tests.integration.tamperings import BY_THE_APP, BY_THE_OWNER
from tests.servers import Database, Servers, fresh_database
from worker.credits.operations import Cancel
from worker.credits.outcomes import Ending
from worker.store.audit import RULES, VIOLATIONS_MAX, Audit, audit, audit_on
from worker.store.errors import RefusedByDatabase

#: One of each way a job can stand or end, in one account with every source of credits.
BOOK = """[generation]
base = 30
[outcomes]
cancelled_running = "25%"
"""


async def build(store: Store) -> None:
    """A small healthy world: money from every source, jobs in every state."""
    account = await store.account("ada", 25, expires_at=datetime.now(UTC) + timedelta(hours=1))
    await store.account("bob", 40)
    await store.accounts.subscribe(account, "label", "s-1", ACTOR)
    await store.accounts.topup(account, "t-1", ACTOR, amount=200)
    made_good = await store.running(account, quoted=20)
    await store.database.advance(timedelta(hours=2))
    await store.settle(account, made_good, Ending.ENGINE_ERROR)
    # Two lots pay, the one that ends sooner first.
    await store.accounts.grant(account, 20, "promotion", ACTOR, expires_at=datetime.now(UTC) + timedelta(days=1))
    await store.settle(account, await store.running(account, quoted=50), measured=30)
    await store.settle(account, await store.running(account, quoted=0, run_at=None))
    partial = await store.running(account, quoted=30)
    await store.settle(account, partial, Ending.TIME_LIMIT, measured=10, outputs=[an_output(name="song-1")])
    refunded = await store.running(account, quoted=15, failures_max=2)
    await store.settle(account, refunded, Ending.ENGINE_CRASHED, backoff_first_seconds=0.0)
    again = await store.claim(account, refunded.job.job_id)
    await store.settle(account, again, Ending.ENGINE_CRASHED)
    await cancel(store, account, await store.queued(account, quoted=15))
    await store.claim(account, await store.queued(account, quoted=100_000))  # refused
    await store.claim(account, await store.queued(account, quoted=100_000, on_insufficient="wait"))
    await store.running(account, quoted=40)
    tried = await store.running(account, quoted=35)
    await store.settle(account, tried, Ending.ENGINE_FAILURE, backoff_first_seconds=3600.0, backoff_max_seconds=3600.0)
    await store.queued(account, quoted=5)
    await charged_for_cancelling(store)
    await charged_back(store)


async def charged_back(store: Store) -> None:
    """A purchase that was half spent when the bank took it back; the next one pays what is owed. Lapsed since."""
    account = await store.account("cy")
    await store.accounts.subscribe(account, "starter", "s-1", ACTOR)
    await store.accounts.topup(account, "c-1", ACTOR, amount=60)
    await store.settle(account, await store.running(account, quoted=180))
    await store.accounts.chargeback(account, "c-1", ACTOR)
    await store.accounts.topup(account, "c-2", ACTOR, amount=50)
    await store.accounts.cancel(account, "x-1", ACTOR, at_once=True)


async def charged_for_cancelling(store: Store) -> None:
    """Under a book that takes a quarter of the hold for it."""
    async with store.database.connection() as connection:
        await connection.execute(
            "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
            "VALUES ($1, encode(sha256(convert_to($1, 'UTF8')), 'hex'), fermata_now(), '', '', fermata_now())",
            BOOK,
        )
    claimed = await store.running("bob", quoted=30)
    await cancel(store, "bob", claimed.job.job_id)
    await store.settle("bob", claimed, Ending.CANCELLED_RUNNING)


async def cancel(store: Store, account_id: str, job_id: UUID) -> None:
    """As its owner would."""
    await store.operations.do(Cancel(account_id, job_id, "changed my mind"))


@asynccontextmanager
async def built(servers: Servers) -> AsyncIterator[Database]:
    """The healthy world in a database of its own."""
    async with fresh_database(servers) as database:
        async with opened(database) as store:
            await build(store)
        async with database.connection() as connection:  # its worker is alive, however long the tests take
            await connection.execute("UPDATE live SET lease_until = lease_until + interval '1 hour'")
        yield database


@pytest.fixture(scope="module")
def world(servers: Servers) -> Iterator[Database]:
    """The healthy world, built once. Whoever changes it takes it back."""
    with asyncio.Runner() as runner:
        building = built(servers)
        yield runner.run(building.__aenter__())
        runner.run(building.__aexit__(None, None, None))


@pytest.fixture
async def database(servers: Servers, world: Database) -> AsyncIterator[Database]:
    """A clone of it, for a test that lets others see what it changes."""
    async with fresh_database(replace(servers, template=world.name)) as fresh:
        yield fresh


@asynccontextmanager
async def tampered(database: Database, sql: str) -> AsyncIterator[AsyncConnection]:
    """A transaction in which the owner changed the books, the journal's triggers out of the way. It is taken back."""
    engine = create_async_engine(database.owner_url, poolclass=NullPool)
    off = [f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only" for table in ("journal", "debts")]
    on = [statement.replace("DISABLE", "ENABLE") for statement in off]
    async with engine.connect() as connection:
        for statement in (*off, *sql.split("; "), *on):
            await connection.exec_driver_sql(statement)
        yield connection


def rules_of(found: Audit) -> set[str]:
    return {violation.rule for violation in found.violations}


async def test_a_healthy_world_has_no_violation(world: Database) -> None:
    """Jobs in every state, credits of every source, a retry, a partial, a make-good, a charged cancel: all right."""
    async with opened(world) as store:
        found = await audit(store.engine)
    async with world.connection() as connection:
        lots, entries = await connection.fetchrow("SELECT (SELECT count(*) FROM lots), (SELECT count(*) FROM journal)")
        states = await connection.fetch("SELECT DISTINCT state FROM jobs")
        states += await connection.fetch("SELECT DISTINCT state FROM reservations")
    assert Audit(ok=True, violations=(), lots=lots, entries=entries) == found
    assert 10 == len(states), "the world has all seven states of jobs and all three of reservations"


async def test_an_empty_database_has_no_violation(servers: Servers) -> None:
    """Before the first account there is nothing wrong either."""
    async with fresh_database(servers) as fresh, opened(fresh) as store:
        assert Audit(ok=True, violations=(), lots=0, entries=0) == await audit(store.engine)


SUCCEEDED = "(SELECT job_id FROM jobs WHERE state = 'succeeded' AND quoted = 50)"
FAILED = "(SELECT job_id FROM jobs WHERE state = 'failed' AND quoted = 15)"
RUNNING = "(SELECT job_id FROM live)"
CYCLE_LOT = "(SELECT lot_id FROM lots WHERE source = 'subscription' AND account_id = 'ada')"
MADE_GOOD = "(SELECT DISTINCT job_id FROM lots WHERE reason = 'make_good')"

THIS_MONTH = (
    "SELECT date_trunc('month', fermata_now(), 'UTC'), "
    "(date_trunc('month', fermata_now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC', fermata_now()"
)

#: (rule, what is done to the healthy world)
TAMPERINGS = [
    (
        "bucket_below_zero",
        "ALTER TABLE lots DROP CONSTRAINT lots_no_bucket_below_zero; "
        "UPDATE lots SET available = -1, spent = spent + available + 1 WHERE source = 'topup'",
    ),
    (
        "buckets_sum",
        "ALTER TABLE lots DROP CONSTRAINT lots_buckets_sum; UPDATE lots SET available = 999 WHERE source = 'topup'",
    ),
    ("buckets_are_guarded", "ALTER TABLE lots DROP CONSTRAINT lots_no_bucket_below_zero"),
    ("buckets_are_guarded", "ALTER TABLE lots DROP CONSTRAINT lots_buckets_sum"),
    (
        "buckets_are_guarded",
        "ALTER TABLE lots DROP CONSTRAINT lots_buckets_sum; "
        "ALTER TABLE lots ADD CONSTRAINT lots_buckets_sum CHECK (granted > 0) NOT VALID",
    ),
    ("bucket_is_fold", "UPDATE lots SET available = available - 1, spent = spent + 1 WHERE reference = 't-1'"),
    ("bucket_is_fold", "UPDATE lots SET granted = granted + 1, available = available + 1 WHERE reference = 't-1'"),
    ("bucket_is_fold", "UPDATE lots SET expired = expired - 1, revoked = revoked + 1 WHERE expired > 0"),
    ("bucket_is_fold", "UPDATE journal SET amount = amount + 1 WHERE move = 'grant' AND reason = 'purchase'"),
    ("bucket_is_fold", "DELETE FROM journal WHERE move = 'expire'"),
    ("lot_without_entries", "DELETE FROM journal WHERE reason = 'purchase'"),
    ("entries_without_lot", "DELETE FROM lots WHERE source = 'topup'"),
    ("entries_without_lot", "UPDATE journal SET account_id = 'bob' WHERE reason = 'purchase'"),
    ("held_is_draws", f"UPDATE reservations SET state = 'refunded', settled_at = now() WHERE job_id = {RUNNING}"),
    ("held_is_draws", f"UPDATE lots SET held = held + 1, available = available - 1 WHERE lot_id = {CYCLE_LOT}"),
    (
        "held_is_draws",
        f"UPDATE reservations SET draw_lots = '{{987654321}}' WHERE job_id = {RUNNING}",
    ),
    ("append_only_is_guarded", "ALTER TABLE journal DISABLE TRIGGER journal_no_truncate"),
    ("append_only_is_guarded", "DROP TRIGGER journal_append_only ON journal; " + "CREATE TRIGGER journal_append_only "
     "BEFORE UPDATE ON journal FOR EACH ROW EXECUTE FUNCTION fermata_append_only()"),
    ("append_only_is_guarded", "ALTER TABLE debts DISABLE TRIGGER debts_no_truncate"),
    ("append_only_is_guarded", "ALTER TABLE journal_default DISABLE TRIGGER journal_no_truncate"),
    ("guards_are_ours", "ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only"),
    ("journal_order", "UPDATE journal SET at = at - interval '1 minute' WHERE seq = (SELECT max(seq) FROM journal)"),
    (
        "reserved_after_expiry",
        f"UPDATE lots SET expires_at = created_at + interval '1 millisecond' WHERE lot_id = {CYCLE_LOT}",
    ),
    ("expired_before_expiry", "UPDATE lots SET expires_at = expires_at + interval '1 day' WHERE expired > 0"),
    ("reserve_is_draw", f"DELETE FROM journal WHERE job_id = {RUNNING}"),
    ("reserve_is_draw", f"UPDATE journal SET amount = amount - 1 WHERE job_id = {RUNNING}"),
    (
        "reserve_is_draw",
        "INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor) "
        f"SELECT account_id, at, lot_id, move, amount, job_id, reason, actor FROM journal WHERE job_id = {RUNNING}",
    ),
    (
        "reserve_is_draw",  # in two parts of the right sum
        f"UPDATE journal SET amount = amount - 1 WHERE job_id = {RUNNING}; "
        "INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor) "
        f"SELECT account_id, at, lot_id, move, 1, job_id, reason, actor FROM journal WHERE job_id = {RUNNING}",
    ),
    ("settle_is_split", f"DELETE FROM journal WHERE move = 'refund' AND job_id = {FAILED}"),
    ("settle_is_split", f"UPDATE journal SET amount = amount - 1 WHERE move = 'commit' AND job_id = {SUCCEEDED}"),
    (
        "settle_is_split",
        # The same sums over the job, but the later lot is charged first.
        f"UPDATE journal SET lot_id = {CYCLE_LOT} WHERE move = 'commit' AND amount = 20 AND job_id = {SUCCEEDED}",
    ),
    (
        "settle_is_split",
        "INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor) "
        f"SELECT account_id, at, lot_id, 'commit', 1, job_id, reason, actor FROM journal WHERE job_id = {RUNNING}",
    ),
    ("entries_without_draw", f"DELETE FROM reservations WHERE job_id = {SUCCEEDED}"),
    ("entries_without_draw", f"UPDATE journal SET job_id = NULL WHERE move = 'commit' AND job_id = {SUCCEEDED}"),
    (
        "entries_without_draw",  # they cancel each other out, but nobody can say what they were for
        "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
        "SELECT account_id, fermata_now(), lot_id, move, 1, '', '' "
        "FROM lots, unnest(ARRAY['reserve', 'refund']) AS move WHERE source = 'topup'",
    ),
    (
        "entries_without_draw",  # pruned before it ended
        f"DELETE FROM reservations WHERE job_id = {RUNNING}; DELETE FROM jobs WHERE job_id = {RUNNING}",
    ),
    (
        "draw_order",
        "UPDATE reservations SET draw_lots = ARRAY[draw_lots[2], draw_lots[1]], "
        "draw_amounts = ARRAY[draw_amounts[2], draw_amounts[1]] WHERE cardinality(draw_lots) = 2",
    ),
    ("reservation_without_job", f"DELETE FROM jobs WHERE job_id = {SUCCEEDED}"),
    ("reservation_without_job", f"UPDATE reservations SET account_id = 'bob' WHERE job_id = {SUCCEEDED}"),
    ("reserved_is_quote", f"UPDATE jobs SET quoted = quoted + 1 WHERE job_id = {RUNNING}"),
    ("reserved_is_quote", f"UPDATE reservations SET draw_amounts = '{{39}}' WHERE job_id = {RUNNING}"),
    (
        "reserved_is_quote",
        f"UPDATE reservations SET draw_amounts = '{{}}', draw_lots = '{{}}' WHERE job_id = {RUNNING}",
    ),
    ("hold_has_ended", f"UPDATE reservations SET state = 'held', settled_at = NULL WHERE job_id = {FAILED}"),
    (
        "hold_has_ended",
        "INSERT INTO reservations (account_id, job_id, amount, state, draw_lots, draw_amounts, reserved_at) "
        "SELECT account_id, job_id, 0, 'held', '{}', '{}', now() FROM parked",
    ),
    ("settled_is_ended", f"UPDATE reservations SET state = 'refunded', settled_at = now() WHERE job_id = {RUNNING}"),
    ("succeeded_is_committed", f"UPDATE reservations SET charged = charged - 1 WHERE job_id = {SUCCEEDED}"),
    ("succeeded_is_committed", "DELETE FROM reservations WHERE amount = 0"),
    (
        "succeeded_is_committed",
        f"UPDATE reservations SET state = 'refunded', charged = 0 WHERE job_id = {SUCCEEDED}; "
        f"UPDATE jobs SET charged = 0 WHERE job_id = {SUCCEEDED}",
    ),
    ("charge_is_outcome", f"UPDATE jobs SET charged = 1 WHERE job_id = {FAILED}"),
    ("charge_is_outcome", f"UPDATE reservations SET state = 'committed' WHERE job_id = {FAILED}"),
    (
        "charge_is_outcome",
        f"UPDATE reservations SET state = 'committed', charged = 1 WHERE job_id = {FAILED}; "
        f"UPDATE jobs SET charged = 1 WHERE job_id = {FAILED}",
    ),
    ("charge_is_outcome", "UPDATE reservations SET charged = 7 WHERE charged = 8"),
    (
        "charge_is_outcome",  # a quarter of 30 is 8
        "UPDATE reservations SET charged = 7 WHERE charged = 8; UPDATE jobs SET charged = 7 WHERE charged = 8",
    ),
    ("charge_is_outcome", "UPDATE jobs SET charged = 1 WHERE state = 'refused'"),
    (
        "charge_is_outcome",  # a partial that its book gives away
        "UPDATE price_books SET document = replace(document, 'partial = \"measured\"', 'partial = \"nothing\"')",
    ),
    (
        "charged_above_quote",
        f"UPDATE reservations SET amount = 51, charged = 51, draw_amounts = '{{20,31}}' WHERE job_id = {SUCCEEDED}",
    ),
    (
        "charged_above_quote",
        f"ALTER TABLE jobs DROP CONSTRAINT jobs_charged; UPDATE jobs SET charged = 51 WHERE job_id = {SUCCEEDED}",
    ),
    ("end_is_outcome", f"UPDATE jobs SET reason = 'engine_error' WHERE job_id = {SUCCEEDED}"),
    ("end_is_outcome", f"UPDATE jobs SET reason = 'because' WHERE job_id = {FAILED}"),
    ("end_is_outcome", f"UPDATE jobs SET partial = true WHERE job_id = {SUCCEEDED}"),
    ("end_is_outcome", "UPDATE jobs SET partial = false WHERE partial"),
    ("end_is_told_once", f"DELETE FROM events WHERE what = 'ended' AND job_id = {SUCCEEDED}"),
    (
        "end_is_told_once",
        "INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged) "
        "SELECT account_id, at, what, job_id, state, kind, queue, reason, charged FROM events WHERE what = 'ended'",
    ),
    ("end_is_told_once", f"UPDATE events SET charged = charged + 1 WHERE job_id = {SUCCEEDED}"),
    ("end_is_told_once", f"UPDATE events SET state = 'failed' WHERE job_id = {SUCCEEDED}"),
    ("end_is_told_once", f"UPDATE events SET reason = 'cancelled' WHERE job_id = {SUCCEEDED}"),
    (
        "end_is_told_once",
        "INSERT INTO events (account_id, at, what, job_id, state, reason, charged) "
        "SELECT account_id, now(), 'ended', job_id, 'failed', 'lost_worker', 0 FROM live",
    ),
    ("outputs_are_artifacts", f"DELETE FROM artifacts WHERE job_id = {SUCCEEDED}"),
    ("outputs_are_artifacts", f"UPDATE artifacts SET token = gen_random_uuid() WHERE job_id = {SUCCEEDED}"),
    ("outputs_are_artifacts", f"UPDATE artifacts SET name = 'other' WHERE job_id = {SUCCEEDED}"),
    ("outputs_are_artifacts", f"UPDATE artifacts SET job_id = {FAILED} WHERE job_id = {SUCCEEDED}"),
    ("outputs_are_artifacts", f"UPDATE jobs SET outputs = '[]' WHERE job_id = {SUCCEEDED}"),
    ("outputs_are_artifacts", f"UPDATE jobs SET outputs = '{{}}' WHERE job_id = {SUCCEEDED}"),
    (
        "outputs_are_artifacts",
        f"DELETE FROM artifacts WHERE job_id = {SUCCEEDED}; UPDATE jobs SET outputs = '[]' WHERE job_id = {SUCCEEDED}",
    ),
    ("attempts_are_counted", f"DELETE FROM attempts WHERE job_id = {FAILED} AND attempt = 1"),
    ("attempts_are_counted", f"UPDATE attempts SET attempt = 3 WHERE job_id = {FAILED} AND attempt = 2"),
    ("attempts_are_counted", f"UPDATE jobs SET attempt = attempt + 1 WHERE job_id = {FAILED}"),
    ("attempts_are_counted", "UPDATE live SET attempt = attempt + 1"),
    (
        "attempts_are_counted",
        "INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending) "
        "SELECT account_id, job_id, attempt, token, worker_id, started_at, now(), 'lost_worker' FROM live",
    ),
    ("book_is_unchanged", "UPDATE price_books SET document = document || ' '"),
    ("book_is_unchanged", "UPDATE plan_books SET document = document || ' '"),
    ("book_is_readable", "UPDATE price_books SET document = 'free = for all' WHERE book_id = 2"),
    (
        "book_is_as_logged",
        "UPDATE price_books SET document = replace(document, 'base = 30', 'base = 300') WHERE book_id = 2; "
        "UPDATE price_books SET digest = encode(sha256(convert_to(document, 'UTF8')), 'hex')",
    ),
    (
        "book_is_as_logged",
        "UPDATE plan_books SET document = replace(document, '[', '[ '); "
        "UPDATE plan_books SET digest = encode(sha256(convert_to(document, 'UTF8')), 'hex')",
    ),
    ("book_is_as_logged", "UPDATE price_books SET effective_at = '2001-01-01' WHERE book_id = 2"),
    ("book_is_as_logged", "UPDATE plan_books SET effective_at = '2001-01-01'"),
    (
        "book_is_as_logged",
        "ALTER TABLE price_books DISABLE TRIGGER USER; "
        "UPDATE price_books SET withdrawn_at = fermata_now(), withdrawn_by = 'x' WHERE book_id = 2; "
        "ALTER TABLE price_books ENABLE TRIGGER USER",
    ),
    ("book_is_as_logged", "DELETE FROM plan_books"),
    (
        "book_is_as_logged",
        "ALTER TABLE price_books DISABLE TRIGGER USER; "
        "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) SELECT document, digest, "
        "fermata_now(), '', '', fermata_now() + interval '2 minutes' FROM price_books WHERE book_id = 1; "
        "ALTER TABLE price_books ENABLE TRIGGER USER",
    ),
    (
        "book_is_as_logged",  # nothing that stands in the log stops the audit, and what is added to it hides nothing
        "INSERT INTO audit_log (at, actor, what, subject, after) SELECT fermata_now(), 'x', 'price_books.insert', "
        "'99', '[1]'",
    ),
    ("book_is_there", f"UPDATE jobs SET book_id = 999 WHERE job_id = {SUCCEEDED}"),
    ("quote_is_price", "UPDATE jobs SET max_credits = quoted - 1 WHERE state = 'queued' AND quoted > 0"),
    (
        "charge_is_price",  # it was charged 30
        f"UPDATE attempts SET usage = '[{{\"seconds_in\": \"0\", \"seconds_out\": \"1\"}}]' WHERE job_id = {SUCCEEDED}",
    ),
    ("running_holds", f"DELETE FROM reservations WHERE job_id = {RUNNING}"),
    ("running_is_live", "DELETE FROM live"),
    (
        "running_is_live",
        "INSERT INTO live (account_id, job_id, token, queue, kind, worker_id, started_at, lease_until, ends_by, "
        "attempt) SELECT account_id, job_id, gen_random_uuid(), queue, kind, 'w1', now(), now() + interval '1 day', "
        "ends_by, 1 FROM due",
    ),
    ("queued_is_due", "DELETE FROM due"),
    (
        "queued_is_due",
        "INSERT INTO due (account_id, job_id, queue, kind, priority, since, not_before, ends_by) "
        f"SELECT account_id, job_id, queue, kind, 0, now(), now(), ends_by FROM jobs WHERE job_id = {SUCCEEDED}",
    ),
    ("waiting_is_parked", "DELETE FROM parked"),
    (
        "waiting_is_parked",
        "INSERT INTO parked (account_id, job_id, queue, kind, parked_at, needed, ends_by) "
        "SELECT account_id, job_id, queue, kind, now(), 5, ends_by FROM due",
    ),
    ("place_without_job", "UPDATE due SET job_id = gen_random_uuid()"),
    ("place_without_job", "UPDATE parked SET job_id = gen_random_uuid()"),
    ("place_without_job", "UPDATE live SET job_id = gen_random_uuid()"),
    ("stale_lease", "UPDATE live SET lease_until = fermata_now() - interval '46 seconds'"),
    ("stale_hold", f"UPDATE jobs SET ends_by = fermata_now() - interval '46 seconds' WHERE job_id = {RUNNING}"),
    ("cycle_is_granted", "UPDATE cycles SET granted_total = granted_total + 1"),
    ("cycle_is_granted", "DELETE FROM cycles"),
    ("cycle_is_granted", "UPDATE lots SET cycle_starts_at = cycle_starts_at - interval '1 month' "
     "WHERE source = 'subscription'"),
    (
        "cycle_is_granted",
        "INSERT INTO lots (account_id, source, granted, available, expires_at, created_at, cycle_starts_at, reason) "
        "SELECT account_id, source, granted, granted, expires_at, created_at, cycle_starts_at, reason FROM lots "
        "WHERE source = 'subscription'",
    ),
    ("purchase_is_lot", "DELETE FROM purchases"),
    ("purchase_is_lot", "UPDATE purchases SET credits = credits - 1"),
    ("purchase_is_lot", "UPDATE lots SET reference = 't-2' WHERE reference = 't-1'"),
    ("make_good", "UPDATE lots SET granted = granted + 1, available = available + 1 WHERE reason = 'make_good'"),
    (
        "make_good",
        "DROP INDEX lots_make_good; "
        "INSERT INTO lots (account_id, source, granted, available, expires_at, created_at, job_id, reason) "
        "SELECT account_id, source, 1, 1, expires_at, created_at, job_id, reason FROM lots WHERE reason = 'make_good'; "
        f"UPDATE reservations SET amount = 21 WHERE job_id = {MADE_GOOD}",
    ),
    (
        "compensation",
        "INSERT INTO lots (account_id, source, granted, available, expires_at, created_at, job_id, reason) "
        f"SELECT 'ada', 'grant', 31, 31, now(), now(), job_id, 'compensation' FROM jobs WHERE job_id = {SUCCEEDED}",
    ),
    ("expired_before_expiry", "UPDATE journal SET lot_id = (SELECT lot_id FROM lots WHERE reference = 't-1') "
     "WHERE move = 'expire'"),
    ("cycle_is_in_line", "UPDATE accounts SET cycle_ends_at = cycle_ends_at + interval '1 day'"),
    (
        "cycle_is_in_line",
        "INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, skipped, at) SELECT account_id, "
        "starts_at + interval '1 day', ends_at, plan, 0, true, at FROM cycles",
    ),
    (
        "frozen_is_not_spent",
        "UPDATE accounts SET active_until = created_at WHERE account_id = 'cy'",
    ),
    ("charged_back_is_taken", "UPDATE lots SET charged_back = false WHERE reference = 'c-1'"),
    ("charged_back_is_taken", "UPDATE purchases SET charged_back_at = NULL WHERE reference = 'c-1'"),
    (
        "charged_back_is_taken",
        "UPDATE lots SET available = 1, revoked = revoked - 1 WHERE reference = 'c-1'",
    ),
    ("debt_is_explained", "DELETE FROM debts WHERE amount < 0"),
    ("debt_is_explained", "UPDATE debts SET amount = amount + 1 WHERE amount > 0"),
    ("debt_is_explained", "UPDATE debts SET lot_id = NULL"),
    ("debt_is_explained", "UPDATE journal SET reason = 'kindness' WHERE reason = 'debt'"),
    ("debt_below_zero", "DELETE FROM debts WHERE amount > 0"),
    ("checkpoint_is_fold", f"INSERT INTO journal_months (starts_at, ends_at, closed_at) {THIS_MONTH}"),
    (
        "months_are_in_line",
        f"INSERT INTO journal_months (starts_at, ends_at, closed_at) {THIS_MONTH}; "
        "UPDATE journal_months SET entries = 1",
    ),
    (
        "months_are_in_line",
        f"INSERT INTO journal_months (starts_at, ends_at, closed_at) {THIS_MONTH}; "
        "INSERT INTO journal_months (starts_at, ends_at) "
        "SELECT starts_at - interval '2 months', ends_at - interval '2 months' FROM journal_months",
    ),
    ("own_account", f"UPDATE attempts SET account_id = 'bob' WHERE job_id = {SUCCEEDED}"),
    ("own_account", f"UPDATE events SET account_id = 'bob' WHERE job_id = {SUCCEEDED}"),
    ("own_account", f"UPDATE artifacts SET account_id = 'bob' WHERE job_id = {SUCCEEDED}"),
    ("own_account", f"UPDATE reservations SET account_id = 'bob' WHERE job_id = {SUCCEEDED}"),
    ("own_account", "UPDATE lots SET account_id = 'bob' WHERE reason = 'make_good'"),
    ("own_account", "UPDATE live SET account_id = 'bob'"),
    ("own_account", "UPDATE due SET account_id = 'bob'"),
    ("own_account", "UPDATE parked SET account_id = 'bob'"),
    ("own_account", f"UPDATE jobs SET retry_of = {SUCCEEDED} WHERE account_id = 'bob'"),
    ("own_account", "UPDATE reservations SET draw_lots = (SELECT array_agg(lot_id) FROM lots WHERE reference = 't-1') "
     "WHERE account_id = 'bob'"),
    (
        "own_account",
        "UPDATE jobs SET inputs = (SELECT jsonb_build_object('voice', artifact_id) FROM artifacts "
        f"WHERE job_id = {SUCCEEDED}) WHERE account_id = 'bob'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "sql"), [*TAMPERINGS, *BY_THE_OWNER])
async def test_a_tampering_is_found_by_its_rule(world: Database, rule: str, sql: str) -> None:
    """Whoever changes the books behind our back, the rule that it breaks says so."""
    async with tampered(world, sql) as connection:
        found = await audit_on(connection)
    assert rule in rules_of(found)
    assert not found.ok
    assert sorted(found.violations, key=lambda violation: violation.rule) == list(found.violations)


@pytest.mark.parametrize(("rule", "sql"), BY_THE_APP)
async def test_a_tampering_by_our_own_role_is_found_by_its_rule(world: Database, rule: str, sql: str) -> None:
    """Also what a process of ours could do with no right but its own, triggers and all."""
    engine = create_async_engine(world.url, poolclass=NullPool)
    async with engine.connect() as connection:
        for statement in sql.split("; "):
            assert (await connection.exec_driver_sql(statement)).rowcount > 0
        found = await audit_on(connection)
    assert rule in rules_of(found)


def test_every_rule_has_a_tampering() -> None:
    """A rule that nothing can break watches over nothing."""
    assert set(RULES) == {rule for rule, _ in (*TAMPERINGS, *BY_THE_OWNER, *BY_THE_APP)}


#: (what refuses, what is tried): the database itself stands before the audit.
REFUSED = [
    ("lots_no_bucket_below_zero", "UPDATE lots SET available = -1, spent = spent + available + 1"),
    ("lots_buckets_sum", "UPDATE lots SET available = available + 1"),
    ("lots_granted", "UPDATE lots SET granted = 0, available = 0, spent = 0, expired = 0, held = 0"),
    ("lots_closed_is_empty", "UPDATE lots SET closed = true WHERE source = 'topup'"),
    ("lots_make_good", "INSERT INTO lots (account_id, source, granted, available, created_at, job_id, reason) "
     "SELECT account_id, source, 1, 1, created_at, job_id, reason FROM lots WHERE reason = 'make_good'"),
    ("lots_reference", "INSERT INTO lots (account_id, source, granted, available, created_at, reference, reason) "
     "SELECT account_id, source, 1, 1, created_at, reference, reason FROM lots WHERE source = 'topup'"),
    ("cycles_pkey", "INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, at) "
     "SELECT account_id, starts_at, ends_at, plan, 0, at FROM cycles"),
    ("reservations_pkey", "INSERT INTO reservations (account_id, job_id, amount, state, draw_lots, draw_amounts, "
     "reserved_at) SELECT account_id, job_id, 0, 'held', '{}', '{}', now() FROM reservations"),
    ("reservations_charged", f"UPDATE reservations SET charged = amount + 1 WHERE job_id = {SUCCEEDED}"),
    ("reservations_only_commits_charge", f"UPDATE reservations SET charged = 1 WHERE job_id = {FAILED}"),
    ("reservations_settled", f"UPDATE reservations SET state = 'held', charged = 0 WHERE job_id = {SUCCEEDED}"),
    ("journal_amount", "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
     "VALUES ('ada', now(), 1, 'grant', 0, '', '')"),
    ("jobs_charged", f"UPDATE jobs SET charged = quoted + 1 WHERE job_id = {SUCCEEDED}"),
    ("jobs_ended_at", f"UPDATE jobs SET state = 'queued', outputs = NULL WHERE job_id = {SUCCEEDED}"),
    ("jobs_outputs_when_succeeded", f"UPDATE jobs SET outputs = NULL WHERE job_id = {SUCCEEDED}"),
    ("jobs_partial", f"UPDATE jobs SET partial = true WHERE job_id = {FAILED}"),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "sql"), REFUSED)
async def test_the_schema_refuses_what_it_can(world: Database, constraint: str, sql: str) -> None:
    """A bug of ours, or an owner's hand, meets a CHECK or a key before it does harm."""
    with pytest.raises(IntegrityError) as refused:
        async with tampered(world, sql):
            pass
    assert f"the database refused it: {constraint}" == str(RefusedByDatabase.of(refused.value))


@pytest.mark.parametrize("table", ["journal", "debts"])
@pytest.mark.parametrize("sql", ["UPDATE {} SET amount = 1", "DELETE FROM {}", "TRUNCATE {}"])
async def test_the_journal_and_the_debts_are_append_only(world: Database, table: str, sql: str) -> None:
    """Nobody changes what was written, the owner of the tables included."""
    async with world.connection(as_owner=True) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await connection.execute(sql.format(table))


@pytest.mark.parametrize("left", ["journal", "events", "artifacts"])
async def test_what_was_pruned_is_no_violation(world: Database, left: str) -> None:
    """A job that ended long ago goes with all its rows; its entries stay, and its outputs or events may go later."""
    tables = {"reservations", "attempts", "events", "artifacts", "jobs"} - {left}
    pruned = f"CREATE TEMP TABLE old AS SELECT {SUCCEEDED} AS job_id"
    sql = "; ".join([pruned, *(f"DELETE FROM {table} WHERE job_id = (SELECT job_id FROM old)" for table in tables)])
    async with tampered(world, sql) as connection:
        assert () == (await audit_on(connection)).violations


async def test_graces_are_the_callers(world: Database) -> None:
    """Whoever runs with short leases asks for short graces."""
    late = "fermata_now() - interval '5 seconds'"
    ends = f"UPDATE live SET ends_by = {late}; UPDATE jobs AS j SET ends_by = l.ends_by FROM live AS l "
    sql = f"UPDATE live SET lease_until = {late}; {ends} WHERE j.job_id = l.job_id"
    async with tampered(world, sql) as connection:
        patient = await audit_on(connection)
        strict = await audit_on(connection, lease_grace_seconds=2, hold_grace_seconds=2)
    assert (set(), {"stale_lease", "stale_hold"}) == (rules_of(patient), rules_of(strict))


async def test_a_violation_says_where_and_by_how_much(world: Database) -> None:
    """Enough to act on without another query."""
    sql = "UPDATE lots SET available = available - 1, spent = spent + 1 WHERE reference = 't-1'"
    async with tampered(world, sql) as connection:
        found = await audit_on(connection)
        lot_id = await connection.scalar(text("SELECT lot_id FROM lots WHERE reference = 't-1'"))
    assert [
        f"lot {lot_id} of ada: granted 200, available 199, held 0, spent 1, expired 0, revoked 0; its entries: "
        "granted 200, reserved 0, committed 0, refunded 0, expired 0, revoked 0; held by jobs 0; expires at none"
    ] == [violation.what for violation in found.violations]


async def test_many_violations_are_cut_off(world: Database) -> None:
    """However much is wrong, the answer stays an answer."""
    sql = (
        "INSERT INTO parked (account_id, job_id, queue, kind, parked_at, needed, ends_by) "
        "SELECT 'ada', gen_random_uuid(), '', '', now(), 1, now() FROM generate_series(1, 1500)"
    )
    async with tampered(world, sql) as connection:
        found = await audit_on(connection)
    assert (VIOLATIONS_MAX, {"place_without_job"}) == (len(found.violations), rules_of(found))


async def test_an_audit_takes_as_long_as_it_takes(database: Database) -> None:
    """The limits of a worker's sessions are not the audit's: its snapshot may well be older than a statement may be."""
    async with opened(database, statement_timeout_seconds=0.1, lock_timeout_seconds=0.05) as store:
        async with database.connection(as_owner=True) as connection:
            await connection.execute(
                "CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
                "$$ SELECT clock_timestamp() + ahead FROM test_clock, pg_sleep(0.3) $$"
            )
        assert (await audit(store.engine)).ok


async def test_an_audit_sees_one_instant(database: Database) -> None:
    """What is committed while it is under way is in all of its numbers or in none."""
    async with opened(database) as store, database.connection(as_owner=True) as other:
        # It reads the clock first: there it is held until the change is made.
        await other.execute("CREATE TABLE gate ()")
        await other.execute("GRANT SELECT ON gate TO PUBLIC")
        await other.execute(
            "CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            "$$ SELECT clock_timestamp() + ahead + count(gate) * interval '0' FROM test_clock LEFT JOIN gate ON true "
            "GROUP BY ahead $$"
        )
        async with other.transaction():
            await other.execute("LOCK TABLE gate IN ACCESS EXCLUSIVE MODE")
            auditing = asyncio.create_task(audit(store.engine))
            await until_it_waits(database)
            async with database.connection() as changing:
                await changing.execute("DELETE FROM live")
        assert () == (await auditing).violations
        assert {"running_is_live"} <= rules_of(await audit(store.engine))


async def until_it_waits(database: Database) -> None:
    """For the gate, within ten seconds."""
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fermata audit' AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10), database.connection() as watching:
        while not await watching.fetchval(waits):  # noqa: ASYNC110  see below
            await asyncio.sleep(0.005)  # another session's waiting raises no event here
