"""What a child and all that it started hold in this machine's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

#: Seconds between two looks at who belongs to a child: it takes a walk through all processes.
LISTED_SECONDS = 1.0


@dataclass(slots=True)
class Family:
    """A process that leads a session of its own, as every child does, and the programs that it started."""

    leader: int
    _others: tuple[int, ...] = ()
    _listed_at: float = float("-inf")

    def held_bytes(self) -> int:
        """What they hold and can't give back: no files that they map, as weights are. 0: they are gone.

        Memory that they share counts once for each. A program counts a second after its start at the latest.
        """
        if monotonic() - self._listed_at >= LISTED_SECONDS:
            self._others = tuple(_others_in_session(self.leader))
            self._listed_at = monotonic()
        return sum(_held_bytes(pid) for pid in (self.leader, *self._others))


def _held_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(
        int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))
    )


def _others_in_session(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or entry.name == str(leader):
            continue
        try:
            # pid (name) state parent group session …: a name may have anything in it, blanks and brackets too.
            session = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if session == str(leader):
            yield int(entry.name)
