"""Pictures of artifacts: each drawn once, one at a time, the latest kept in memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

from tasks.kind import EngineError
from worker.artifacts.store import ArtifactError, ArtifactStore
from worker.store.reads_artifacts import ArtifactPlace

#: Pictures kept: of about 40 kB each.
KEPT_MAX = 200
#: Who comes while so many wait is turned away rather than queued.
_WAITING_MAX = 20

Draw = Callable[[Path, int], Awaitable[bytes]]


class Pictures:
    """A small store in front of a child process that draws."""

    def __init__(self, draw: Draw, artifacts: ArtifactStore) -> None:
        self._draw = draw
        self._artifacts = artifacts
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def of(self, place: ArtifactPlace) -> bytes:
        """The picture of an artifact. Raises `ArtifactError` where none can be drawn, or too many wait."""
        sha256 = place.shown.sha256
        if sha256 not in self._kept:
            if self._waiting >= _WAITING_MAX:
                raise ArtifactError("too many pictures are being drawn; look again in a moment")
            self._waiting += 1
            try:
                async with self._one_at_a_time:
                    if sha256 not in self._kept:
                        self._kept[sha256] = await self._drawn(place)
            except (EngineError, OSError, TimeoutError) as error:
                raise ArtifactError(f"no picture: {str(error) or 'it takes too long'}") from None
            finally:
                self._waiting -= 1
        self._kept.move_to_end(sha256)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return self._kept[sha256]

    async def _drawn(self, place: ArtifactPlace) -> bytes:
        shown = place.shown
        with tempfile.TemporaryDirectory(prefix="picture-") as folder:
            copy = Path(folder) / "sound"
            await self._artifacts.fetch(place.storage_key, bytes.fromhex(shown.sha256), copy)
            return await self._draw(copy, round(shown.seconds * shown.sample_rate))
