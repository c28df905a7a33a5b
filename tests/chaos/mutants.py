"""Twelve ways to break what the promises rest on, and who finds each: `python -m tests.chaos --profile mutants`.

A mutant is a patch of our source, put on a copy of the tree; the product carries no switches for it. A patch whose text
is not there exactly once has gone stale and fails. Those who must find it are tests that pass on the tree as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from tests.chaos.theatre import tell
from tests.servers import scratch_folder

ROOT = Path(__file__).parents[2]
COPIED = ("config", "fermata_client", "tasks", "worker", "tests", "pyproject.toml", "README.md", "docs")
#: A mutant may also hang what should end: that is found too, later.
SECONDS_MAX = 240


@dataclass(frozen=True, slots=True)
class Patch:
    """One place in the source, and what the mutant has there."""

    file: str
    old: str
    new: str

    def put_on(self, root: Path) -> str:
        """The file's text with it. Raises `Stale`."""
        text = (root / self.file).read_text()
        if text.count(self.old) != 1:
            raise Stale(f"{self.file} has {text.count(self.old)} times: {self.old!r}")
        return text.replace(self.old, self.new)


class Stale(Exception):
    """The code has changed: the mutant must be written anew."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, and the tests that must find it."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    killers: tuple[str, ...]


OPERATIONS = "worker/credits/operations.py"
GATHER = "worker/store/gather.py"
RUNNER = "worker/runner.py"
_GUARD = "if job is None or lease is None or lease.token != self.token or job.state is not JobState.RUNNING:"
_REAPABLE = "if self.reap_grace_seconds is not None and not self._reapable(job, lease, page.now):"
_KNOWS = """            and claimed.hold is not None
            and lease is not None
            and lease.token == self.token == claimed.token
"""
_LOCKED = '    rows = await rows_of(driver_of(connection), statement, {"accounts": account_ids})\n'
_LOTS = "    lots = await _read_lots(driver, [account_id for account_id in accounts if account_id not in unread])\n"

MUTANTS = (
    Mutant(
        "M1",
        "a settle does not compare the token",
        (Patch(OPERATIONS, _GUARD, _GUARD.replace(" lease.token != self.token or", "")),),
        ("tests/integration/test_known_settles.py::test_who_lost_the_job_is_fenced_whatever_it_knew",),
    ),
    Mutant(
        "M2",
        "a settle trusts what its claim knew, not the row as it is now",
        (
            Patch(OPERATIONS, _KNOWS, "            and claimed.hold is not None\n"),
            Patch(
                OPERATIONS,
                f"        {_GUARD}\n            return Fenced.FENCED\n",
                "        if job is None:\n            return Fenced.FENCED\n"
                "        lease = lease or Lease(job.job_id, self.token, page.now, None)\n",
            ),
        ),
        ("tests/integration/test_known_settles.py::test_who_lost_the_job_is_fenced_whatever_it_knew",),
    ),
    Mutant(
        "M3",
        "the reaper reaps by the job's id, as it stood when it looked",
        (
            Patch(
                OPERATIONS,
                _GUARD,
                _GUARD.replace(
                    "lease.token != self.token or",
                    "(lease.token != self.token and self.reap_grace_seconds is None) or",
                ),
            ),
            Patch(OPERATIONS, _REAPABLE, "if False:"),
        ),
        ("tests/integration/test_leases.py::test_a_reaping_that_comes_too_late_is_none",),
    ),
    Mutant(
        "M4",
        "each attempt holds its credits anew",
        (Patch(OPERATIONS, "        held = page.ledger.reservations.get(job.job_id)\n", "        held = None\n"),),
        ("tests/integration/test_books.py::test_a_job_that_keeps_failing_keeps_its_hold_until_it_ends",),
    ),
    Mutant(
        "M5",
        "no account is locked",
        (
            Patch(GATHER, "    ORDER BY account_id\n    FOR NO KEY UPDATE SKIP LOCKED\n", "    ORDER BY account_id\n"),
            Patch(GATHER, "    ORDER BY account_id\n    FOR NO KEY UPDATE\n", "    ORDER BY account_id\n"),
        ),
        (
            "tests/integration/test_books.py::test_many_processes_on_many_accounts_neither_deadlock_nor_lose_a_credit",
            "tests/integration/test_credits_races.py",
        ),
    ),
    Mutant(
        "M6",
        "the lots are read before the lock is had, as one statement for both would",
        (
            Patch(
                GATHER,
                _LOCKED,
                "    driver = driver_of(connection)\n"
                "    BEFORE[driver] = await _read_lots(driver, list(account_ids))\n"
                '    rows = await rows_of(driver, statement, {"accounts": account_ids})\n',
            ),
            Patch(GATHER, _LOTS, "    lots = BEFORE.pop(driver)\n"),
            Patch(GATHER, "async def lock_accounts(", "BEFORE: dict[Any, Any] = {}\n\n\nasync def lock_accounts("),
        ),
        (
            "tests/integration/test_books.py::test_credits_that_went_while_a_claim_waited_are_gone",
            "tests/integration/test_credits_races.py",
        ),
    ),
    Mutant(
        "M7",
        "the hint is the truth: what Redis has lost is not sent again",
        (
            Patch(
                "worker/duties/dispatch.py",
                "        if not await self.sender.epoch_stands(self._deployment):\n",
                "        if False:\n",
            ),
            Patch(
                "worker/store/dispatching.py", "          AND d.hint_again_at <= clock.now\n", "          AND false\n"
            ),
        ),
        ("tests/acceptance/test_crash_servers.py::test_a_flushed_redis_loses_no_job",),
    ),
    Mutant(
        "M8",
        "a settle whose answer was lost is taken for a failure, and refunded",
        (
            Patch(
                RUNNER,
                "                unknown = True\n                standing = await self._standing(held)\n"
                "                if standing is not Standing.RUNNING:\n                    return standing\n",
                "                operation = Settle(held.account_id, held.job_id, held.token, Ending.INTERNAL_ERROR)\n",
            ),
        ),
        ("tests/acceptance/test_crash_doubts.py::test_a_settle_in_doubt_ends_as_the_run_did",),
    ),
    Mutant(
        "M9",
        "the price is read when the job is settled",
        (
            Patch(
                RUNNER,
                "self.price_books.parsed(claim.job.book_id)",
                "self.price_books.parsed(max(self.price_books._parsed))",
            ),
        ),
        ("tests/acceptance/test_crash_doubts.py::test_a_price_that_fell_during_the_run_is_not_the_jobs",),
    ),
    Mutant(
        "M10",
        "a lease ends by the worker's clock",
        (
            Patch(
                OPERATIONS,
                "        lease_until = page.now + timedelta(seconds=self.lease_seconds)\n",
                "        lease_until = datetime.now(page.now.tzinfo) + timedelta(seconds=self.lease_seconds)\n",
            ),
            Patch(
                "worker/store/leases.py",
                "    SET lease_until = fermata_now() + make_interval(secs => :seconds)\n",
                "    SET lease_until = clock_timestamp() + make_interval(secs => :seconds)\n",
            ),
        ),
        ("tests/acceptance/test_crash_doubts.py::test_a_worker_whose_clock_is_wrong_keeps_its_lease",),
    ),
    Mutant(
        "M11",
        "an account may have a cycle twice",
        (
            Patch(
                "worker/store/migrations/versions/0001_heart.sql",
                "    CONSTRAINT cycles_pkey PRIMARY KEY (account_id, starts_at),\n",
                "",
            ),
        ),
        ("tests/integration/test_schema.py::test_what_happens_once_cannot_happen_twice",),
    ),
    Mutant(
        "M12",
        "a key is taken for its first body, whatever is asked under it",
        (
            Patch(
                "worker/store/submits.py",
                "    if bytes(row.body_hash) != submission.body_hash:\n",
                "    if False:\n",
            ),
        ),
        ("tests/integration/test_submits.py::test_a_key_with_another_body_is_a_conflict",),
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a mutant."""

    mutant: str
    what: str
    killed: bool
    seconds: float
    by: str  # the test that failed; of one that lives, why


