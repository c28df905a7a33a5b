"""The judge of the chaos runs: shown a wrong history, it complains; the plan of a run is its seed's."""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.chaos.adversary import PROFILES, plan, steps_of
from tests.chaos.clients import Client, Door, Wishes
from tests.chaos.faults import FAULTS, LONG_FAULTS
from tests.chaos.journal import Books, Call, JobInBooks, Journal, Told, disagreements
from tests.chaos.mutants import MUTANTS, ROOT, Found, Mutant, Patch, Stale, _why
from tests.chaos.performance import NONE, died_at_a_step, not_none
from tests.chaos.prefixes import EFFECTS, Entry, Ledger, LotFacts, unexplained
from tests.chaos.report import page, quantile
from worker.credits.lots import Lot, LotSource, Move, moved
from worker.failpoints import POINTS

ASKED = {"kind": "null", "params": {"outputs": 2}}
ID = {"id": "j1", "quoted": 20}


def job(**other: Any) -> JobInBooks:
    """The job that `ASKED` under the key k makes."""
    facts = {"job_id": "j1", "account": "ada", "key": "k", "kind": "null", "params": {"outputs": 2, "more": None}}
    return JobInBooks(**{**facts, "state": "succeeded", "quoted": 20, "charged": 20, **other})


def submit(told: Told = Told.OK, answer: Mapping[str, Any] = ID, asked: Mapping[str, Any] = ASKED) -> Call:
    return Call(1, "submit", "ada", "k", asked, told, answer)


def topup(told: Told = Told.OK, credits: int = 40) -> Call:  # noqa: A002
    return Call(1, "topup", "ada", "p1", {"credits": credits}, told)


def told_of(what: str, state: str, charged: int) -> Call:
    return Call(1, what, "ada", "j1", {}, Told.OK, {"state": state, "charged": charged})


BOUGHT = {("ada", "p1"): (40, 1)}
OTHER = {"kind": "null", "params": {"outputs": 7}}
CONFLICT = {"code": "idempotency_conflict"}

RIGHT: Mapping[str, tuple[list[Call], Books]] = {
    "acknowledged and there": ([submit()], Books([job()], {})),
    "answered twice alike": ([submit(), submit()], Books([job()], {})),
    "unknown and not there": ([submit(Told.UNKNOWN)], Books([], {})),
    "unknown and there": ([submit(Told.UNKNOWN)], Books([job()], {})),
    "refused and not there": ([submit(Told.REFUSED), submit(Told.AWAY)], Books([], {})),
    "away, then taken": ([submit(Told.AWAY), submit()], Books([job()], {})),
    "refused for another body": ([submit(), submit(Told.REFUSED, CONFLICT, OTHER)], Books([job()], {})),
    "credited once": ([topup(), topup(Told.UNKNOWN)], Books([], BOUGHT)),
    "seen running, then ended": ([submit(), told_of("look", "running", 0)], Books([job()], {})),
    "seen as it stayed": ([submit(), told_of("look", "succeeded", 20)], Books([job()], {})),
}

