"""The audit prices every job again: by the kinds what it was quoted, by what was used what it was charged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tasks.registry import registry
from tasks.validation import parse
from tests.integration.books import ACTOR, Store, an_output, opened
from tests.integration.test_audit import rules_of, tampered
from tests.servers import Database, Servers, fresh_database
from worker.credits.operations import Cancel
from worker.credits.outcomes import Ending
from worker.credits.prices import Usage, price
from worker.pricing import quoted_usage_of
from worker.store.artifacts import Artifacts
from worker.store.audit import Audit, audit, audit_on
from worker.store.audit_prices import PORTION_JOBS
from worker.store.prices import PriceBooks
from worker.store.submits import ArtifactFacts

KINDS = registry()
USAGE = quoted_usage_of(KINDS)
BOOKS = PriceBooks()
MIX = ArtifactFacts(UUID(int=9), "mix", "audio/wav", "inputs/mix", bytes(32), 150 * 44_100, 44_100, 2, 1000)

#: Under it a cancel costs, one plan pays a tenth, and stems are free.
BOOK = """[generation]
base = 7
minimum = 3
[generation.output]
base = 4
[generation.output.seconds_out]
rate = 0.3
step_seconds = 5
[[generation.overrides]]
when = { model = "studio" }
multiplier = 2.5
[[generation.overrides]]
when = { plan = "label" }
multiplier = 0.1
[stem_split]
free = true
[outcomes]
cancelled_running = "25%"
"""


class Shop:
    """Sells as the product does: by the kinds, the book in force, and what was made."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def asked(self, account_id: str, kind: str, request: Mapping[str, Any], **more: Any) -> UUID:
        """A queued job, quoted for the most that it can use."""
        whole = parse(KINDS[kind], request).model_dump(mode="json")
        usages = USAGE(kind, whole, {"mix": MIX})
        assert usages is not None
        quoted = await self._price(account_id, kind, whole, usages)
        return await self.store.queued(account_id, quoted, kind=kind, request=whole, **more)

    async def made(self, account_id: str, kind: str, request: Mapping[str, Any], *seconds: str, **more: Any) -> UUID:
        """The same run to its end, with outputs of these lengths; `rejected` ones were not good enough."""
        ending, rejected = more.pop("ending", Ending.SUCCEEDED), more.pop("rejected", ())
        job_id = await self.asked(account_id, kind, request, **more)
        claimed = await self.store.claim(account_id, job_id)
        whole = parse(KINDS[kind], request).model_dump(mode="json")
        told = [*map(_told, seconds), *(_told(length) | {"rejected": "silent"} for length in rejected)]
        used = [Usage(Decimal(length), Decimal(length)) for length in seconds]
        await self.store.settle(
            account_id,
            claimed,
            ending,
            measured=await self._price(account_id, kind, whole, used) if used else 0,
            outputs=[an_output(name=f"song-{number}") for number, _ in enumerate(seconds)],
            usage=told,
        )
        return job_id

    async def _price(self, account_id: str, kind: str, request: Mapping[str, Any], usages: Sequence[Usage]) -> int:
        async with self.store.engine.connect() as connection:
            _, book, _ = await BOOKS.current(connection)
        return price(book, kind, usages, request, await self.plan_of(account_id)).total

    async def plan_of(self, account_id: str) -> str | None:
        plan: str | None = await self.store.value("SELECT plan FROM accounts WHERE account_id = $1", account_id)
        return plan


def _told(length: str) -> dict[str, str]:
    return {"output": "song", "seconds_in": length, "seconds_out": length, "loudness": "-14.1"}


async def build(store: Store) -> None:
    """Under the shipped book and one of ours: jobs in every state, of every way that a price comes about."""
    await store.account("ada", 5000)
    await store.account("lia", 5000)
    await store.accounts.subscribe("lia", "label", "s-1", ACTOR)
    await Artifacts(store.engine).add("ada", MIX, ACTOR)
    BOOKS.__init__()  # type: ignore[misc]  # numbers are of one database
    await sold(Shop(store))
    async with store.database.connection() as connection:
        await connection.execute(
            "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
            "VALUES ($1, encode(sha256(convert_to($1, 'UTF8')), 'hex'), fermata_now(), '', '', fermata_now())",
            BOOK,
        )
    await sold(Shop(store))


