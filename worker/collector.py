"""Python's cyclic garbage collector, told what our long-running processes look like."""

from __future__ import annotations

import gc

#: Objects made and not yet freed until the young ones are looked through. A batch of 500 operations makes some 20,000,
#: and all of them go by their reference counts when it ends: looked for cycles meanwhile they cost a third of a
#: batch's Python (claim and settle 283 µs a job with the defaults, 184 µs so).
YOUNG_OBJECTS = 50_000
#: Young collections until a middle one, and middle ones until a full one.
YOUNG_TIMES, MIDDLE_TIMES = 20, 100


def calm() -> None:
    """Leave what is loaded by now out of every collection, and collect more seldom. Call it once, after imports."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_TIMES, MIDDLE_TIMES)