WRONG: Mapping[str, tuple[list[Call], Books, str]] = {
    "lost": ([submit()], Books([], {}), "acknowledged, and lost"),
    "of nobody": ([], Books([job()], {}), "nobody asked for"),
    "twice": ([submit()], Books([job(), job(job_id="j2")], {}), "two jobs of one key"),
    "another id": ([submit(answer={**ID, "id": "j2"})], Books([job()], {}), "answered otherwise"),
    "another quote": ([submit(answer={**ID, "quoted": 30})], Books([job()], {}), "answered otherwise"),
    "another body": ([submit(), submit(asked=OTHER)], Books([job()], {}), "another body was taken"),
    "another kind": ([submit(asked={**ASKED, "kind": "timed"})], Books([job()], {}), "another body was taken"),
    "refused, but done": ([submit(Told.REFUSED)], Books([job()], {}), "nothing was done, and there is"),
    "away, but done": ([submit(Told.AWAY)], Books([job()], {}), "nothing was done, and there is"),
    "a replay refused": ([submit(), submit(Told.REFUSED, CONFLICT)], Books([job()], {}), "taken for a conflict"),
    "never credited": ([topup()], Books([], {}), "by word only"),
    "credited otherwise": ([topup(credits=70)], Books([], BOUGHT), "by word only"),
    "credited twice": ([topup()], Books([], {("ada", "p1"): (40, 2)}), "came as 2 lots"),
    "credited for nobody": ([], Books([], BOUGHT), "nobody made"),
    "credited though away": ([topup(Told.AWAY)], Books([], BOUGHT), "nothing was done, and it was credited"),
    "reopened": ([submit(), told_of("cancel", "cancelled", 0)], Books([job()], {}), "ended otherwise since"),
    "charged since": ([submit(), told_of("look", "succeeded", 10)], Books([job()], {}), "charged otherwise since"),
    "of no job": ([told_of("look", "succeeded", 20)], Books([], {}), "not there"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_agreed_with(name: str) -> None:
    """Every answer has its effect once; what was not answered may have one or none."""
    assert [] == list(disagreements(*RIGHT[name]))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_complained_of(name: str) -> None:
    """Each says what is wrong."""
    calls, books, complaint = WRONG[name]
    assert any(complaint in found for found in disagreements(calls, books))


#: 100 given at 10, a cycle's 50 from 20 to 60, a job of 30 reserved at 30 and paid at 40, 20 of each lot.
LEDGER = Ledger(
    [
        Entry(10, 1, "grant", 100),
        Entry(20, 2, "grant", 50),
        Entry(30, 2, "reserve", 20),
        Entry(30, 1, "reserve", 10),
        Entry(40, 2, "commit", 20),
        Entry(40, 1, "refund", 10),
        Entry(70, 2, "expire", 30),
    ],
    {1: LotFacts("grant", None), 2: LotFacts("subscription", 60.0)},
)


def read(asked_at: float, told_at: float, grant: int, subscription: int, held: tuple[int, int] = (0, 0)) -> Call:
    """A balance as a client was told it, between these times."""
    answer = {"grant.available": grant, "subscription.available": subscription}
    answer |= {"grant.held": held[0], "subscription.held": held[1], "topup.available": 0, "topup.held": 0}
    return Call(1, "balance", "ada", "", {}, Told.OK, answer, asked_at, told_at)


RIGHT_READS: Mapping[str, list[Call]] = {
    "before all": [read(1, 2, 0, 0)],
    "after each": [read(t + 1, t + 2, *seen) for t, seen in ((10, (100, 0)), (20, (100, 50)), (40, (100, 30)))],
    "while a job runs": [read(31, 32, 90, 30, (10, 20))],
    "on the way": [read(25, 45, 100, 50), read(25, 45, 90, 30, (10, 20)), read(25, 45, 100, 30)],
    "expired, not swept yet": [read(61, 62, 100, 0)],
    "expired and swept": [read(75, 76, 100, 0)],
    "ended behind its back a moment ago": [read(61, 62, 100, 30)],
    "not answered": [replace(read(31, 32, 7, 7), told=Told.UNKNOWN)],
}
WRONG_READS: Mapping[str, list[Call]] = {
    "a sum that never was": [read(31, 32, 99, 30, (10, 20))],
    "half a transaction": [read(31, 32, 100, 30, (0, 20))],
    "held credits left out": [read(31, 32, 90, 30)],
    "the future": [read(21, 22, 90, 30, (10, 20))],
    "spent credits back": [read(41, 42, 100, 30), read(43, 44, 100, 50)],
    "long expired": [read(68, 69, 100, 30)],
}


@pytest.mark.parametrize("name", RIGHT_READS)
def test_a_balance_that_some_beginning_of_the_journal_comes_to_is_agreed_with(name: str) -> None:
    """Whatever of what was under way it shows."""
    assert [] == list(unexplained(RIGHT_READS[name], {"ada": LEDGER}))


@pytest.mark.parametrize("name", WRONG_READS)
def test_a_balance_that_no_beginning_comes_to_is_complained_of(name: str) -> None:
    """The last of these reads is told, and only that one."""
    (complaint,) = unexplained(WRONG_READS[name], {"ada": LEDGER})
    assert str(WRONG_READS[name][-1]) in complaint


@pytest.mark.parametrize("move", Move)
def test_the_judge_folds_as_the_books_do(move: Move) -> None:
    """Its own table of moves says what the product's says."""
    lot = Lot(1, LotSource.GRANT, granted=9, available=5, expires_at=None, held=4)
    after = moved(lot, move, 3)
    assert EFFECTS[move.value] == ((after.available - 5) / 3, (after.held - 4) / 3)


@dataclass(slots=True)
class InDoubt:
    """A door that answers so many times with a doubt, then as it is told to."""

    doubts: int
    then: tuple[Told, Mapping[str, Any]]
    asked: int = 0

    async def submit(self, account: str, key: str, asked: Mapping[str, Any]) -> tuple[Told, Mapping[str, Any]]:
        self.asked += 1
        return (Told.UNKNOWN, {}) if self.asked <= self.doubts else self.then


@pytest.mark.parametrize(
    ("then", "complaints"),
    [
        ((Told.OK, {**ID, "replayed": True}), 0),
        ((Told.OK, {**ID, "replayed": False}), 1),
        ((Told.OK, {"id": "j2", "quoted": 20, "replayed": True}), 1),
        ((Told.REFUSED, CONFLICT), 1),
    ],
)
async def test_who_asks_again_wants_an_answer_and_the_same(
    then: tuple[Told, Mapping[str, Any]], complaints: int, tmp_path: Path
) -> None:
    """A doubt is none: it is asked once more. Any other answer than the first one is complained of."""
    journal = Journal(tmp_path / "journal", lambda: (0.0, 0.0))
    journal.tell(journal.ask("submit", "ada", "k", ASKED), Told.OK, {**ID, "replayed": False})
    door = InDoubt(1, then)
    client = Client("one", cast(Door, door), journal, Wishes(random.Random(1), (), "ada", ""), 0.0)
    assert complaints == len(await client.ask_all_again())
    assert 2 == door.asked


def test_a_plan_is_its_seeds() -> None:
    """The same seed gives the same acts; each step and each fault comes once before anything is drawn."""
    steps = {"claim.locked", "settle.locked"}
    acts = plan(7, PROFILES["full"], steps)
    assert acts == plan(7, PROFILES["full"], steps)
    assert acts != plan(8, PROFILES["full"], steps)
    assert acts[:5] == plan(7, PROFILES["full"], steps, until=5)
    assert steps == {act.what for act in acts if act.kind == "crash"}
    alone = [act.what for act in acts if act.kind == "alone"]
    assert sorted([*FAULTS, *LONG_FAULTS]) == sorted(alone)


def test_the_control_meets_the_faults_that_we_meet() -> None:
    """It has none of our steps; what else is done, in which order and how far apart, is the same."""
    ours = [
        (act.kind, act.what, act.gap_seconds) for act in plan(7, PROFILES["smoke"], {"claim.before", "settle.after"})
    ]
    control = [(act.kind, act.what, act.gap_seconds) for act in plan(7, PROFILES["smoke"], ())]
    assert control == ours[2:]


@pytest.mark.parametrize(
    ("alive", "killed", "so"), [(True, {7}, False), (False, {7}, False), (False, {8}, True), (True, set(), False)]
)
def test_who_was_killed_did_not_die_at_a_step(alive: bool, killed: set[int], so: bool) -> None:
    """Else a run counts crashes at steps that nobody came by."""
    assert so == died_at_a_step(alive, 7, killed)


@pytest.mark.parametrize("name", NONE)
def test_a_run_is_broken_by_each_figure_that_must_be_none(name: str) -> None:
    """A system that gives every song away breaks no rule over single rows of the books."""
    figures = dict.fromkeys(NONE, 0)
    assert [] == not_none(figures)
    assert [f"3 {NONE[name]}"] == not_none({**figures, name: 3})


@pytest.mark.parametrize("name", PROFILES)
def test_every_step_of_a_profile_is_one_that_the_code_names(name: str) -> None:
    """A step that was renamed is no longer died at: it fails here."""
    assert set(steps_of(PROFILES[name])) <= POINTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_still_fits_the_code(mutant: Mutant) -> None:
    """Its places are there, once each, what it makes of them is Python, and the tests that must find it are there."""
    for patch in mutant.patches:
        text = patch.put_on(ROOT)
        if patch.file.endswith(".py"):
            ast.parse(text)
    for killer in mutant.killers:
        file, _, name = killer.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()


def test_a_stale_mutant_is_told() -> None:
    """A place that is gone is no mutant that lives."""
    with pytest.raises(Stale):
        Patch("worker/runner.py", "this stands nowhere", "").put_on(ROOT)


def test_quantiles_are_values_that_were_measured() -> None:
    """The smallest one that so large a share does not exceed."""
    assert (1.0, 2.0, 3.0) == tuple(quantile([3.0, 1.0, 2.0], share) for share in (0.1, 0.5, 0.99))


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (0, "3 passed", "every test passes"),
        (1, "FAILED tests/a.py::test_b - assert 1 == 2\n1 failed", "tests/a.py::test_b"),
        (124, "not ended within 240 seconds, which proves nothing", "not tried, pytest ended with 124: not ended"),
        (2, "", "not tried, pytest ended with 2: no word"),
    ],
)
def test_only_a_test_that_fails_kills(code: int, said: str, why: str) -> None:
    """What could not begin or never ended is said to be that, and the hunt goes on."""
    assert _why(code, said).startswith(why)


