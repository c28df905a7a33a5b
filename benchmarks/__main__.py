"""`make bench [ONLY=ledger]`: measure, print a table, keep the figures in results.json."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from benchmarks.report import Figure, keep, show

ROUNDS = 3
#: These take minutes and hardly differ: one round.
ONCE = frozenset({"prices", "engines"})


def ledger(rounds: int) -> list[Figure]:
    """The books alone, against pgbench."""
    from benchmarks.ledger import measured
    from benchmarks.reference import Reference
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        assert servers.postgres is not None
        return measured(servers.database_url, Reference(servers.postgres), rounds)


def path(rounds: int) -> list[Figure]:
    """The path of a job in real processes, against plain dramatiq."""
    from benchmarks.path import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers, rounds)


def backlog(rounds: int) -> list[Figure]:
    """Dispatch with 500,000 jobs queued."""
    from benchmarks.backlog import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers, rounds)


def prices(rounds: int) -> list[Figure]:
    """A draft price book on a million past jobs: one round, for it is long."""
    from benchmarks.rehearsing import measured
    from benchmarks.server import measured_servers

    del rounds
    with measured_servers() as servers:
        return measured(servers)


def engines(rounds: int) -> list[Figure]:
    """A song of four minutes through each embedded engine."""
    from benchmarks.engines import measured

    return measured(rounds)


def credits(rounds: int) -> list[Figure]:  # noqa: A001  the suite's name
    """Cycles that end at once, and an account with a long past."""
    from benchmarks.credits import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers.database_url, servers.owner_database_url, rounds)


def api(rounds: int) -> list[Figure]:
    """One API process over 64 connections."""
    from benchmarks.api import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers, rounds)


def overview(rounds: int) -> list[Figure]:
    """What the dashboard costs over a million jobs: one round, for filling the database is long."""
    from benchmarks.overview import measured
    from benchmarks.server import measured_servers

    del rounds
    with measured_servers() as servers:
        return measured(servers)


SUITES: dict[str, Callable[[int], Iterable[Figure]]] = {
    "ledger": ledger,
    "path": path,
    "backlog": backlog,
    "prices": prices,
    "engines": engines,
    "credits": credits,
    "api": api,
    "overview": overview,
}


def main(arguments: list[str]) -> int:
    """Run the suites asked for by `ONLY=name`, a bare name, or the variable ONLY; all if none is."""
    asked = [argument.removeprefix("ONLY=") for argument in arguments] or [os.environ.get("ONLY", "")]
    names = [name for name in asked if name] or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    missed = False
    for name in names:
        rounds = 1 if name in ONCE else ROUNDS
        figures = list(SUITES[name](rounds))
        keep(figures)
        machine = (
            f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        )
        how = "one round" if rounds == 1 else f"medians of {rounds} rounds"
        show(figures, f"{name}: {how}, {machine}, {datetime.now(UTC):%Y-%m-%d}")
        missed = missed or any(figure.met is False for figure in figures)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
