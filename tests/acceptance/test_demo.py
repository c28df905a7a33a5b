"""`fermata demo` out of the built wheel: what is shipped is whole, and every figure of it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def played(folder: Path) -> dict[str, Any]:
    """The demo's JSON, played by the wheel's own modules in a folder of its own."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], check=True, timeout=120
    )
    (wheel,) = folder.glob("fermata_worker-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "installed"), str(wheel)], check=True)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("fermata")), "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")},
            "PYTHONPATH": str(folder / "installed"),
            "FERMATA_DATA_DIR": str(folder / "data"),
        },
    )
    assert 0 == done.returncode, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_demo_comes_to_what_it_must(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Played once: a wheel is built for it."""
    report = played(tmp_path)
    for claim in (each_job_comes_to_what_it_must, the_files_stay_where_it_says, the_books_are_exact):
        with subtests.test(claim.__name__):
            claim(report)


def each_job_comes_to_what_it_must(report: dict[str, Any]) -> None:
    """Held and charged by the prices we ship; the song ends on its last whole bar and costs less than was held."""
    figures = ("kind", "state", "quoted", "reserved", "charged", "refunded")
    assert [
        ("vocal_conversion", "failed", 5, 5, 0, 5),
        ("generation", "succeeded", 9, 9, 8, 1),
        ("vocal_conversion", "succeeded", 5, 5, 5, 0),
        ("generation", "refused", 256, 0, 0, 0),
        ("stem_split", "succeeded", 20, 20, 20, 0),
    ] == [tuple(job[name] for name in figures) for job in report["jobs"]]
    assert all({"draws", "seconds", "artifacts"} <= job.keys() for job in report["jobs"])
    assert [5, 9, 5, 0, 20] == [sum(draw["amount"] for draw in job["draws"]) for job in report["jobs"]]


def the_files_stay_where_it_says(report: dict[str, Any]) -> None:
    """One song, one voice, four stems; each is a WAV file with sound in it."""
    paths = [Path(path) for job in report["jobs"] for path in job["artifacts"]]
    assert 6 == len(paths)
    assert all(path.read_bytes()[:4] == b"RIFF" and path.stat().st_size > 100_000 for path in paths)


def the_books_are_exact(report: dict[str, Any]) -> None:
    """The balance fell by what was charged, from the subscription; the top-up is untouched; the audit agrees."""
    before, after = report["balance_before"], report["balance_after"]
    assert (150, 117) == (before["subscription"]["available"], after["subscription"]["available"])
    assert (100, 100) == (before["topup"]["available"], after["topup"]["available"])
    assert {"ok": True, "violations": []} == report["audit"]
