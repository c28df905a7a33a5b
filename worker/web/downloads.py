"""A stored file as an answer: whole, or the one range that a player asks for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from worker.artifacts.store import ArtifactStore
from worker.store.reads_artifacts import ArtifactPlace
from worker.web.problems import Problem

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
#: What a fetched file is called: our own id, never a customer's words.
_SUFFIXES = {
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/aiff": ".aiff",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes from `start` to before `stop`."""

    start: int
    stop: int


async def download(request: Request, store: ArtifactStore, place: ArtifactPlace) -> Response:
    """The file. Raises `DamagedArtifact` before anything is sent where it is gone."""
    shown = place.shown
    etag = f'"{shown.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'attachment; filename="{shown.artifact}{_SUFFIXES.get(shown.media_type, ".audio")}"',
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    wanted = None
    if request.headers.get("if-range", etag) == etag:
        wanted = range_of(request.headers.get("range"), shown.bytes)
    part = wanted or Range(0, shown.bytes)
    headers["Content-Length"] = str(part.stop - part.start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{shown.bytes}"
    if request.method == "HEAD":
        return Response(None, 206 if wanted else 200, headers, shown.media_type)
    blocks = store.read(place.storage_key, part.start, part.stop)
    first = await anext(blocks, b"")
    return StreamingResponse(_after(first, blocks), 206 if wanted else 200, headers, shown.media_type)


def range_of(header: str | None, size: int) -> Range | None:
    """What a Range header asks of a file of `size` bytes; None: all of it. Several ranges are answered by all.

    Raises `Problem` 416 for a range that lies behind the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    if match[1] and match[2] and int(match[2]) < int(match[1]):
        return None  # no range at all, says RFC 9110
    if start >= size or start >= stop:
        raise Problem(416, "the file has no such range", headers={"Content-Range": f"bytes */{size}"})
    return Range(start, stop)


async def _after(first: bytes, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in blocks:
        yield block
