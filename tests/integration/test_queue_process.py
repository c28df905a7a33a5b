"""A worker process of its own: how it leaves, whatever it is doing, and what it costs while it waits."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis

from tests.integration.queue_support import READY, own_valkey, send, some_pairs, until

#: Seconds within which a process must be gone after its last job. Idle threads wait for up to one second.
LEAVE_SECONDS = 6.0


class WorkerProcess:
    """A started worker and the lines it has printed."""

    def __init__(self, redis_url: str, **options: object) -> None:
        settings = [f"{name}={value}" for name, value in options.items()]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.queue_process", redis_url, *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.log: list[str] = []
        for stream, lines in ((self.popen.stdout, self.lines), (self.popen.stderr, self.log)):
            assert stream is not None
            threading.Thread(target=lines.extend, args=(map(str.strip, stream),), daemon=True).start()

    def logged(self, text: str) -> bool:
        return any(text in line for line in list(self.log))

    def told(self, beginning: str) -> int:
        """How many lines begin so."""
        return sum(line.startswith(beginning) for line in list(self.lines))

    def until_told(self, beginning: str, times: int = 1) -> None:
        """Wait until that many lines begin so; when they don't come, show what came instead."""
        try:
            until(lambda: self.told(beginning) >= times, seconds=20)
        except AssertionError:
            pytest.fail("\n".join([f"no {times} × {beginning!r} in:", *self.lines, *self.log]))

    def ended(self, seconds: float) -> int:
        """Its exit code, once it has ended in time."""
        return self.popen.wait(seconds)


@pytest.fixture
def start(redis_url: str) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers, and ends those that a failed test leaves."""
    started: list[WorkerProcess] = []

    def starting(url: str = redis_url, **options: object) -> WorkerProcess:
        started.append(WorkerProcess(url, **options))
        return started[-1]

    yield starting
    for worker in started:
        worker.popen.kill()
        worker.popen.wait()


def test_sigterm_lets_running_jobs_end(start: Callable[..., WorkerProcess], redis_url: str) -> None:
    """The first signal: no job is cut off, the process is gone within seconds of its last job, exit code 0."""
    worker = start(job_seconds=2)
    worker.until_told("ready")
    send(redis_url, some_pairs(2))
    worker.until_told("claimed", 2)

    worker.popen.send_signal(signal.SIGTERM)

    assert worker.ended(2 + LEAVE_SECONDS) == 0
    assert (worker.told("ended"), worker.told("handed back"), worker.told("closed")) == (2, 0, 1)


def test_what_outlasts_the_drain_is_handed_back(start: Callable[..., WorkerProcess], redis_url: str) -> None:
    """A job too long to wait for goes back to the queue; that is an orderly end too."""
    worker = start(job_seconds=3600, drain_seconds=0.5)
    worker.until_told("ready")
    send(redis_url, some_pairs(2))
    worker.until_told("claimed", 2)

    worker.popen.send_signal(signal.SIGTERM)

    assert worker.ended(0.5 + LEAVE_SECONDS) == 0
    assert (worker.told("handed back"), worker.told("closed")) == (2, 1)


@pytest.mark.parametrize("signals", [2, 5])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hands_back_at_once(
    start: Callable[..., WorkerProcess], redis_url: str, signals: int, number: signal.Signals
) -> None:
    """Nobody waits for the drain; further signals interrupt nothing, and the exit code stays 0."""
    worker = start(job_seconds=3600, drain_seconds=3600, hand_back_seconds=0.5)
    worker.until_told("ready")
    send(redis_url, some_pairs(2))
    worker.until_told("claimed", 2)

    worker.popen.send_signal(number)
    until(lambda: worker.logged("worker draining"))
    for _ in range(signals - 1):
        worker.popen.send_signal(number)
        time.sleep(0.05)  # or the kernel makes one of them

    assert worker.ended(LEAVE_SECONDS) == 0
    assert worker.told("handed back") == 2


def test_a_signal_while_it_boots_ends_it(start: Callable[..., WorkerProcess]) -> None:
    """It holds nothing yet: no drain, exit code 0."""
    worker = start(boot="hangs")
    worker.until_told("booting")
    worker.popen.send_signal(signal.SIGTERM)
    assert worker.ended(LEAVE_SECONDS) == 0


def test_services_that_do_not_open_end_it_loudly(start: Callable[..., WorkerProcess]) -> None:
    """With the ledger away at the start nothing is taken: the error says why, the exit code is not 0."""
    worker = start(boot="fails")
    assert worker.ended(20) != 0
    until(lambda: worker.logged("ConnectionError: the ledger is away"))


def test_an_idle_worker_leaves_at_once(start: Callable[..., WorkerProcess]) -> None:
    """Nothing to drain, nothing to wait for."""
    worker = start()
    worker.until_told("ready")
    worker.popen.send_signal(signal.SIGTERM)
    assert worker.ended(LEAVE_SECONDS) == 0


def test_a_hanging_thread_does_not_keep_it(start: Callable[..., WorkerProcess]) -> None:
    """Python waits for threads of an executor without limit; we don't."""
    worker = start(executor="hangs")
    worker.until_told("ready")
    worker.popen.send_signal(signal.SIGTERM)
    assert worker.ended(LEAVE_SECONDS) == 0