async def sold(shop: Shop) -> None:
    """What the tamperings name: a success of 61.5 of its 90 seconds, a partial, a gate, a cancel; all is honest."""
    song = {"prompt": "rain", "seconds": 90, "variants": 2}
    ada, store = "ada", shop.store
    await shop.made(ada, "generation", {"prompt": "sun", "seconds_max": 90}, "61.5")
    await shop.made(ada, "generation", {**song, "model": "studio"}, "90", "90")
    await shop.made(ada, "generation", song, "90", ending=Ending.TIME_LIMIT)
    await shop.made(ada, "generation", song, "90", ending=Ending.QUALITY_GATE, rejected=["90"])
    await shop.made(ada, "generation", song, ending=Ending.QUALITY_GATE, rejected=["90"], failures_max=1)
    await shop.made(ada, "stem_split", {"stems": ["vocals"]}, "150", inputs={"mix": str(MIX.artifact_id)})
    await shop.made("lia", "generation", song, "90", "90")
    broken_off = await shop.asked(ada, "generation", song)
    claimed = await store.claim(ada, broken_off)
    await store.operations.do(Cancel(ada, broken_off, "changed my mind"))
    await store.settle(ada, claimed, Ending.CANCELLED_RUNNING)
    await shop.asked(ada, "generation", song)
    await shop.asked(ada, "stem_split", {}, inputs={"mix": str(MIX.artifact_id)})
    await store.claim(ada, await shop.asked(ada, "generation", {**song, "seconds": 300, "variants": 4}))


@asynccontextmanager
async def built(servers: Servers) -> Any:
    """The honest world in a database of its own."""
    async with fresh_database(servers) as database:
        async with opened(database) as store:
            await build(store)
        async with database.connection() as connection:  # its worker is alive, however long the tests take
            await connection.execute("UPDATE live SET lease_until = lease_until + interval '1 hour'")
        yield database


@pytest.fixture(scope="module")
def world(servers: Servers) -> Iterator[Database]:
    """The honest world, built once. Whoever changes it takes it back."""
    with asyncio.Runner() as runner:
        building = built(servers)
        yield runner.run(building.__aenter__())
        runner.run(building.__aexit__(None, None, None))


async def looked(database: Database, sql: str = "SELECT 1", **how: Any) -> Audit:
    async with tampered(database, sql) as connection:
        return await audit_on(connection, quoted_usage=USAGE, **how)


async def test_what_was_sold_honestly_is_no_violation(world: Database) -> None:
    """Two books, free plans, part of what was asked, gates, stems of a mix: every price is made again, and is right."""
    async with opened(world) as store:
        assert () == (await audit(store.engine, quoted_usage=USAGE)).violations
        assert 0 < await store.value("SELECT count(*) FROM jobs WHERE state = 'succeeded' AND charged < quoted")


SONG = "(SELECT min(job_id::text)::uuid FROM jobs WHERE state = 'succeeded' AND request ->> 'prompt' = 'sun')"
QUEUED = "state = 'queued' AND kind = 'generation' AND book_id = 1"
#: A success that used less than it was quoted, to be charged otherwise in every place that says so.
CONSISTENTLY = (
    "CREATE TEMP TABLE t AS SELECT j.job_id, draw_lots[1] AS lot_id, j.charged FROM jobs AS j "
    f"JOIN reservations USING (job_id) WHERE job_id = {SONG}; "
    "UPDATE journal SET amount = amount - 1 WHERE move = 'commit' AND job_id = (SELECT job_id FROM t); "
    "UPDATE journal SET amount = amount + 1 WHERE move = 'refund' AND job_id = (SELECT job_id FROM t); "
    "UPDATE lots SET spent = spent - 1, available = available + 1 WHERE lot_id = (SELECT lot_id FROM t); "
    "UPDATE reservations SET charged = charged - 1 WHERE job_id = (SELECT job_id FROM t); "
    "UPDATE events SET charged = charged - 1 WHERE what = 'ended' AND job_id = (SELECT job_id FROM t); "
    "UPDATE jobs SET charged = charged - 1 WHERE job_id = (SELECT job_id FROM t)"
)

