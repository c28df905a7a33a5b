"""`python -m tests.chaos --profile smoke|full|soak|mutants|control [--seed N] [--minutes M]`: see docs/PROOF.md."""

from __future__ import annotations

import argparse
import logging
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import structlog

from tests.chaos.adversary import PROFILES, plan, steps_of
from tests.chaos.control import control
from tests.chaos.mutants import MUTANTS, hunt
from tests.chaos.performance import perform
from tests.chaos.report import as_text, beside_as_text, command, hunted, lost, machine, verdict, written
from tests.chaos.theatre import tell

#: What the control is asked for one after the other while its part of the plan is played.
CONTROL_JOBS = 300


def main() -> int:
    """Exit code 0: every promise held; 1: one did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--profile", choices=[*PROFILES, "mutants", "control"], default="smoke")
    parser.add_argument("--seed", type=int, default=None, help="a number; by default one that is drawn and told")
    parser.add_argument("--until", type=int, default=None, help="stop after so many acts of the plan")
    parser.add_argument("--minutes", type=float, default=None, help="of faults at random; by default the profile's")
    parser.add_argument("--only", default="", help="of the plan only these acts: names of faults or steps, by commas")
    parser.add_argument("--logs", type=Path, default=None, help="a folder for what processes and clients said")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    here = machine()
    if asked.profile == "mutants":
        found = hunt(tuple(mutant for mutant in MUTANTS if not asked.only or mutant.name in asked.only.split(",")))
        tell(hunted(found))
        if asked.write:
            written("mutants", {**here, "mutants": [asdict(one) for one in found]})
        return 0 if all(one.killed for one in found[1:]) else 1
    seed = asked.seed if asked.seed is not None else random.randrange(1_000_000)
    tell(f"chaos: profile {asked.profile}, seed {seed}")
    if asked.profile == "control":
        losses = control(seed, plan(seed, PROFILES["smoke"], ()), CONTROL_JOBS)
        tell(lost(losses))
        return 0
    profile = PROFILES[asked.profile]
    if asked.minutes is not None:
        profile = replace(profile, random_seconds=60 * asked.minutes)
    again = command(profile.name, seed, asked.minutes)
    only = set(filter(None, asked.only.split(",")))
    acts = [act for act in plan(seed, profile, steps_of(profile), asked.until) if not only or act.what in only]
    outcome = perform(seed, profile, acts, asked.logs)
    tell(as_text(outcome, again))
    run = {**here, "seed": seed, "profile": profile.name, "command": again}
    run |= {"verdict": verdict(outcome), "ours": outcome.figures}
    if not (only or asked.until or outcome.failures):
        tell("\nsmoke's faults of this seed against metering in middleware hooks (tests/chaos/control.py):")
        losses = control(seed, plan(seed, PROFILES["smoke"], ()), CONTROL_JOBS)
        tell(beside_as_text(outcome, losses))
        run["control"] = asdict(losses)
    if asked.write:
        of_minutes = f" of {asked.minutes:g} minutes" if asked.minutes is not None else ""
        written(f"{profile.name}{of_minutes}, seed {seed}", run)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
