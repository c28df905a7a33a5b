"""A file as it comes over HTTP: one part of a multipart body, written to disk as it arrives, never held in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from worker.web.problems import Problem

#: Bytes gathered before they are written: fewer switches to a thread.
_BLOCK = 256 * 1024
#: What a multipart body has beside the file itself: boundaries and headers.
ENVELOPE_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that has arrived. `name`: what its sender called it, for people only."""

    path: Path
    name: str | None
    sha256: str


@dataclass(slots=True)
class _Parts:
    """What the parser tells of: headers, then data, of one part after the other."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    waiting: bytearray = field(default_factory=bytearray)
    files: int = 0
    name: str | None = None
    ended: bool = False
    _inside: bool = False
    _field: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that fills this in."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._headers,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        self.headers = {}
        self._inside = False

    def _header(self) -> None:
        self.headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        if options.get(b"name") != b"file":
            raise Problem(422, "the body may have one part only, called file", field="file")
        self.files += 1
        if self.files > 1:
            raise Problem(422, "one file at a time is taken", field="file")
        self._inside = True
        called = options.get(b"filename")
        self.name = called.decode("utf-8", "replace") if called else None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self.waiting += data[start:end]

    def _end(self) -> None:
        self.ended = True


@asynccontextmanager
async def uploaded(request: Request, path: Path, bytes_max: int) -> AsyncIterator[Uploaded]:
    """The file of this request, at `path` for as long as the block. Raises `Problem`."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Problem(415, "the body must be multipart/form-data with one part called file")
    try:
        yield await _written(request, boundary, path, bytes_max)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


async def _written(request: Request, boundary: bytes, path: Path, bytes_max: int) -> Uploaded:
    parts, digest, taken = _Parts(), hashlib.sha256(), 0
    try:
        parser = parts.parser(boundary)
        writer = await asyncio.to_thread(_opened, path)
        try:
            async for chunk in request.stream():
                parser.write(chunk)
                taken += len(chunk)
                if taken > bytes_max + ENVELOPE_BYTES_MAX:
                    raise Problem(413, f"at most {bytes_max:,} bytes are taken")
                if len(parts.waiting) >= _BLOCK:
                    await _write(writer, parts.waiting, digest)
            await _write(writer, parts.waiting, digest)
        finally:
            await asyncio.to_thread(writer.close)
        parser.finalize()
    except FormParserError:
        raise Problem(400, "the body can't be read as multipart/form-data") from None
    except OSError:
        raise Problem(503, "the file can't be written here now: nothing was stored, try again") from None
    if not parts.files or not parts.ended:
        raise Problem(422, "a part called file must be given, whole", field="file")
    return Uploaded(path, parts.name, digest.hexdigest())


async def _write(writer: BinaryIO, waiting: bytearray, digest: hashlib._Hash) -> None:
    block = bytes(waiting)
    waiting.clear()
    digest.update(block)
    await asyncio.to_thread(writer.write, block)


def _opened(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    return path.open("xb")
