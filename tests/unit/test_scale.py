"""The page on scale says what its own figures come to."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import scale

PAGE = (Path(__file__).parents[2] / "docs/SCALE.md").read_text()


def test_the_table_is_computed_from_the_figures_beside_it() -> None:
    """Line by line; after a new measurement `python -m benchmarks.scale` gives the new ones."""
    figures = {name: float(value.replace(",", "")) for name, value in re.findall(r"`(\w+)`: ([\d,.]+)", PAGE)}
    assert scale.table(figures) in PAGE


def test_twice_the_jobs_take_twice_as_much() -> None:
    """And a machine more as soon as one does not do."""
    figures = dict.fromkeys(("job_wal_bytes", "job_kept_bytes", "entry_kept_bytes", "hints_per_job"), 1000.0)
    rows = list(scale.rows({**figures, "ledger_pairs_output": 100.0, "null_job": 10.0}))
    assert ("1", "7") == (rows[0][2], rows[0][6])
    assert ("7", "70") == (rows[1][2], rows[1][6])