def hunt(mutants: Sequence[Mutant] = MUTANTS) -> list[Found]:
    """Try each mutant, after its killers have been seen to pass without it."""
    with scratch_folder() as folder:
        tree = folder / "tree"
        _copy(tree)
        killers = list(dict.fromkeys(killer for mutant in mutants for killer in mutant.killers))
        code, said, seconds = _tested(tree, killers, SECONDS_MAX * 4)
        if code != 0:
            raise Stale(f"the killers do not pass on the tree as it is ({code}):\n{said[-3000:]}")
        return [Found("none", "the tree as it is", False, seconds, "")] + [_tried(mutant, tree) for mutant in mutants]


def _tried(mutant: Mutant, tree: Path) -> Found:
    shutil.rmtree(tree)
    _copy(tree)
    for patch in mutant.patches:
        (tree / patch.file).write_text(patch.put_on(tree))
    code, said, seconds = _tested(tree, mutant.killers, SECONDS_MAX)
    found = Found(mutant.name, mutant.what, code == 1, round(seconds, 1), _why(code, said))
    tell(f"{mutant.name}: {'killed' if found.killed else 'ALIVE'} in {seconds:.1f} s, {found.by}")
    return found


def _why(code: int, said: str) -> str:
    """Which test failed, or why none did: what never ended, or could not begin, proves nothing."""
    if code == 0:
        return "every test passes"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if code == 1 and failed is not None:
        return failed.group(1)
    return f"not tried, pytest ended with {code}: {(said.strip().splitlines() or ['no word'])[-1][:200]}"


def _copy(tree: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name)
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy2(source, tree / name)


def _tested(tree: Path, tests: Sequence[str], seconds: float) -> tuple[int, str, float]:
    """pytest's exit code in that tree (1: a test failed; 124: it did not end), what it said, how long it took."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"not ended within {seconds:g} seconds, which proves nothing", monotonic() - started
    return done.returncode, done.stdout + done.stderr, monotonic() - started
