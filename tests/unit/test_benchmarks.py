"""What is kept of benchmarks: one page out of results.json, with each promise on it, met, missed or not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import SUITES, main
from benchmarks.goals import GOALS
from benchmarks.report import PAGE, Figure, Run, at_least, at_most, keep, kept_in, middle, missed, page, verdict

RUN = Run("ledger", 5, 300.0, "2026-11-26", "abc1234", "2 cores", 0.4)


def test_the_page_says_what_results_say() -> None:
    """A figure changed by hand in either of them is found."""
    assert page(kept_in(), SUITES) == PAGE.read_text()


def test_parts_run_one_by_one_make_one_table(tmp_path: Path) -> None:
    """Figures of other suites stay as they were, with the commit that they are of."""
    results = tmp_path / "results.json"
    keep([Figure("pgbench", 5_000, "transactions/s")], RUN, results)
    later = Run("path", 5, 200.0, "2026-11-27", "def5678", "2 cores", 0.1)
    keep([at_most("pickup_ms", 25.0, "ms", 20.0)], later, results)
    rows = {line.split("|")[1].strip(): line for line in page(kept_in(results), SUITES).splitlines() if "|" in line}
    assert "abc1234" in rows["`pgbench`"]
    assert "| 25 | ms | 20 | the limit | 0.80 | ≥ 1 | **missed** | `ONLY=path` | 5 | 0.1 |" in rows["`pickup_ms`"]
    assert "**not measured**" in rows["`ledger_pairs`"]
    assert "8 min 20 s" in rows["`make bench`"]


@pytest.mark.parametrize(("ratio", "said"), [(2.0, "met"), (1.999, "missed"), (None, "")])
def test_a_goal_is_met_or_missed(ratio: float | None, said: str) -> None:
    """At its own bound it is met; without a ratio nothing is said."""
    assert said == verdict("ledger_pairs", ratio)


def test_nothing_is_said_where_nothing_was_promised() -> None:
    """And what is missed is told by the exit code."""
    assert verdict("pgbench", 0.1) == ""
    assert not missed([Figure("pgbench", 1, "x", 10, 0.1), at_least("api_submits", 900, "jobs/s", 800)])
    assert missed([at_least("api_submits", 700, "jobs/s", 800)])


def test_the_round_in_the_middle_is_shown_whole() -> None:
    """By ratio where there is one: value, reference and what it is against stay those of one round."""
    ratios = [Figure("look", value, "ms", 10.0, 10 / value, f"{value} ms") for value in (8.0, 20.0, 9.0, 1.0, 7.0)]
    values = [Figure("made", value, "s") for value in (3.0, 1.0, 2.0, 9.0, 4.0)]
    assert [ratios[0], values[0]] == middle(list(zip(ratios, values, strict=True)))
    assert [ratios[1]] == middle([[ratios[1]]])


def test_every_goal_is_one_that_a_suite_measures() -> None:
    """A goal for a name that no suite gives would stand there as not measured for ever."""
    source = "\n".join(path.read_text() for path in PAGE.parent.glob("*.py") if path.name != "goals.py")
    parts = [name.removeprefix("engine_").rpartition("_")[0] if "engine_" in name else name for name in GOALS]
    assert [] == [part for part in parts if f'"{part}"' not in source]


@pytest.mark.parametrize("asked", ["ONLY=ledgers", "ledger,pth"])
def test_an_unknown_suite_is_refused(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured, and with the names that there are."""
    assert main([asked]) == 2
    assert "there are: ledger, peers" in capsys.readouterr().err
