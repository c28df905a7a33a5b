"""What a run came to: one table for people, the same figures in benchmarks/chaos.json."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.control import Losses
from tests.chaos.mutants import Found
from tests.chaos.performance import Outcome

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "chaos.json"


def as_text(outcome: Outcome) -> str:
    """The table; where a promise was broken, the first breach and what had happened of late."""
    figures = outcome.figures
    lines = [f"{name:<46} {value}" for name, value in _rows(figures)]
    if outcome.failures:
        lines += ["", f"BROKEN: {outcome.failures[0]}"]
        lines += [f"        {failure[:600]}" for failure in outcome.failures[1:10]]
        lines += ["", "of late:", *outcome.latest]
    again = f"make chaos PROFILE={outcome.profile} SEED={outcome.seed}"
    verdict = "a promise was BROKEN" if outcome.failures else "every promise held"
    return "\n".join([*lines, "", f"{verdict}; again with: {again}"])


def _rows(figures: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if name == "recoveries":
            rows += [(recovery, spread(seconds)) for recovery, seconds in value.items()]
        elif isinstance(value, dict):
            rows.append((name, ", ".join(f"{key} {amount}" for key, amount in value.items()) or "none"))
        else:
            rows.append((name, value))
    return rows


def spread(seconds: Sequence[float]) -> str:
    """p50 and p99 of some seconds."""
    return f"p50 {quantile(seconds, 0.5):.2f} s, p99 {quantile(seconds, 0.99):.2f} s of {len(seconds)}"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def machine() -> dict[str, Any]:
    """Where, and on what tree, it was run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(__import__('os').sched_getaffinity(0))} cores",
    }


def hunted(found: Sequence[Found]) -> str:
    """Each mutant with who killed it."""
    lines = [
        f"{one.mutant:<5} {'killed' if one.killed else 'ALIVE':<7} {one.seconds:6.1f} s  {one.what}\n{'':<23}{one.by}"
        for one in found[1:]
    ]
    killed = [one.seconds for one in found[1:] if one.killed]
    median = f", median {quantile(killed, 0.5):.1f} s" if killed else ""
    return "\n".join(
        [*lines, f"killed {len(killed)}/{len(found) - 1}{median}; unharmed: {found[0].seconds:.0f} s, all pass"]
    )


def beside(losses: Losses) -> str:
    """What the control lost."""
    return "\n".join(f"{name:<46} {value}" for name, value in asdict(losses).items())


def written(name: str, figures: dict[str, Any]) -> None:
    """Put these figures in place of the last ones of that name."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    kept[name] = {**machine(), **figures}
    FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
