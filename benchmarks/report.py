"""Figures: kept in results.json with where they come from, shown as a table, written out as RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS
from worker.compiled import build_here

#: Columns of the table where the terminal doesn't say: every row fits one line.
WIDTH = 170
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER / "RESULTS.md"
#: Of RESULTS.md.
COLUMNS = (
    *("figure", "value", "unit", "reference", "against", "ratio", "goal", "met"),
    *("command", "rounds", "load", "date", "commit"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `value` in `unit`, beside its `reference` (None: there is none) and the ratio of both.

    `against` names the reference; `batches` says how full transactions or hints were. What was promised of a figure
    stands in `goals.py`, by its name.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    against: str = ""
    batches: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """Where the figures of a suite come from."""

    suite: str
    rounds: int
    #: Seconds that the whole suite took.
    took_seconds: float
    date: str
    commit: str
    machine: str
    #: Processes that ran or waited to run when it began: a figure of a busy machine says so.
    load: float

    @classmethod
    def of(cls, suite: str, rounds: int, took_seconds: float, load: float) -> Run:
        """The run that just ended, here."""
        machine = (
            f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
            f"{build_here()}"
        )
        return cls(suite, rounds, round(took_seconds, 1), f"{datetime.now(UTC):%Y-%m-%d}", _commit(), machine, load)


def figure_of(
    name: str, unit: str, rounds: Sequence[tuple[float, float]], *, against: str, batches: str = ""
) -> Figure:
    """The figure of several rounds, each a value and its own reference: medians, the ratio that of the ratios."""
    values, references = zip(*rounds, strict=True)
    ratio = median(value / reference for value, reference in rounds)
    return Figure(name, median(values), unit, median(references), ratio, against, batches)


def middle(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Of each figure, as all rounds have it, that of the round in the middle: by its ratio, else by its value."""

    def rank(figure: Figure) -> float:
        return figure.value if figure.ratio is None else figure.ratio

    return [sorted(of_one, key=rank)[(len(of_one) - 1) // 2] for of_one in zip(*rounds, strict=True)]


def at_most(name: str, value: float, unit: str, limit: float, batches: str = "", against: str = "the limit") -> Figure:
    """A figure with an upper bound: the ratio is how often it fits in."""
    return Figure(name, value, unit, limit, limit / max(value, 1e-9), against, batches)


def at_least(name: str, value: float, unit: str, promised: float, batches: str = "") -> Figure:
    """A figure with a lower bound."""
    return Figure(name, value, unit, promised, value / promised, "promised", batches)


def verdict(name: str, ratio: float | None) -> str:
    """`met`, `missed`, or nothing where nothing was promised."""
    goal = GOALS.get(name)
    return "" if goal is None or ratio is None else "met" if ratio >= goal else "missed"


def missed(figures: Iterable[Figure]) -> bool:
    """Whether a goal is missed."""
    return any(verdict(figure.name, figure.ratio) == "missed" for figure in figures)


def keep(figures: Iterable[Figure], run: Run, path: Path = RESULTS) -> None:
    """Write them into results.json; figures of other names stay."""
    kept = kept_in(path)
    for figure in figures:
        kept[figure.name] = {
            "value": _short(figure.value),
            "unit": figure.unit,
            "reference": _short(figure.reference),
            "ratio": _short(figure.ratio),
            "against": figure.against,
            **asdict(run),
        }
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def kept_in(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """What results.json holds, by the figure's name."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def show(figures: Iterable[Figure], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for column, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("reference", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("ratio", "goal"):
        table.add_column(column, justify="right")
    table.add_column("against")
    table.add_column("batches")
    for figure in figures:
        table.add_row(
            figure.name,
            _shown(figure.value),
            figure.unit,
            _shown(figure.reference),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            _goal(figure.name),
            figure.against,
            figure.batches,
            style="red" if verdict(figure.name, figure.ratio) == "missed" else None,
        )
    console = Console()
    # Into a file or a pipe there is no width to keep to.
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def page(kept: Mapping[str, Mapping[str, Any]], suites: Iterable[str]) -> str:
    """RESULTS.md: every figure that was kept, and every promise that has none yet."""
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench` out of `results.json`; README.md says what each figure is. Value, reference and",
            "ratio are medians of so many rounds; the ratio is the median of each round's own. A load above 1 or a `+`",
            "behind the commit says that the machine was busy, or that the tree held more than that commit.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---:|---|---:|---|---:|---:|---|---|---:|---:|---|---|",
            *_rows(kept, list(suites)),
            "",
            "| command | takes | figures | machine |",
            "|---|---:|---:|---|",
            *_suites(kept, list(suites)),
            "",
        ]
    )


def _rows(kept: Mapping[str, Mapping[str, Any]], suites: Sequence[str]) -> Iterator[str]:
    def place(name: str) -> tuple[int, str]:
        suite = kept[name].get("suite")
        return (suites.index(suite) if suite in suites else len(suites), name)

    for name in sorted(kept, key=place):
        one = kept[name]
        ratio = one["ratio"]
        cells = (
            f"`{name}`",
            _shown(one["value"]),
            one["unit"],
            _shown(one["reference"]),
            one.get("against", ""),
            "" if ratio is None else f"{ratio:.2f}",
            _goal(name),
            _strong(verdict(name, ratio)),
            f"`ONLY={one['suite']}`" if "suite" in one else "",
            *(str(one.get(key, "")) for key in ("rounds", "load", "date", "commit")),
        )
        yield f"| {' | '.join(cells)} |"
    for name in sorted(GOALS.keys() - kept.keys()):
        yield f"| `{name}` | | | | | | {_goal(name)} | **not measured** {'| ' * 5}|"


def _suites(kept: Mapping[str, Mapping[str, Any]], suites: Sequence[str]) -> Iterator[str]:
    total = 0.0
    for suite in suites:
        of_suite = [one for one in kept.values() if one.get("suite") == suite]
        took = max((one.get("took_seconds", 0.0) for one in of_suite), default=0.0)
        total += took
        machines = "; ".join(sorted({one["machine"] for one in of_suite if "machine" in one}))
        yield f"| `make bench ONLY={suite}` | {_minutes(took)} | {len(of_suite)} | {machines} |"
    yield f"| `make bench` | {_minutes(total)} | {len(kept)} | |"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s" if seconds else "?"


def _strong(word: str) -> str:
    return f"**{word}**" if word == "missed" else word


def _goal(name: str) -> str:
    return f"≥ {GOALS[name]:g}" if name in GOALS else ""


def _commit() -> str:
    """The commit that was measured; a `+` behind it means that the tree had more than that."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(FOLDER), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # Figures that were just written are no change of what was measured.
    changed = git("status", "--porcelain", "--", ":/", ":!/benchmarks/results.json", ":!/benchmarks/RESULTS.md")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
