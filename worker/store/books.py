"""One transaction over the books: lock the accounts, gather their pages, let the operations decide, apply.

The order is fixed and is what the promises rest on:
1. account rows, `FOR NO KEY UPDATE`, in id order, in a statement of their own (busy ones are skipped);
2. the `live` rows of the jobs at hand, in (account, job) order;
3. only then the clock, and after it everything else, each in a new statement and so a new snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.lots import LotsUnread
from worker.credits.page import Page
from worker.credits.subscribing import turn
from worker.failpoints import any_armed, reached
from worker.store.apply import write
from worker.store.database import transaction
from worker.store.deciding import add_notices, answers_to, decide
from worker.store.errors import LedgerUnavailable, UnknownAccount
from worker.store.gather import Facts, PageOperation, gather_pages, known_accounts, lock_accounts, wake_waiting
from worker.store.plan_books import PlanBooks
from worker.store.prices import PriceBooks
from worker.store.refusals import explained

log = structlog.get_logger(__name__)

#: Seconds that a transaction of its own waits for a lock, at a time: a claim gives up after one such wait, whoever
#: has nothing to lose but time after `TRANSIENT_TRIES`.
LOCK_WAIT_SECONDS = 0.6
#: Seconds that whoever moves lots by hand waits for those of this process who do it on the same account, unless told.
PAGE_WAIT_SECONDS = 3.0


class Books:
    """Runs batches of operations, each batch one transaction."""

    def __init__(
        self,
        engine: AsyncEngine,
        price_books: PriceBooks,
        plan_books: PlanBooks | None = None,
        told: Callable[[Page], None] = lambda page: None,
        page_wait_seconds: float = PAGE_WAIT_SECONDS,
    ) -> None:
        """`told`: hears of each page once it is committed. `page_wait_seconds`: see `page`."""
        self._engine = engine
        self._page_wait_seconds = page_wait_seconds
        #: Each is there for as long as somebody has it or waits for it.
        self._pages: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._told = told
        self._price_books = price_books
        self.plan_books = plan_books or PlanBooks()

    async def apply(self, operations: Sequence[PageOperation], wait: bool) -> list[Any]:
        """One answer an operation: its result, the exception it raised, or `Busy.BUSY`.

        `wait`: for locks, `LOCK_WAIT_SECONDS` at most, instead of skipping what is busy. An operation
        that raises leaves its account's page unwritten: its neighbours there are answered busy and go again.

        Two transactions where lots that were not read are needed after all (`LotsUnread`): the first one wrote nothing.
        """
        try:
            return await self._apply(operations, wait, all_lots=False)
        except LotsUnread:
            return await self._apply(operations, wait, all_lots=True)

    async def _apply(self, operations: Sequence[PageOperation], wait: bool, *, all_lots: bool) -> list[Any]:
        account_ids = sorted({operation.account_id for operation in operations})
        async with transaction(self._engine, "batch", by_key=True) as connection:
            if wait:
                await connection.execute(_WAIT_FOR_LOCKS, {"milliseconds": str(round(1000 * LOCK_WAIT_SECONDS))})
            accounts = await lock_accounts(connection, account_ids, wait=wait)
            missing = [account_id for account_id in account_ids if account_id not in accounts]
            busy = await known_accounts(connection, missing) if missing else set()
            ready = [operation for operation in operations if operation.account_id in accounts]
            pages = await self._gather(connection, accounts, ready, wait=wait, all_lots=all_lots) if ready else {}
            answers = decide(pages, ready)
            await self._finish(connection, pages)
            decided = await explained(connection, pages, ready, answers, self.plan_books)
            await _pass_failpoints("written", ready)
        for page in pages.values():
            self._tell(page)
        await _pass_failpoints("committed", ready)
        return answers_to(operations, accounts, decided, busy)

    @asynccontextmanager
    async def page(self, account_id: str) -> AsyncIterator[tuple[AsyncConnection, Page]]:
        """One account's page in a transaction of its own, for whoever moves lots by hand, with its subscription.

        Cycles that are due have begun on it. Waits for the account's lock (bounded by lock_timeout), and before that
        for its other pages in this process (by `page_wait_seconds`). What is left on the page is written, and waiting
        jobs that fit now are queued, when the block ends without an error. Raises `UnknownAccount`, and
        `LedgerUnavailable` for an account that stays held.
        """
        async with self._alone_at(account_id), transaction(self._engine, "page", by_key=True) as connection:
            accounts = await lock_accounts(connection, [account_id], wait=True)
            if not accounts:
                raise UnknownAccount(account_id)
            pages = await self._gather(connection, accounts, (), wait=True, subscribed=True)
            turn(pages[account_id])
            yield connection, pages[account_id]
            await self._finish(connection, pages)
        self._tell(pages[account_id])

    @asynccontextmanager
    async def _alone_at(self, account_id: str) -> AsyncIterator[None]:
        """One at a time, in the order they came, before a connection is taken.

        Else purchases for one account that somebody holds, each with its connection, take the whole pool: eight of
        them kept every submit of an API process waiting until it was turned away.
        """
        lock = self._pages.setdefault(account_id, asyncio.Lock())
        try:
            async with asyncio.timeout(self._page_wait_seconds):
                await lock.acquire()
        except TimeoutError as error:
            raise LedgerUnavailable(f"account {account_id} is held by another transaction") from error
        try:
            yield
        finally:
            lock.release()

    def _tell(self, page: Page) -> None:
        try:
            self._told(page)
        except Exception:
            # What is committed was done: nobody may be told otherwise, and try it again.
            log.exception("nobody was told of a page that is committed", account_id=page.account_id)

    async def _gather(
        self, connection: AsyncConnection, accounts: Mapping[str, Facts], ready: Sequence[PageOperation], **how: bool
    ) -> dict[str, Page]:
        return await gather_pages(connection, accounts, ready, self._price_books, self.plan_books, **how)

    async def _finish(self, connection: AsyncConnection, pages: dict[str, Page]) -> None:
        raised = [account_id for account_id, page in pages.items() if page.ledger.raised]
        if raised:
            # Under the same lock: whoever brings credits starts the jobs that wait for them.
            await wake_waiting(connection, [pages[account_id] for account_id in raised])
        add_notices(pages)
        await write(connection, list(pages.values()))


async def _pass_failpoints(moment: str, operations: Sequence[PageOperation]) -> None:
    """Beside the batch's own points those of its operations, so that a test can mean a claim, or a reaping."""
    if any_armed():
        for step in dict.fromkeys(operation.step for operation in operations):
            await reached(step, moment)


_WAIT_FOR_LOCKS = text("SELECT set_config('lock_timeout', :milliseconds, true)")
