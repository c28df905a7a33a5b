"""What a file's first bytes claim, read by ourselves: the decoder quietly corrects a header that lies.

libsndfile shortens a WAV whose header tells of more sound than there is, and takes an OGG that was cut off as
complete. Sources: RIFF (Microsoft, 1991), AIFF-C (Apple, 1991), RFC 3533 (Ogg), RFC 9639 (FLAC).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Literal

from tasks.kind import InvalidInput

Format = Literal["wav", "flac", "mp3", "ogg", "aiff"]

#: Chunks of a WAV or AIFF that are looked at before the sound must have come.
CHUNKS_MAX = 1000
#: WAV encodings we take: PCM, float, A-law, µ-law. ADPCM decoders have a history of overflows.
WAV_ENCODINGS = frozenset({1, 3, 6, 7})
#: The encoding that says "see the extension".
WAV_EXTENSIBLE = 0xFFFE
#: What libsndfile says when a stream doesn't tell its length.
UNKNOWN_FRAMES = 2**63 - 1
#: Bytes that may follow the sound of a FLAC, MP3 or OGG: tags without pictures.
TAIL_MAX = 65_536
#: An Ogg page's header before the lengths of its segments, its flags, and the end of a page on which no packet ends
#: (RFC 3533, section 6).
OGG_HEADER, OGG_FIRST, OGG_LAST, OGG_NO_END = 27, 2, 4, -1


def format_of(descriptor: int) -> Format:
    """The format that the first bytes show, whatever the file is called. Raises `InvalidInput` for any other."""
    head = os.pread(descriptor, 12, 0)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:3] == b"ID3" or _starts_mpeg(head):
        return "mp3"
    raise InvalidInput("is not audio that we take (WAV, FLAC, MP3, OGG, AIFF)")


def claimed_frames(descriptor: int, audio_format: Format, size: int) -> int | None:
    """The frames that a WAV's or AIFF's header claims; None for the others, whose decoder tells it.

    To be asked before a decoder sees the file. Raises `InvalidInput` when the file ends before what its header
    tells of, or when the header tells nonsense.
    """
    if audio_format == "wav":
        return _wav_frames(descriptor, size)
    if audio_format == "aiff":
        return _aiff_frames(descriptor, size)
    if audio_format == "ogg":
        _check_ogg_pages(descriptor, size)
    return None


def decoder_knows_frames(descriptor: int, audio_format: Format, by_decoder: int) -> bool:
    """Whether what libsndfile takes for the length is a header's claim; for many an MP3 it is a guess."""
    if by_decoder >= UNKNOWN_FRAMES:
        raise InvalidInput("has a header that doesn't say how long its sound is")
    return audio_format != "mp3" or _mp3_tells_frames(descriptor)  # a guess was seen to be 12 % too long


def check_tail(descriptor: int, audio_format: Format, size: int) -> None:
    """After all was decoded: refuse what hides more sound behind the frames that its header tells of.

    Another decoder would find it, so a provider could be made to work on more than was measured. A WAV's or AIFF's
    other chunks are nobody's sound.
    """
    unread = size - os.lseek(descriptor, 0, os.SEEK_CUR)
    if audio_format in ("flac", "mp3", "ogg") and unread > TAIL_MAX:
        raise InvalidInput(f"has {unread} bytes behind the sound that its header tells of")


def _mp3_tells_frames(descriptor: int) -> bool:
    """Whether the first frame is an encoder's note (Xing, Info) with the number of frames in it."""
    head = os.pread(descriptor, 10, 0)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    first = os.pread(descriptor, 64, start)
    note = max(first.find(b"Xing"), first.find(b"Info"))
    return note >= 0 and bool(first[note + 7 : note + 8] and first[note + 7] & 1)


