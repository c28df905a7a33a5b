"""Target voices: those that a conversion may go towards by name. Who may use which is the worker's to say."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.audio import Silent
from tasks.engines.child import run_in_child
from tasks.kind import InvalidInput, RefusedRequest, Request, RunLimits, field_of

#: The input that a voice's clip becomes.
REFERENCE = "reference"


def voice_of(request: Request) -> str | None:
    """The voice that a request names, if it is of a kind that has such a thing."""
    name = field_of(request, "target")
    return name if isinstance(name, str) else None


async def statistics_of(clip: Path) -> dict[str, str]:
    """What a clip says of its voice, numbers with their units in their names.

    `clip` is absolute. Raises `RefusedRequest` where there is no voice in it, or no sound.
    """
    with tempfile.TemporaryDirectory(prefix="voice-") as folder:
        try:
            found = await run_in_child(
                "tasks.engines.embedded.world:statistics", {"path": clip}, Silent(Path(folder)), RunLimits()
            )
        except InvalidInput as refused:
            raise RefusedRequest("clip", refused.message) from None
    return {str(name): str(value) for name, value in found.items()}
