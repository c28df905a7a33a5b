"""What a run came to: one table for people, the same figures in benchmarks/chaos.json and benchmarks/CHAOS.md."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.control import Losses
from tests.chaos.mutants import Found
from tests.chaos.performance import Outcome

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "chaos.json"
PAGE = ROOT / "benchmarks" / "CHAOS.md"


def as_text(outcome: Outcome, again: str) -> str:
    """The table; where a promise was broken, the first breach and what had happened of late. `again`: the command."""
    figures = outcome.figures
    lines = [f"{name:<46} {value}" for name, value in _rows(figures)]
    if outcome.failures:
        lines += ["", f"BROKEN: {outcome.failures[0]}"]
        lines += [f"        {failure[:600]}" for failure in outcome.failures[1:10]]
        lines += ["", "of late:", *outcome.latest]
    return "\n".join([*lines, "", f"{verdict(outcome)}; again with: {again}"])


def verdict(outcome: Outcome) -> str:
    """In a word."""
    return "a promise was BROKEN" if outcome.failures else "every promise held"


def command(profile: str, seed: int, minutes: float | None = None) -> str:
    """What plays it again."""
    at_random = f" MINUTES={minutes:g}" if minutes is not None else ""
    return f"make chaos PROFILE={profile} SEED={seed}{at_random}"


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
    """Where, and on what tree, it is run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load_before": round(os.getloadavg()[0], 1),
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


#: What both are asked, by the name it has in our figures and in the control's.
BESIDE = (
    ("jobs that were asked for", "jobs", "jobs"),
    ("jobs lost without a word", "lost", "lost_jobs"),
    ("jobs charged twice", "charged_twice", "charged_twice"),
    ("jobs charged without a result", "charged_without_result", "charged_without_result"),
    ("results without a charge", "results_without_charge", "results_without_charge"),
    ("credits that nothing explains", "credits_unaccounted", "credits_gone"),
)


def beside(figures: Mapping[str, Any], losses: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Ours and the control under the same seed, row by row."""
    rows: list[tuple[str, Any, Any]] = [(label, figures[ours], losses[control]) for label, ours, control in BESIDE]
    return [*rows, ("faults", sum(figures["faults"].values()), sum(losses["faults"].values()))]


def beside_as_text(outcome: Outcome, losses: Losses) -> str:
    """The same for people."""
    rows = [("", "ours", "control"), *beside(outcome.figures, asdict(losses))]
    return "\n".join(f"{label:<46} {ours!s:>8} {control!s:>8}" for label, ours, control in rows)


def lost(losses: Losses) -> str:
    """What the control lost, alone."""
    return "\n".join(f"{name:<46} {value}" for name, value in asdict(losses).items())


def written(name: str, figures: dict[str, Any]) -> None:
    """Put these figures in place of the last ones of that name, and the page anew."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    kept[name] = figures
    FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(kept))


def page(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """benchmarks/CHAOS.md, from the figures alone."""
    sections = [_section(name, run) for name, run in sorted(kept.items()) if "ours" in run]
    if "mutants" in kept:
        sections.append(_hunt_section(kept["mutants"]))
    return (
        "\n".join(
            [
                "# Chaos, as it was last run",
                "",
                "Written by `make chaos WRITE=1`; docs/PROOF.md says what is done.",
                *sections,
            ]
        )
        + "\n"
    )


def _where(run: Mapping[str, Any]) -> str:
    return f"at {run['commit']}, Python {run['python']}, {run['machine']}, load {run['load_before']:g} before"


def _hunt_section(run: Mapping[str, Any]) -> str:
    """The table of the mutants as one run found them. The first is the tree as it is."""
    unharmed, *mutants = run["mutants"]
    killed = sum(one["killed"] for one in mutants)
    lines = [
        "\n## mutants",
        "",
        f"`make chaos PROFILE=mutants` {_where(run)}: **killed {killed} of {len(mutants)}**; on the tree as it is all "
        f"of the killers pass, in {unharmed['seconds']:.0f} s.",
        "",
        "| | the bug | | after | by |",
        "|---|---|---|---|---|",
    ]
    for one in mutants:
        fate = "killed" if one["killed"] else "ALIVE"
        by = f"`{one['by'].rpartition('/')[2]}`" if one["killed"] else one["by"]
        lines.append(f"| {one['mutant']} | {one['what']} | {fate} | {one['seconds']:.0f} s | {by} |")
    return "\n".join(lines)


def _section(name: str, run: Mapping[str, Any]) -> str:
    ours = run["ours"]
    lines = [
        f"\n## {name}",
        "",
        f"`{run['command']}` {_where(run)}: **{run['verdict']}**.",
        "",
        f"{ours['seconds']:g} s, of which draining {ours['drained_seconds']:g}; calls "
        + ", ".join(f"{told} {count}" for told, count in ours["calls"].items())
        + f"; {ours['looks_for_violations']} looks for violations; {ours['balances_explained']} balances, each the sum "
        f"of a beginning of its account's journal; {ours['fenced']} workers found their job another's.",
        "",
        "Of the plan not done: "
        + ("; ".join(f"{what} ({count} ×)" for what, count in ours["not_done"].items()) or "nothing")
        + ".",
    ]
    if "control" in run:
        lines += ["", "| | ours | control |", "|---|---|---|"]
        lines += [f"| {label} | {left} | {right} |" for label, left, right in beside(ours, run["control"])]
    lines += ["", "| recovery | p50 | p99 | of |", "|---|---|---|---|"]
    for what, seconds in ours["recoveries"].items():
        lines.append(f"| {what} | {quantile(seconds, 0.5):.2f} s | {quantile(seconds, 0.99):.2f} s | {len(seconds)} |")
    lines += ["", "| fault | ours | control |", "|---|---|---|"]
    lines += [f"| {fault} | {count} | |" for fault, count in ours["faults"].items()]
    lines += [f"| {fault} | | {count} |" for fault, count in run.get("control", {}).get("faults", {}).items()]
    return "\n".join(lines)
