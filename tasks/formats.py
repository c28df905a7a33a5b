"""The audio formats we take and make. A leaf: both sides of the child process read it."""

from __future__ import annotations

from collections.abc import Mapping

# What the outputs may be written as.
from fermata_client.requests import Format as Format

#: The formats we take, by what their bytes are and whatever their names say, and the media type of each.
MEDIA_TYPES: Mapping[str, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "aiff": "audio/aiff",
}
