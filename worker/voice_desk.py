"""Voices registered: the clip measured and stored first, then the row that names it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from fermata_client.requests import VOICE_PATTERN
from tasks.kind import RefusedRequest
from tasks.voices import statistics_of
from worker.client import Client, check_source
from worker.store.creations import Asked
from worker.store.voices import NewVoice, Voices, VoiceShown


@dataclass(frozen=True, slots=True)
class VoiceOffer:
    """A voice as it is brought in. `plans` and `accounts` both None: for everybody."""

    name: str
    clip: Path
    owner: str
    licence: str
    consent: str
    plans: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None


async def register(
    client: Client, voices: Voices, offer: VoiceOffer, actor: str, asked: Asked | None = None
) -> VoiceShown:
    """Measure the clip's voice, put the clip into the store, and register it; once a request.

    Raises `RefusedRequest` or `Refused`; then there is no such voice, at most a clip that nobody uses.
    """
    if not re.fullmatch(VOICE_PATTERN, offer.name):
        raise RefusedRequest("voice", "must be small letters, digits and -, at most 64, a letter first")
    check_source(offer.clip, client.settings.upload_bytes_max)
    measured = await statistics_of(await asyncio.to_thread(offer.clip.absolute))
    kept = await client.put(offer.owner, offer.clip, actor)
    voice = NewVoice(
        name=offer.name,
        owner=offer.owner,
        clip=kept.artifact_id,
        licence=offer.licence,
        consent=offer.consent,
        statistics=measured,
        plans=offer.plans,
        accounts=offer.accounts,
    )
    return await voices.add(voice, actor, asked)
