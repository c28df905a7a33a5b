"""Which audio we take and make, and what a file really holds: decoded to its end in a limited child process."""

from __future__ import annotations

from collections.abc import Mapping

#: What we write, and its media types.
MEDIA_TYPES: Mapping[str, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "aiff": "audio/aiff",
}
