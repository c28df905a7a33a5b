"""Whether each balance that a client was told is what some beginning of the account's journal comes to.

Pure: reads and journals in, complaints out. A beginning ends between two transactions, never inside one; who asks after
somebody was told is told no less of the journal. What has expired at the moment of asking counts as gone, swept or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from tests.chaos.journal import Call, Told

#: What a move does to a lot's `available` and `held`, for each credit.
EFFECTS: Mapping[str, tuple[int, int]] = {
    "grant": (1, 0),
    "reserve": (-1, 1),
    "commit": (0, -1),
    "refund": (1, -1),
    "expire": (-1, 0),
    "revoke": (-1, 0),
}


#: The adversary ends a cycle behind everybody's back: so long it may take until that is committed.
END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a journal. All lines of a transaction have its time."""

    at: float
    lot: int
    move: str
    amount: int


@dataclass(frozen=True, slots=True)
class LotFacts:
    """What of a lot does not stand in the journal."""

    source: str
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """One account's journal, in order, and its lots."""

    entries: Sequence[Entry]
    lots: Mapping[int, LotFacts]


def unexplained(calls: Iterable[Call], ledgers: Mapping[str, Ledger]) -> Iterator[str]:
    """Each balance that no beginning of its account's journal comes to."""
    by_account: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.what == "balance" and call.told is Told.OK:
            by_account[call.account].append(call)
    for account, reads in by_account.items():
        yield from _unexplained(sorted(reads, key=attrgetter("told_at")), ledgers[account])


def _unexplained(reads: Sequence[Call], ledger: Ledger) -> Iterator[str]:
    """Reads in the order of their answers. The shortest beginning that fits leaves the most to those after it."""
    explained: list[tuple[float, int]] = []
    for read in reads:
        at_least = max((length for told_at, length in explained if told_at < read.asked_at), default=0)
        length = _shortest(read, ledger, at_least)
        if length is None:
            yield f"no beginning of the journal, from entry {at_least} on, comes to this balance: {read}"
        else:
            explained.append((read.told_at, length))


def _shortest(read: Call, ledger: Ledger, at_least: int) -> int | None:
    since = read.asked_at - END_SECONDS
    ends = (lot.expires_at for lot in ledger.lots.values() if lot.expires_at is not None)
    moments = sorted({since, *(end for end in ends if since < end <= read.told_at)})
    lengths = [_shortest_at(moment, read, ledger, at_least) for moment in moments]
    return min((length for length in lengths if length is not None), default=None)


def _shortest_at(moment: float, read: Call, ledger: Ledger, at_least: int) -> int | None:
    """How many entries make what was read, if the clock stood at that moment; None: no number does."""
    sums: Counter[str] = Counter()
    length = 0
    if at_least == 0 and _is(sums, read):
        return 0
    for at, transaction in groupby(ledger.entries, key=attrgetter("at")):
        if at > read.told_at:
            return None
        for entry in transaction:
            length += 1
            lot, (available, held) = ledger.lots[entry.lot], EFFECTS[entry.move]
            sums[f"{lot.source}.held"] += held * entry.amount
            if lot.expires_at is None or lot.expires_at > moment:
                sums[f"{lot.source}.available"] += available * entry.amount
        if length >= at_least and _is(sums, read):
            return length
    return None


def _is(sums: Mapping[str, int], read: Call) -> bool:
    return all(sums[name] == credits for name, credits in read.answer.items())  # noqa: A001
