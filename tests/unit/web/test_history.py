"""The day's history: put together from small windows, each minute counted once, whatever order the reads come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.store.reads_overview import EndedMinute
from worker.web.dashboard.history import DAY, HOUR, MINUTE, History, Sums

NOON = datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)


def minute(back: int) -> datetime:
    """The minute so many before noon's."""
    return NOON.replace(second=0) - back * MINUTE


def ended(back: int, jobs: int = 1, state: str = "succeeded", queue: str = "generation") -> EndedMinute:
    return EndedMinute(minute(back), queue, state, jobs, jobs * 10, jobs)


def read(history: History, now: datetime, events: list[EndedMinute]) -> History:
    """One look: every window that is wanted, answered from the events."""
    for since, until in history.wanted(now):
        found = [row for row in events if since <= row.minute < until]
        history = history.with_ended(found, since, until)
    return history


@given(st.lists(st.tuples(st.integers(0, 1439), st.integers(1, 9)), max_size=40, unique_by=lambda pair: pair[0]))
def test_a_day_is_there_after_as_many_looks_as_it_has_windows(given_: list[tuple[int, int]]) -> None:
    """Each ended job is counted exactly once, and no look reads more than two small windows."""
    events = [ended(back, jobs) for back, jobs in given_]
    history = History()
    for look in range(370):
        now = NOON + timedelta(seconds=look / 20)
        assert len(list(history.wanted(now))) <= 2
        assert all(until - since <= 13 * MINUTE for since, until in history.wanted(now))
        history = read(history, now, events)
    assert history.covers(NOON, DAY)
    assert sum(jobs for _, jobs in given_) == history.sums(NOON, DAY).jobs


def test_a_commit_that_comes_late_is_counted_still() -> None:
    """The last two minutes are read again at each look, and replaced rather than added."""
    history = read(History(), NOON, [ended(0, 1)])
    history = read(history, NOON + timedelta(seconds=1), [ended(0, 1), ended(1, 4)])
    assert 5 == history.sums(NOON, HOUR).succeeded


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(5, 7200), st.integers(1, 4)), min_size=1, max_size=8))
def test_however_seldom_somebody_looks_each_job_is_counted_once(pauses: list[tuple[int, int]]) -> None:
    """What was read before a silence is kept, what came meanwhile is read in small windows, and a commit may be late.

    Every minute has some jobs; the last two are told short, as if their commits were still under way.
    """
    now, history = NOON, History()
    for pause, looks in pauses:
        now += timedelta(seconds=pause)
        for _ in range(looks):
            wanted = list(history.wanted(now))
            assert all(until - since <= 5 * MINUTE for since, until in wanted)
            history = read(history, now, every_minute(now))
    for _ in range(20):
        history = read(history, now, every_minute(now))
    assert history.covers(now, HOUR)
    assert history.sums(now, HOUR) == sum((Sums(row.jobs) for row in every_minute(now)[:61]), Sums())


def every_minute(now: datetime) -> list[EndedMinute]:
    """Three jobs in each of the last minutes before now, of which the last two show only one yet."""
    this = now.replace(second=0)
    return [
        EndedMinute(this - back * MINUTE, "generation", "succeeded", 3 if back > 1 else 1, 0, 0) for back in range(90)
    ]


def test_after_a_silence_the_hour_is_soon_whole_again() -> None:
    """Twelve minutes without a viewer cost three looks; meanwhile it is not said to be the whole hour."""
    history = History(first=HOUR).with_ended([ended(20, 9)], minute(60), NOON + MINUTE)
    assert history.covers(NOON, HOUR)
    later = NOON + 12 * MINUTE
    history = read(history, later, [ended(20, 9), ended(-5, 4)])
    assert 9 <= history.sums(later, HOUR).jobs
    assert not history.covers(later, HOUR)
    for _ in range(2):
        history = read(history, later, [ended(20, 9), ended(-5, 4)])
    assert (13, True) == (history.sums(later, HOUR).jobs, history.covers(later, HOUR))


def test_a_command_reads_the_hour_with_its_first_look() -> None:
    """It looks only once: no window of the past comes later."""
    history = History(first=HOUR)
    history = read(history, NOON, [ended(59, 2), ended(0, 3), ended(61, 100)])
    assert (5, True) == (history.sums(NOON, HOUR).jobs, history.covers(NOON, HOUR))


def test_a_silence_of_more_than_a_day_leaves_nothing() -> None:
    """What was read before is older than what anybody is shown."""
    history = read(History(), NOON, [ended(0)])
    history = read(history, NOON + 3 * DAY, [])
    assert (0, 1) == (len(history.minutes), len(history.read))


def test_a_series_has_every_step_and_sums_to_the_whole() -> None:
    """Steps run from the oldest to the one under way, per queue where one is asked for."""
    events = [ended(0, 2), ended(3, 1, "failed"), ended(3, 1, "cancelled", "stem_split")]
    history = read(read(History(), NOON, events), NOON, events)
    series = history.series(NOON, HOUR, MINUTE)
    assert 60 == len(series)
    assert Sums(succeeded=2, charged=20, refunded=2) == series[-1]
    assert (1, 1) == (series[-4].failed, series[-4].others)
    assert history.sums(NOON, HOUR) == sum(series, Sums())
    assert 1 == sum(one.jobs for one in history.series(NOON, DAY, 15 * MINUTE, "stem_split"))


def test_what_is_older_than_a_day_is_forgotten() -> None:
    """Memory does not grow with the age of the process."""
    history = History()
    for hour in range(72):
        now = NOON + hour * HOUR / 4
        history = read(history, now, [EndedMinute(now.replace(second=0), "generation", "succeeded", 1, 0, 0)])
    assert len(history.minutes) <= 4 * 26
