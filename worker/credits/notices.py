"""What an account is told without asking: few credits left, credits about to expire, top-ups frozen, a new cycle.

Told by whatever causes it, in the same transaction. What time alone causes is told by the notify duty, once: its
notices have a `subject`, and the database keeps which were told.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from worker.credits.account_ledger import AccountLedger
from worker.credits.lots import Lot, LotSource, Move
from worker.credits.page import Notice, Page
from worker.credits.values import value


class What(StrEnum):
    """The events of an account, beside `ended`, `paused` and `resumed`."""

    BALANCE_LOW = "balance_low"
    CREDITS_EXPIRING = "credits_expiring"
    TOPUP_FROZEN = "topup_frozen"
    CYCLE_RENEWED = "cycle_renewed"


#: What each move does to what is available.
_AVAILABLE = {Move.GRANT: 1, Move.REFUND: 1, Move.RESERVE: -1, Move.EXPIRE: -1, Move.REVOKE: -1, Move.COMMIT: 0}


def notices_of(page: Page) -> list[Notice]:
    """What the page's own changes are to tell."""
    notices = [] if page.subscription is None else _renewed(page)
    # Lots that were not read have nothing less available than before.
    if (
        page.warn_below
        and page.ledger.lots_read
        and page.ledger.lines
        and (low := _low(page.ledger, page.warn_below)) is not None
    ):
        notices.append(low)
    if page.ledger.topups_frozen and page.ledger.new_lots:
        notices += _frozen(page)
    return notices


def _renewed(page: Page) -> list[Notice]:
    return [
        Notice(What.CYCLE_RENEWED, {"plan": row.plan, "credits": row.granted, "ends_at": row.ends_at.isoformat()})
        for row in page.writes.cycles
        if not row.skipped
    ]


def _low(ledger: AccountLedger, threshold: int) -> Notice | None:
    """Only the step over the threshold tells, not each one below it. What expired counts from when it is written.

    A lot that was charged back has nothing available; what it had before counts as what the account had.
    """
    counted = {lot_id: lot for lot_id, lot in ledger.lots.items() if not _is_frozen(lot, ledger)}
    after = sum(lot.available for lot in counted.values())
    if after >= threshold:
        return None
    entries = [line.entry for line in ledger.lines if line.entry.lot_id in counted]
    before = after - sum(_AVAILABLE[entry.move] * entry.amount for entry in entries)
    return Notice(What.BALANCE_LOW, {"spendable": after, "threshold": threshold}) if before >= threshold else None


def _frozen(page: Page) -> Iterable[Notice]:
    """Once for each lot and lapse."""
    lapse = int(page.active_until.timestamp()) if page.active_until else 0
    for lot_id, lot in page.ledger.lots.items():
        if lot.source is LotSource.TOPUP and lot.available and not lot.expired_by(page.now):
            yield Notice(What.TOPUP_FROZEN, {"credits": lot.available}, f"@{lapse}", lot_id)


@value
class Notify:
    """Tell an account what time alone has brought about, or is about to."""

    step: ClassVar[str] = "notify"

    account_id: str
    expiring_days: float
    job_id: None = None

    def decide(self, page: Page) -> int:
        """How many notices there are; those that were told before are not told again."""
        ledger, soon = page.ledger, page.now + timedelta(days=self.expiring_days)
        notices = [
            Notice(
                What.CREDITS_EXPIRING,
                {"credits": lot.available, "source": str(lot.source), "expires_at": lot.expires_at.isoformat()},
                "",
                lot_id,
            )
            for lot_id, lot in ledger.lots.items()
            if lot.expires_at is not None and page.now < lot.expires_at <= soon and lot.available
            if not _is_frozen(lot, ledger)
        ]
        if ledger.topups_frozen:
            notices += _frozen(page)
        page.writes.notices += notices
        return len(notices)


def _is_frozen(lot: Lot, ledger: AccountLedger) -> bool:
    return ledger.topups_frozen and lot.source is LotSource.TOPUP