def test_a_worker_starts_and_leaves_while_redis_is_away(start: Callable[..., WorkerProcess]) -> None:
    """It waits for Redis as long as it takes; a signal ends the wait."""
    with own_valkey() as server:
        server.kill()
        worker = start(server.url())
        worker.until_told("ready")
        server.start()
        send(server.url(), some_pairs(1))
        worker.until_told("ended")
        server.kill()
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.ended(LEAVE_SECONDS + 2) == 0


def test_a_silent_redis_does_not_keep_it(start: Callable[..., WorkerProcess]) -> None:
    """A stopped server answers nothing: the worker leaves within the bounds of its waits."""
    with own_valkey() as server:
        worker = start(server.url())
        worker.until_told("ready")
        assert server.pid is not None
        stopped = psutil.Process(server.pid)
        stopped.suspend()
        try:
            worker.popen.send_signal(signal.SIGTERM)
            assert worker.ended(30) == 0
        finally:
            stopped.resume()


def test_a_killed_worker_leaves_no_process_behind(start: Callable[..., WorkerProcess], redis_url: str) -> None:
    """There is no master and no forked child: SIGKILL ends all there is."""
    worker = start(job_seconds=3600)
    worker.until_told("ready")
    send(redis_url, some_pairs(1))
    worker.until_told("claimed")
    assert psutil.Process(worker.popen.pid).children(recursive=True) == []
    worker.popen.kill()
    assert worker.ended(5) == -signal.SIGKILL


def test_a_draining_worker_leaves_hints_to_another(start: Callable[..., WorkerProcess], redis_url: str) -> None:
    """While one drains, the other runs all that comes."""
    draining = start(job_seconds=3600, slots=1, drain_seconds=3600)
    draining.until_told("ready")
    send(redis_url, some_pairs(1))
    draining.until_told("claimed")
    draining.popen.send_signal(signal.SIGTERM)
    until(lambda: draining.logged("worker draining"))

    other = start()
    other.until_told("ready")
    send(redis_url, some_pairs(20), per_message=1)

    other.until_told("ended", 20)
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(READY) == 0
    assert draining.told("claimed") == 1


def test_waiting_costs_next_to_nothing(start: Callable[..., WorkerProcess]) -> None:
    """An idle worker stays below 2 % of a core (0.2 % on an idle machine) and 100 MB, its services apart."""
    worker = start()
    worker.until_told("ready")
    process = psutil.Process(worker.popen.pid)
    before = process.cpu_times()
    time.sleep(3)  # the span that is measured
    after = process.cpu_times()

    assert (after.user + after.system - before.user - before.system) / 3 < 0.02
    assert process.memory_info().rss < 100 * 1024**2