def _starts_mpeg(head: bytes) -> bool:
    """An MPEG audio frame's header: sync, a version, layer III, a bit rate and a sample rate that exist."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer, bitrate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer == 1 and bitrate not in (0, 15) and rate != 3


def _wav_frames(descriptor: int, size: int) -> int:
    block = None
    for name, start, length in _chunks(descriptor, size, "<"):
        if name == b"fmt ":
            block = _wav_block(os.pread(descriptor, 40, start)[:length])
        elif name == b"data":
            if block is None:
                raise InvalidInput("is damaged: its sound comes before its format")
            _check_claimed_bytes(start, length, size)
            return length // block
    raise InvalidInput("is damaged: it has no sound")


def _wav_block(description: bytes) -> int:
    """Bytes of one frame."""
    if len(description) < 16:
        raise InvalidInput("is damaged: its format is cut short")
    encoding, channels, _, _, block, bits = struct.unpack("<HHIIHH", description[:16])
    if encoding == WAV_EXTENSIBLE and len(description) >= 26:
        (encoding,) = struct.unpack("<H", description[24:26])
    if encoding not in WAV_ENCODINGS:
        raise InvalidInput(f"is a WAV of an encoding that we don't take (number {encoding})")
    if channels == 0:
        raise InvalidInput("has 0 channels")
    if bits == 0 or block != channels * ((bits + 7) // 8):
        raise InvalidInput("has a header that contradicts itself: its frames are not channels × bits long")
    return int(block)


def _aiff_frames(descriptor: int, size: int) -> int:
    frames = None
    for name, start, length in _chunks(descriptor, size, ">"):
        if name == b"COMM":
            (frames,) = struct.unpack(">2xI", os.pread(descriptor, 6, start).ljust(6, b"\0"))
        elif name == b"SSND":
            _check_claimed_bytes(start, length, size)
    if frames is None:
        raise InvalidInput("is damaged: it has no sound")
    return int(frames)


def _chunks(descriptor: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a RIFF or IFF file: name, where its content starts, how long it claims to be."""
    place = 12
    for _ in range(CHUNKS_MAX):
        header = os.pread(descriptor, 8, place)
        if len(header) < 8:
            return
        name, length = struct.unpack(f"{order}4sI", header)
        yield name, place + 8, length
        place += 8 + length + length % 2
        if place >= size:
            return


def _check_claimed_bytes(start: int, length: int, size: int) -> None:
    if length in (0, 0xFFFFFFFF) and size > start:
        raise InvalidInput("has a header that doesn't say how long its sound is")
    if start + length > size:
        raise InvalidInput(
            f"is truncated: its header tells of {length} bytes of sound, {max(0, size - start)} are there"
        )


def _check_ogg_pages(descriptor: int, size: int) -> None:
    """One stream, page by page to the one that says that it is the last.

    Of a second one, behind the first or between its pages, our decoder tells nothing, and others play it. Where pages
    end never goes back: the last one's end is the length that our decoder believes.
    """
    position, reached, stream = 0, 0, None
    while True:
        header = os.pread(descriptor, OGG_HEADER, position)
        if len(header) < OGG_HEADER:
            raise InvalidInput("is truncated: its last page is missing")
        mark, _, flags, end, serial, _, _, count = struct.unpack("<4sBBqIIIB", header)
        if mark != b"OggS":
            raise InvalidInput("is damaged: a page does not follow the one before it")
        if stream not in (None, serial) or bool(flags & OGG_FIRST) != (stream is None):
            raise InvalidInput("holds more than one stream of sound")
        stream = serial
        segments = os.pread(descriptor, count, position + OGG_HEADER)
        position += OGG_HEADER + count + sum(segments)
        if len(segments) < count or position > size:
            raise InvalidInput("is truncated: its last page is not whole")
        if end != OGG_NO_END:
            if end < reached:
                raise InvalidInput("has a header that contradicts itself: a page ends before the one before it")
            reached = end
        if flags & OGG_LAST:
            break
    if b"OggS" in os.pread(descriptor, TAIL_MAX, position):
        raise InvalidInput("holds more than one stream of sound")
