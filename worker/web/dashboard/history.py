"""What ended during the last day, minute by minute, put together from small reads. Pure: the time is an argument.

A day of events is never read at once: each look reads the last minutes again, since commits come a little out of
order, and one window of the past, the latest that is missing first, until the day is there. When nobody looked for a
while, what was read before is kept and only what came between is missing.
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
class Stretch:
    """A stretch of time, from `since` until before `until`."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class History:
    """The minutes that were read: `read` tells of which stretches, apart from each other, the oldest first.

    `first`: how much the first read takes. Small where many wait for it together with all else; an hour where a
    command looks once.
    """

    minutes: Mapping[datetime, tuple[EndedMinute, ...]] = field(default_factory=lambda: MappingProxyType({}))
    read: tuple[Stretch, ...] = ()
    first: timedelta = _AGAIN

    @property
    def since(self) -> datetime | None:
        """From when on all was read, up to the last read; None before the first one."""
        return self.read[-1].since if self.read else None

    def wanted(self, now: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The windows to read now: the last minutes, and a piece of the past that is not there yet."""
        this = _minute_of(now)
        if not self.read:
            yield this - self.first, now + MINUTE
            return
        settled = min(_settled(self.read[-1].until), this - _AGAIN)
        # After a longer pause a hole is left, which then is a piece of the past like any other.
        recent = settled if this - settled <= _AGAIN + MINUTE else this - _AGAIN
        yield recent, now + MINUTE
        *before, newest = self._read_with(recent, now + MINUTE)
        if newest.since > now - DAY:
            first = newest.since - _WINDOW
            yield max(first, before[-1].until) if before else first, newest.since

    def with_ended(self, ended: Iterable[EndedMinute], since: datetime, until: datetime) -> History:
        """With this window read again. What is older than a day is forgotten."""
        stretches = self._read_with(since, until)
        oldest, stale = stretches[0].since, min(since, _settled(self.read[-1].until) if self.read else since)
        # A minute that is in no stretch any more came before all of them, or with the end of a read that was too early.
        kept = {
            minute: rows for minute, rows in self.minutes.items() if oldest <= minute and not stale <= minute < until
        }
        fresh: dict[datetime, list[EndedMinute]] = {}
        for row in ended:
            fresh.setdefault(row.minute, []).append(row)
        kept |= {minute: tuple(rows) for minute, rows in fresh.items()}
        return History(MappingProxyType(kept), stretches, self.first)

    def _read_with(self, since: datetime, until: datetime) -> tuple[Stretch, ...]:
        """What is read once this window is, too."""
        stretches = [*self.read, Stretch(since, until)]
        if self.read and (settled := _settled(self.read[-1].until)) < since:
            # The last read came too early for commits of its last minutes, and nobody reads them again but as a hole.
            stretches[-2] = Stretch(self.read[-1].since, settled)
        return _joined(stretches, max(stretch.until for stretch in stretches) - DAY - HOUR)

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


def _joined(stretches: Iterable[Stretch], oldest: datetime) -> tuple[Stretch, ...]:
    """Those that touch as one, without what is older."""
    joined: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda stretch: stretch.since):
        since = max(stretch.since, oldest)
        if joined and since <= joined[-1].until:
            joined[-1] = Stretch(joined[-1].since, max(joined[-1].until, stretch.until))
        elif since < stretch.until:
            joined.append(Stretch(since, stretch.until))
    return tuple(joined)


def _settled(until: datetime) -> datetime:
    """Up to when a last read has every commit: it went a minute beyond its now, and the last minutes are read again."""
    return _minute_of(until - MINUTE) - _AGAIN


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
