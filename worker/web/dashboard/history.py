"""What ended during the last day, minute by minute, put together from small reads. Pure: the time is an argument.

A day of events is never read at once: each look reads the last minutes again, since commits come a little out of
order, and one window of the past, the latest first, until the day is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from worker.store.reads_overview import EndedMinute

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
#: What is read again at each look: no transaction of ours lives so long.
_AGAIN = 2 * MINUTE
#: One window of the past.
_WINDOW = 4 * MINUTE
#: What the first look reads, which must read all else too: with a window it took 55 ms over a million jobs of a day.
_FIRST = 2 * MINUTE


@dataclass(frozen=True, slots=True)
class Sums:
    """What ended in some span of time."""

    succeeded: int = 0
    failed: int = 0
    others: int = 0  # cancelled, refused
    charged: int = 0
    refunded: int = 0

    @property
    def jobs(self) -> int:
        return self.succeeded + self.failed + self.others

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.others + other.others,
            self.charged + other.charged,
            self.refunded + other.refunded,
        )


@dataclass(frozen=True, slots=True)
class History:
    """The minutes that were read. `since` … `until` is covered without a gap; None before the first read."""

    minutes: Mapping[datetime, tuple[EndedMinute, ...]] = field(default_factory=lambda: MappingProxyType({}))
    since: datetime | None = None
    until: datetime | None = None

    def wanted(self, now: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The windows to read now: the last minutes, and a piece of the past that is not there yet."""
        this = _minute_of(now)
        last = min(self.until or this, this) - _AGAIN
        # After a long pause nobody knows what came between: begin anew rather than read hours at once.
        begun = self.since is None or this - last > 3 * _WINDOW
        first = this - _FIRST if begun else last
        yield first, now + MINUTE
        earliest = first if begun or self.since is None else self.since
        if not begun and earliest > now - DAY:
            yield earliest - _WINDOW, earliest

    def with_ended(self, ended: Iterable[EndedMinute], since: datetime, until: datetime) -> History:
        """With this window read again. What is older than a day is forgotten."""
        joins = self.since is not None and self.until is not None and since <= self.until and until >= self.since
        oldest = until - DAY - HOUR
        kept = {
            minute: rows
            for minute, rows in (self.minutes if joins else {}).items()
            if minute >= oldest and not since <= minute < until
        }
        fresh: dict[datetime, list[EndedMinute]] = {}
        for row in ended:
            fresh.setdefault(row.minute, []).append(row)
        kept |= {minute: tuple(rows) for minute, rows in fresh.items()}
        if not joins or self.since is None or self.until is None:
            return History(MappingProxyType(kept), since, until)
        return History(MappingProxyType(kept), max(min(self.since, since), oldest), max(self.until, until))

    def sums(self, now: datetime, span: timedelta, queue: str | None = None) -> Sums:
        """All that ended within `span` before now, of one queue or of all."""
        first = now - span
        total = Sums()
        for minute, rows in self.minutes.items():
            if minute > first - MINUTE:
                total += _sums(rows, queue)
        return total

    def series(self, now: datetime, span: timedelta, step: timedelta, queue: str | None = None) -> list[Sums]:
        """`span` before now in steps, the oldest first. The last step is the one under way."""
        count = int(span / step)
        steps = [Sums()] * count
        end = _minute_of(now) + MINUTE
        for minute, rows in self.minutes.items():
            place = count - 1 - int((end - MINUTE - minute) / step)
            if 0 <= place < count:
                steps[place] += _sums(rows, queue)
        return steps

    def covers(self, now: datetime, span: timedelta) -> bool:
        """Whether all of `span` was read."""
        return self.since is not None and self.since <= now - span + MINUTE


def _sums(rows: Sequence[EndedMinute], queue: str | None) -> Sums:
    """Of one minute. Plain numbers inside: a day is added up at each look."""
    succeeded = failed = others = charged = refunded = 0
    for row in rows:
        if queue is not None and row.queue != queue:
            continue
        charged, refunded = charged + row.charged, refunded + row.refunded
        match row.state:
            case "succeeded":
                succeeded += row.jobs
            case "failed":
                failed += row.jobs
            case _:
                others += row.jobs
    return Sums(succeeded, failed, others, charged, refunded)


def _minute_of(time: datetime) -> datetime:
    return time.replace(second=0, microsecond=0)
