"""`make` on machines that lack something: one line that names it, and nothing half made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make_with(python3: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `make test` in a bare copy, on a machine whose `python3` is this shell script."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "bin").mkdir()
    program = folder / "bin" / "python3"
    program.write_text(f"#!/bin/sh\n{python3}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["make", "test"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("leaves_folder", ["mkdir -p .venv/bin; touch .venv/bin/python", "true"])
def test_without_python3_venv_one_line_names_the_package(tmp_path: Path, leaves_folder: str) -> None:
    """A bare python3 fails at `-m venv` and leaves the folder; we don't."""
    answer = make_with(f'if [ "$1" = -c ]; then exit 0; fi; {leaves_folder}; echo "No ensurepip" >&2; exit 1', tmp_path)
    said = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert (answer.returncode, len(said)) == (2, 1)
    assert "apt-get install python3-venv" in said[0]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("python3", ["exit 1", "exit 127"])
def test_an_old_python_is_refused_in_one_line(tmp_path: Path, python3: str) -> None:
    """The version that is needed is named, whatever is there instead."""
    answer = make_with(python3, tmp_path)
    said = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert (answer.returncode, len(said)) == (2, 1)
    assert "3.11" in said[0]


def test_the_procfile_and_up_run_the_same_processes() -> None:
    """One definition each for deployment and development, kept alike."""
    from worker.local.up import LINES

    procfile = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    assert procfile.pop("release") == "fermata migrate"
    assert procfile == {name: f"fermata {arguments}" for name, arguments in LINES}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-torch.txt"])
def test_constraints_hold_names_and_versions_only(file: str) -> None:
    """No address of any registry or folder is committed."""
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if "@" in line or "/" in line or "==" not in line] == []
