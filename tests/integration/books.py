"""Builders for tests of the store: an opened store on a fresh database, accounts with credits, queued jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import uuid_utils.compat as uuids
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import load
from tests.servers import Database
from worker.credits.operations import Claim, Claimed, Settle
from worker.credits.outcomes import Ending
from worker.credits.page import Artifact
from worker.local.roles import dsn
from worker.store.accounts import Accounts
from worker.store.books import Books
from worker.store.database import make_engine
from worker.store.dispatching import Dispatching
from worker.store.errors import LedgerUnavailable
from worker.store.group_commit import GroupCommit
from worker.store.leases import Leases, read_clock
from worker.store.plan_books import PlanBooks
from worker.store.prices import PriceBooks
from worker.store.submits import NewJob, Submits, SubmitView

ACTOR = "test"


#: A claim that has no slot to give back.
patient_claim = partial(Claim, patience_seconds=float("inf"))


@dataclass(slots=True)
class Store:
    """Everything of the store, wired as a worker process has it."""

    database: Database
    engine: AsyncEngine
    books: Books
    accounts: Accounts
    operations: GroupCommit[Any]
    submits: GroupCommit[Any]
    leases: Leases
    dispatching: Dispatching
    #: Unlike any other store's on the same database.
    name: str = field(default_factory=lambda: uuids.uuid7().hex[-8:])
    keys: int = 0

    async def account(self, account_id: str, credits: int = 0, **more: Any) -> str:  # noqa: A002  credits are credits
        """An account with that many granted credits."""
        await self.accounts.create(account_id, ACTOR)
        if credits:
            await self.accounts.grant(account_id, credits, f"start-{uuids.uuid7()}", ACTOR, **more)
        return account_id

    async def queued(self, account_id: str, quoted: int = 10, **more: Any) -> UUID:
        """A queued job of that price."""
        self.keys += 1
        submission = ASubmission(account_id, f"key-{self.name}-{self.keys}", quoted, more)
        return UUID(str((await self.submits.do(submission)).job_id))

    async def submitted(self, account_id: str, quoted: int = 10, **more: Any) -> tuple[str, UUID]:
        """A queued job with its account, for tests that start many."""
        return account_id, await self.queued(account_id, quoted, **more)

    async def claim(self, account_id: str, job_id: UUID, token: UUID | None = None, lease: float = 30) -> Any:
        """Claim it as a worker would."""
        token = token or uuids.uuid7()
        return await self.operations.do(Claim(account_id, job_id, token, "w1", lease))

    async def claim_patiently(self, account_id: str, job_id: UUID) -> Any:
        """Claim it by an operation that waits for its account's lock, as settles do."""
        return await self.operations.do(patient_claim(account_id, job_id, uuids.uuid7(), "w1", 30))

    async def settle(self, account_id: str, claimed: Claimed, ending: Ending = Ending.SUCCEEDED, **more: Any) -> Any:
        """Settle it as its worker would, by default with one output and the whole price."""
        if ending is Ending.SUCCEEDED:
            more = {"measured": claimed.job.quoted, "outputs": [an_output()], **more}
        more = {"claimed": claimed, **more}
        return await self.operations.do(Settle(account_id, claimed.job.job_id, claimed.token, ending, **more))

    async def running(self, account_id: str, quoted: int = 10, **more: Any) -> Claimed:
        """A job that is running."""
        claimed = await self.claim(account_id, await self.queued(account_id, quoted, **more))
        assert isinstance(claimed, Claimed)
        return claimed

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """Rows, behind the store's back."""
        async with self.database.connection() as connection:
            return list(await connection.fetch(sql, *values))

    async def value(self, sql: str, *values: Any) -> Any:
        """One value, behind the store's back."""
        async with self.database.connection() as connection:
            return await connection.fetchval(sql, *values)

    async def buckets(self, account_id: str) -> dict[str, int]:
        """The sums of the account's five buckets."""
        rows = await self.fetch(
            "SELECT coalesce(sum(available), 0)::bigint AS available, coalesce(sum(held), 0)::bigint AS held, "
            "coalesce(sum(spent), 0)::bigint AS spent, coalesce(sum(expired), 0)::bigint AS expired, "
            "coalesce(sum(revoked), 0)::bigint AS revoked FROM lots WHERE account_id = $1",
            account_id,
        )
        return dict(rows[0])


