"""Let the operations of a batch decide, each on its account's page, and gather their answers. Nothing here waits."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from worker.credits.lots import LotsUnread
from worker.credits.notices import notices_of
from worker.credits.operations import Claim, TryAgain
from worker.credits.page import Page
from worker.credits.subscribing import turn
from worker.store.errors import UnknownAccount
from worker.store.gather import PageOperation
from worker.store.group_commit import Busy


def decide(pages: dict[str, Page], operations: Sequence[PageOperation]) -> list[Any]:
    """Let each operation decide. A page on which one raised is dropped whole.

    Raises `LotsUnread` where one needs lots that were not read for it.
    """
    answers: list[Any] = [Busy.BUSY] * len(operations)
    broken: set[str] = set()
    # A cycle that has ended is turned by whoever meets it first: nobody waits for a duty.
    for page in pages.values():
        if page.subscription is not None:
            turn(page)
    # Claims last: what a neighbour gives back may pay for them.
    claims = [isinstance(operation, Claim) for operation in operations]
    for place in sorted(range(len(operations)), key=claims.__getitem__):
        operation = operations[place]
        if operation.account_id not in broken:
            try:
                answers[place] = operation.decide(pages[operation.account_id])
            except LotsUnread:
                raise
            except Exception as error:
                broken.add(operation.account_id)
                answers[place] = error
    for account_id in broken:
        del pages[account_id]
    # What was decided before its neighbour raised is not written either: it goes again.
    return [
        Busy.BUSY
        if answer is TryAgain.TRY_AGAIN or (operation.account_id in broken and not isinstance(answer, Exception))
        else answer
        for operation, answer in zip(operations, answers, strict=True)
    ]


def add_notices(pages: Mapping[str, Page]) -> None:
    """Add what the pages' own changes are to tell to what they write."""
    for page in pages.values():
        if notices := notices_of(page):
            page.writes.notices += notices


def answers_to(
    operations: Sequence[PageOperation], locked: Container[str], decided: Sequence[Any], busy: Container[str]
) -> list[Any]:
    """One answer an operation: what was decided, in the order of those whose account is locked; the others' why not."""
    answers = iter(decided)
    return [
        next(answers) if operation.account_id in locked else _not_ready(operation.account_id, busy)
        for operation in operations
    ]


def _not_ready(account_id: str, busy: Container[str]) -> Any:
    return Busy.BUSY if account_id in busy else UnknownAccount(account_id)
