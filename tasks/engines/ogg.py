"""Ogg files made the same each time: libsndfile gives every stream a random number, we give it a fixed one.

Source: RFC 3533, section 6.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

#: The number that all our streams have. A file holds one stream, so it needs to differ from no other.
SERIAL = 1


def settle_serial(path: Path) -> None:
    """Give each page of a file the serial `SERIAL`, and the checksum that goes with it. In place."""
    with path.open("r+b") as file:
        while len(header := file.read(27)) == 27:
            start = file.tell() - 27
            segments = file.read(header[26])
            body = file.read(sum(segments))
            page = header[:14] + struct.pack("<I", SERIAL) + header[18:22] + bytes(4) + header[26:] + segments + body
            file.seek(start + 14)
            file.write(struct.pack("<I", SERIAL) + header[18:22] + struct.pack("<I", _checksum(page)))
            file.seek(start + len(page))


def _checksum(page: bytes) -> int:
    """Ogg's CRC: zlib's polynomial with the bits of each byte in the other order, and nothing added at either end."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
