"""Tags of MP3 files, in UTF-8: libsndfile writes them as Latin-1 and would spoil most of the world's titles.

Source: ID3v2.4.0, structure and native frames (id3.org).
"""

from __future__ import annotations

import shutil
from pathlib import Path

#: "The text is UTF-8."
_UTF8 = b"\x03"


def tag(path: Path, title: str, comment: str) -> None:
    """Put a tag in front of an MP3 file that has none."""
    frames = _frame(b"TIT2", _UTF8 + title.encode())
    if comment:
        frames += _frame(b"COMM", _UTF8 + b"eng" + b"\0" + comment.encode())
    tagged = path.with_name(f"{path.name}.tagged")
    with tagged.open("wb") as target, path.open("rb") as source:
        target.write(b"ID3\x04\x00\x00" + _syncsafe(len(frames)) + frames)
        shutil.copyfileobj(source, target)
    tagged.rename(path)


def _frame(name: bytes, content: bytes) -> bytes:
    return name + _syncsafe(len(content)) + b"\0\0" + content


def _syncsafe(number: int) -> bytes:
    """Seven bits a byte, so that no size looks like the start of sound."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))
