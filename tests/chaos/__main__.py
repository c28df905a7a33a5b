"""`python -m tests.chaos --profile smoke|full|soak [--seed N] [--until K]`: see docs/PROOF.md."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.adversary import PROFILES, plan, steps_of
from tests.chaos.performance import perform
from tests.chaos.report import as_text, written
from tests.chaos.theatre import tell


def main() -> int:
    """Exit code 0: every promise held; 1: one did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="smoke")
    parser.add_argument("--seed", type=int, default=None, help="a number; by default one that is drawn and told")
    parser.add_argument("--until", type=int, default=None, help="stop after so many acts of the plan")
    parser.add_argument("--only", default="", help="of the plan only these acts: names of faults or steps, by commas")
    parser.add_argument("--logs", type=Path, default=None, help="a folder for what processes and clients said")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.randrange(1_000_000)
    tell(f"chaos: profile {asked.profile}, seed {seed}")
    profile = PROFILES[asked.profile]
    only = set(filter(None, asked.only.split(",")))
    acts = [act for act in plan(seed, profile, steps_of(profile), asked.until) if not only or act.what in only]
    outcome = perform(seed, profile, acts, asked.logs)
    tell(as_text(outcome))
    if asked.write:
        written(outcome)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