async def statement(url: str, sql: str) -> None:
    """Run it in a connection of its own, outside any transaction."""
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@asynccontextmanager
async def a_store(url: str, **overrides: Any) -> AsyncIterator[GroupCommit[Any]]:
    """Only what a process needs to bring operations to the books."""
    engine = make_engine(load({}, database_url=url, environment="test", **overrides), name="test")
    operations: GroupCommit[Any] = GroupCommit(Books(engine, PriceBooks()).apply)
    try:
        yield operations
    finally:
        await operations.close()
        await engine.dispose()


@asynccontextmanager
async def opened(database: Database, **overrides: Any) -> AsyncIterator[Store]:
    """A store on this database, as the app's role."""
    settings = load({}, database_url=database.url, environment="test", **overrides)
    engine = make_engine(settings, name="test")
    price_books, plan_books = PriceBooks(), PlanBooks(settings.frozen_life)
    books = Books(engine, price_books, plan_books, page_wait_seconds=settings.lock_timeout_seconds)
    operations: GroupCommit[Any] = GroupCommit(
        books.apply,
        batch_max=settings.batch_max,
        busy_alone_seconds=settings.busy_alone_seconds,
        key=lambda operation: operation.job_id,
    )
    submits: GroupCommit[Any] = GroupCommit(
        Submits(engine, price_books, plan_books).apply, batch_max=settings.batch_max
    )
    # Connected before the test begins: in a race nobody starts behind the other.
    with suppress(LedgerUnavailable):
        await read_clock(engine)
    try:
        yield Store(
            database, engine, books, Accounts(engine, books), operations, submits, Leases(engine), Dispatching(engine)
        )
    finally:
        await operations.close()
        await submits.close()
        await engine.dispose()


@dataclass(frozen=True, slots=True)
class ASubmission:
    """A job of a given price, of no kind in particular."""

    account_id: str
    idempotency_key: str
    quoted: int
    more: Mapping[str, Any]
    artifact_ids: Sequence[UUID] = ()
    voice: str | None = None

    @property
    def body_hash(self) -> bytes:
        return repr((self.quoted, sorted(self.more.items()))).encode()[:32].ljust(32)

    def decide(self, view: SubmitView) -> NewJob:
        return NewJob(
            job_id=uuids.uuid7(),
            kind=self.more.get("kind", "generation"),
            queue=self.more.get("queue", "generation"),
            request=self.more.get("request", {}),
            inputs=self.more.get("inputs", {}),
            metadata=self.more.get("metadata", {}),
            quoted=self.quoted,
            book_id=view.book_id,
            plan=self.more.get("plan", view.plan),
            priority=self.more.get("priority", view.priority),
            on_insufficient=self.more.get("on_insufficient", "refuse"),
            max_credits=None,
            run_at=self.more.get("run_at"),
            ends_by=self.more.get("ends_by"),
            job_seconds=self.more.get("job_seconds", 86_400.0),
            failures_max=self.more.get("failures_max", 3),
            actor=ACTOR,
        )


def an_output(seconds: int = 10, name: str = "song") -> Artifact:
    """A finished output of that length."""
    return Artifact(uuids.uuid7(), name, "audio/wav", f"outputs/{name}", bytes(32), seconds * 44_100, 44_100, 2, 1000)


def at(text: str) -> datetime:
    """A literal instant."""
    return datetime.fromisoformat(text)


async def set_clock(store: Store, text: str) -> None:
    """Set the database's clock to that instant; from there it runs on."""
    async with store.database.connection(as_owner=True) as connection:
        await connection.execute("UPDATE test_clock SET ahead = $1::timestamptz - clock_timestamp()", at(text))