#: (rule, what is done to the honest world)
TAMPERINGS = [
    ("charge_is_price", CONSISTENTLY),
    ("charge_is_price", "UPDATE attempts SET usage = jsonb_set(usage, '{0,seconds_out}', '\"1\"') "
     f"WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE attempts SET usage = usage || usage WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE attempts SET usage = usage - 0 WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE attempts SET usage = '\"x\"' WHERE job_id = {SONG}"),
    ("charge_is_price", "UPDATE attempts SET usage = jsonb_set(usage, '{0,seconds_out}', '\"NaN\"') "
     f"WHERE job_id = {SONG}"),
    ("charge_is_price", "UPDATE attempts SET usage = jsonb_set(usage, '{0,rejected}', '\"silent\"') "
     f"WHERE job_id = {SONG}"),
    ("charge_is_price", "UPDATE attempts SET usage = usage #- '{1,rejected}' WHERE ending = 'partial'"),
    ("charge_is_price", "UPDATE jobs SET request = jsonb_set(request, '{model}', '\"draft\"') "
     f"WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE jobs SET request = '3' WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE jobs SET kind = 'stem_split' WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE jobs SET kind = 'nonesuch' WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE jobs SET book_id = 3 - book_id WHERE job_id = {SONG}"),
    ("charge_is_price", f"UPDATE jobs SET plan = 'label', book_id = 2 WHERE job_id = {SONG}"),
    # Then the quote was too small for what was used, and the charge as much as there was.
    ("quote_is_price", f"UPDATE attempts SET usage = usage || usage WHERE job_id = {SONG}; "
     f"UPDATE jobs SET quoted = charged WHERE job_id = {SONG}"),
    ("quote_is_price", "UPDATE jobs SET plan = NULL WHERE account_id = 'lia' AND book_id = 2"),
    ("quote_is_price", f"UPDATE jobs SET quoted = 0 WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET quoted = 9999 WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET request = jsonb_set(request, '{{seconds}}', '300') WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET request = '3' WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET inputs = '[1, 2]' WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET plan = 'label', book_id = 2 WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE jobs SET max_credits = quoted - 1 WHERE {QUEUED}"),
    ("quote_is_price", f"UPDATE artifacts SET frames = 2 * frames WHERE artifact_id = '{MIX.artifact_id}'"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "sql"), TAMPERINGS)
async def test_a_wrong_price_is_found(world: Database, rule: str, sql: str) -> None:
    """What a price comes from was changed, or the price in all places that tell it: made again it is another."""
    found = await looked(world, sql)
    assert rule in rules_of(found), found.violations


async def test_a_charge_that_is_wrong_everywhere_breaks_no_other_rule(world: Database) -> None:
    """Job, event, reservation, lot and journal agree with each other: only the price says that they all are wrong."""
    assert {"charge_is_price"} == rules_of(await looked(world, CONSISTENTLY))


async def test_no_price_is_made_of_what_is_gone(world: Database) -> None:
    """Use that is not recorded, an input that was pruned, a kind that is no more, an account that was erased."""
    for sql in (
        f"UPDATE attempts SET usage = NULL WHERE job_id = {SONG}",
        "UPDATE jobs SET kind = 'bygone', quoted = 1 WHERE state = 'queued' AND kind = 'generation'; "
        "UPDATE due SET kind = 'bygone' WHERE kind = 'generation'",
        "INSERT INTO erasures (account_id, at, actor, reason) SELECT account_id, ended_at + interval '1 second', 'x', "
        f"'x' FROM jobs WHERE job_id = {SONG}; UPDATE jobs SET request = '{{}}' WHERE job_id = {SONG}",
    ):
        assert {"charge_is_price", "quote_is_price"}.isdisjoint(rules_of(await looked(world, sql))), sql


async def test_since_checkpoints_prices_only_what_ended_since(servers: Servers, world: Database) -> None:
    """What ended in a month that is closed was priced by the audits of that month; a queued job is always looked at."""
    month = (
        "INSERT INTO journal_months (starts_at, ends_at, closed_at) "
        "SELECT s - interval '1 month', s, s FROM (SELECT date_trunc('month', fermata_now(), 'UTC')) AS d (s)"
    )
    wrong = f"UPDATE attempts SET usage = usage - 0 WHERE job_id = {SONG}"
    long_ago = f"UPDATE jobs SET ended_at = ended_at - interval '45 days' WHERE job_id = {SONG}"
    recent = await looked(world, f"{month}; {wrong}", since_checkpoints=True)
    old = await looked(world, f"{month}; {wrong}; {long_ago}", since_checkpoints=True)
    full = await looked(world, f"{month}; {wrong}; {long_ago}")
    assert [True, False, True] == ["charge_is_price" in rules_of(found) for found in (recent, old, full)]


async def test_every_portion_is_looked_at(world: Database) -> None:
    """More jobs than one portion holds: the last one's quote is made again like the first one's."""
    many = (
        "INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, "
        "metadata, quoted, book_id, on_insufficient, ends_by, actor, created_at, failures_max) "
        "SELECT account_id, gen_random_uuid(), n::text, body_hash, kind, queue, state, request, inputs, metadata, "
        "quoted + (n = 1)::integer, book_id, on_insufficient, ends_by, actor, created_at, failures_max "
        f"FROM jobs, generate_series(1, {2 * PORTION_JOBS}) AS n WHERE {QUEUED}"
    )
    found = await looked(world, many)
    assert 1 == sum(violation.rule == "quote_is_price" for violation in found.violations)
