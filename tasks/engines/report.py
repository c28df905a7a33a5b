"""What an engine inside a child process says to the worker, and how a finished output travels between them.

Only plain JSON comes back from a child: it has read a stranger's audio, so nothing of it is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from tasks.kind import AudioInfo, Output, Usage

#: Characters of a measure's name, and of its value.
MEASURE_MAX = 40


class Report(Protocol):
    """What an engine's function gets as its first argument."""

    @property
    def workdir(self) -> Path:
        """The attempt's private folder: outputs and scratch files go here."""
        ...

    @property
    def stop_asked(self) -> bool:
        """Whether nobody wants this run any more. Most needn't look: they are killed."""
        ...

    def progress(self, fraction: float, stage: str) -> None:
        """Say how far it is: 0 to 1. Cheap; call it at every chunk."""
        ...

    def finished(self, output: Output) -> None:
        """Hand over one finished output. Once this returns it is durable and counted, whatever comes after."""
        ...


def output_to_json(output: Output) -> dict[str, Any]:
    """An output as JSON: exact seconds as text."""
    return asdict(output) | {
        "path": str(output.path),
        "usage": {"seconds_in": str(output.usage.seconds_in), "seconds_out": str(output.usage.seconds_out)},
    }


def output_from_json(sent: Mapping[str, Any]) -> Output:
    """The output that `output_to_json` wrote. Raises `LookupError`, `TypeError`, `ValueError`, `AttributeError` on
    anything else."""
    usage = {name: Decimal(str(sent["usage"][name])) for name in ("seconds_in", "seconds_out")}
    info = {name: int(sent["info"][name]) for name in ("frames", "sample_rate", "channels")}
    return Output(
        name=str(sent["name"]),
        path=Path(str(sent["path"])),
        media_type=str(sent["media_type"]),
        info=AudioInfo(**info),
        bytes=int(sent["bytes"]),
        sha256=str(sent["sha256"]),
        usage=Usage(**usage),
        measures={str(name)[:MEASURE_MAX]: str(value)[:MEASURE_MAX] for name, value in sent["measures"].items()},
        billable=sent["billable"] is not False,
    )
