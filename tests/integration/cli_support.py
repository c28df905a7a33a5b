"""Running `fermata` in tests: in this process where that is quick, as the real command where processes matter."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stage import Zygote
from tests.servers import Database
from tests.waiting import wait_until
from worker.cli import entry, opening
from worker.local.processes import is_alive
from worker.local.waiting import finished

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a verb ended, and what it said where."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out, self.err
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The lines on stderr that say what is wrong."""
        return "\n".join(line for line in self.err.splitlines() if line.startswith("fermata: "))


@dataclass(frozen=True, slots=True)
class Fermata:
    """The command, in this process: same code from the arguments on, without the second that a start takes."""

    capsys: pytest.CaptureFixture[str]
    database: Database

    def __call__(self, *arguments: str) -> Answer:
        self.capsys.readouterr()
        code = entry.run(arguments)
        return Answer(code, *self.capsys.readouterr())

    def ok(self, *arguments: str) -> Any:
        """The document of a verb that must succeed."""
        answer = self(*arguments, "--json")
        assert answer.code == 0, answer.err
        return answer.document

    def account(self, account: str = "ada", amount: int = 0) -> str:
        """An account, with that many granted credits."""
        self.ok("accounts", "create", account)
        if amount:
            self.ok("accounts", "grant", account, str(amount))
        return account

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        return finished(_rows(self.database))

    @contextmanager
    def nothing_written(self, artifacts: Path | None = None) -> Iterator[None]:
        """Afterwards every table has as many rows as before, and the artifact store as many files."""
        before = self.rows(), files_in(artifacts)
        yield
        assert before == (self.rows(), files_in(artifacts))


async def _rows(database: Database) -> dict[str, int]:
    async with database.connection(as_owner=True) as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        counts = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for (name,) in tables)
        return dict(sorted(await connection.fetch(counts)))


def files_in(folder: Path | None) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path) for path in folder.rglob("*") if path.is_file()) if folder else []


def in_process(
    environment: Mapping[str, str],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fermata:
    """The command over this environment."""
    for name, value in environment.items():
        if name.startswith("FERMATA_"):
            monkeypatch.setenv(name, value)
    # Logging outlives a test, and the captured stderr does not.
    monkeypatch.setattr(opening, "configure_logs", lambda settings: None)
    return Fermata(capsys, database)


def run_command(environment: Mapping[str, str], *arguments: str, **more: Any) -> Answer:
    """The real command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env=environment,
        cwd=more.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def forked(zygote: Zygote, environment: Mapping[str, str], folder: Path, *arguments: str) -> int:
    """The exit code of a verb in a process of its own that costs no start, negative for a signal."""
    pid = zygote.start("argv", arguments, environment, folder / "forked.log")
    wait_until(lambda: not is_alive(pid), f"{' '.join(arguments)} has ended", seconds=60)
    return zygote.reap(pid)


def silence(path: Path, seconds: float, rate: int = 8_000) -> Path:
    """A WAV file of that length."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * round(seconds * rate)))
    return path
