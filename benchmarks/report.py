"""Figures: kept in results.json, shown as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

#: Columns of the table where the terminal doesn't say: every row fits one line.
WIDTH = 170
RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `value` in `unit`, beside its `reference` (None: there is none) and the ratio of both.

    `goal` is the least ratio that was promised; `batches` says how full transactions or hints were.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    against: str = ""
    goal: float | None = None
    batches: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where none was made."""
        return None if self.goal is None or self.ratio is None else self.ratio >= self.goal


def figure_of(name: str, unit: str, rounds: Sequence[tuple[float, float]], **more: str | float | None) -> Figure:
    """The figure of several rounds, each a value and its own reference: medians, the ratio that of the ratios."""
    values, references = zip(*rounds, strict=True)
    ratio = median(value / reference for value, reference in rounds)
    return Figure(name, median(values), unit, median(references), ratio, **more)  # type: ignore[arg-type]


def keep(figures: Iterable[Figure], path: Path = RESULTS) -> None:
    """Write them into results.json; figures of other names stay."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    for figure in figures:
        kept[figure.name] = {
            "value": _short(figure.value),
            "unit": figure.unit,
            "reference": _short(figure.reference),
            "ratio": _short(figure.ratio),
        }
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


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
        style = "red" if figure.met is False else None
        table.add_row(
            figure.name,
            _shown(figure.value),
            figure.unit,
            _shown(figure.reference),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            "" if figure.goal is None else f"≥ {figure.goal:g}",
            figure.against,
            figure.batches,
            style=style,
        )
    console = Console()
    # Into a file or a pipe there is no width to keep to.
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
