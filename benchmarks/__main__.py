"""`make bench [ONLY=ledger,path] [ROUNDS=5]`: measure, print tables, keep all in results.json and RESULTS.md."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from time import monotonic

from benchmarks.report import PAGE, Figure, Run, keep, kept_in, middle, missed, page, show

#: A figure is the median of so many rounds, unless the variable ROUNDS says otherwise.
ROUNDS = 5


def ledger(rounds: int) -> list[Figure]:
    """The books alone, against pgbench."""
    from benchmarks.ledger import measured
    from benchmarks.reference import Reference
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        assert servers.postgres is not None
        return measured(servers.database_url, Reference(servers.postgres), rounds)


def peers(rounds: int) -> list[Figure]:
    """The books alone, against another ledger on the same server."""
    from benchmarks.peers import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        assert servers.postgres is not None
        return measured(servers.database_url, servers.postgres, rounds)


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
    """A draft price book on a million past jobs."""
    from benchmarks.rehearsing import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers, rounds)


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
    """What the dashboard costs over a million jobs."""
    from benchmarks.overview import measured
    from benchmarks.server import measured_servers

    with measured_servers() as servers:
        return measured(servers, rounds)


def growth(rounds: int) -> list[Figure]:
    """Ten million entries and a million jobs, beside a hundredth: made anew each round."""
    from benchmarks.growth import measured

    return middle([measured() for _ in range(rounds)])


def scale(rounds: int) -> list[Figure]:
    """What one job leaves behind, in a fresh database each round."""
    from benchmarks.scale import measured
    from benchmarks.server import measured_servers

    def once() -> list[Figure]:
        with measured_servers() as servers:
            return measured(servers)

    return middle([once() for _ in range(rounds)])


SUITES: dict[str, Callable[[int], Iterable[Figure]]] = {
    "ledger": ledger,
    "peers": peers,
    "path": path,
    "backlog": backlog,
    "prices": prices,
    "engines": engines,
    "credits": credits,
    "api": api,
    "overview": overview,
    "growth": growth,
    "scale": scale,
}


def main(arguments: list[str]) -> int:
    """Run the suites asked for by `ONLY=name,name`, bare names, or the variable ONLY; all if none is.

    Returns 1 if a goal is missed or a suite fell: the others run all the same, and what was measured is kept.
    """
    asked = " ".join(argument.removeprefix("ONLY=") for argument in arguments) or os.environ.get("ONLY", "")
    names = asked.replace(",", " ").split() or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    rounds = os.environ.get("ROUNDS") or str(ROUNDS)
    if not rounds.isdecimal() or int(rounds) < 1:
        print(f"ROUNDS={rounds} is no number of rounds: give 1 or more", file=sys.stderr)
        return 2
    well = [_measured(name, int(rounds)) for name in names]
    print(f"{PAGE.parent.name}/{PAGE.name} has all figures")
    return int(not all(well))


def _measured(name: str, rounds: int) -> bool:
    """Run one suite and keep what it measured. Returns whether all its goals are met."""
    load, started = round(os.getloadavg()[0], 1), monotonic()
    try:
        figures = list(SUITES[name](rounds))
    except Exception:  # whatever fell, the other suites' figures are worth having
        traceback.print_exc()
        print(f"{name}: no figures, see above", file=sys.stderr)
        return False
    run = Run.of(name, rounds, monotonic() - started, load)
    keep(figures, run)
    PAGE.write_text(page(kept_in(), SUITES))
    what = f"{run.took_seconds:.0f} s, load {load:g} before, {run.machine}, {run.date}, {run.commit}"
    show(figures, f"{name}: medians of {rounds} round{'s' * (rounds > 1)}, {what}")
    return not missed(figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