def test_the_page_puts_ours_and_the_control_beside_each_other() -> None:
    """With what was done to each, how to play it again, and where it was played."""
    ours: dict[str, Any] = {
        "seconds": 100.0,
        "drained_seconds": 5.0,
        "calls": {"ok": 9},
        "looks_for_violations": 3,
        "fenced": 1,
    }
    ours |= {"jobs": 614, "lost": 0, "charged_twice": 0, "charged_without_result": 0, "results_without_charge": 0}
    ours |= {"credits_unaccounted": 0, "balances_explained": 41, "faults": {"FLUSHALL": 2, "kill -9": 5}}
    ours |= {"not_done": {"a worker with a wrong clock, because no library": 3}}
    ours |= {"recoveries": {"FLUSHALL → first hint": [0.1, 0.2, 0.9]}}
    control: dict[str, Any] = {
        "jobs": 400,
        "lost_jobs": 3,
        "charged_twice": 6,
        "charged_without_result": 0,
        "credits_gone": 70,
    }
    control |= {"results_without_charge": 1, "faults": {"flush": 4}}
    run: dict[str, Any] = {
        "command": "make chaos PROFILE=smoke SEED=1",
        "verdict": "every promise held",
        "commit": "abc",
        "python": "3",
    }
    run = {**run, "machine": "two cores", "load_before": 0.5, "ours": ours, "control": control}
    found = [
        Found("none", "the tree as it is", False, 33.0, "every test passes"),
        Found("M1", "no fence", True, 20.4, "tests/integration/test_books.py::test_a"),
        Found("M2", "no lock", False, 240.0, "not tried, pytest ended with 124: never"),
    ]
    mutants = {**{name: run[name] for name in ("commit", "python", "machine", "load_before")}}
    mutants["mutants"] = [asdict(one) for one in found]
    text = page({"smoke, seed 1": run, "mutants": mutants})
    for line in (
        "`make chaos PROFILE=smoke SEED=1` at abc, Python 3, two cores, load 0.5 before: **every promise held**.",
        "| jobs lost without a word | 0 | 3 |",
        "| credits that nothing explains | 0 | 70 |",
        "| faults | 7 | 4 |",
        "| FLUSHALL → first hint | 0.20 s | 0.90 s | 3 |",
        "| kill -9 | 5 | |",
        "| flush | | 4 |",
        "Of the plan not done: a worker with a wrong clock, because no library (3 ×).",
        "`make chaos PROFILE=mutants` at abc, Python 3, two cores, load 0.5 before: **killed 1 of 2**; on the tree "
        "as it is all of the killers pass, in 33 s.",
        "| M1 | no fence | killed | 20 s | `test_books.py::test_a` |",
        "| M2 | no lock | ALIVE | 240 s | not tried, pytest ended with 124: never |",
    ):
        assert line in text.splitlines()
