"""Music from words. The embedded engine composes and plays an instrumental piece: tempo, key, style and moods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, Self, get_args

from pydantic import field_validator, model_validator

from fermata_client import requests
from fermata_client.requests import GenerationModel
from tasks.engines.contract import Engine
from tasks.engines.embedded.composer import STYLES, bars_within, key_of, tempo_for
from tasks.engines.embedded.engines import Composer
from tasks.gates import Gates
from tasks.kind import AudioInfo, InputLimits, RefusedRequest, Request, Usage
from tasks.tiers import TieredKind
from tasks.validation import seconds_of

#: The tiers. draft: 22.05 kHz mono, one oscillator a note. standard: 44.1 kHz stereo, with a room. studio: 48 kHz
#: stereo, 24 bit in wav and flac, three detuned oscillators a note and a longer room.
Model = GenerationModel

#: A song that is silent, or mostly at full scale, is not one.
GATES = Gates(silent_db=-60, clipped_ppm=10_000)


class GenerationRequest(requests.GenerationRequest):
    """As it may be asked, and as the composer can do it."""

    @field_validator("key")
    @classmethod
    def _key_is_known(cls, key: str | None) -> str | None:
        if key is not None:
            try:
                key_of(key)
            except ValueError:
                raise ValueError('must be a key such as "A minor" or "F# major"') from None
        return key

    @field_validator("style")
    @classmethod
    def _style_is_known(cls, style: str | None) -> str | None:
        if style is not None and style not in STYLES:
            raise ValueError(f"must be one of {', '.join(STYLES)}")
        return style

    @model_validator(mode="after")
    def _length_is_clear(self) -> Self:
        if (self.seconds is None) == (self.seconds_max is None):
            raise RefusedRequest("seconds", "exactly one of seconds and seconds_max must be given")
        if self.seconds_max is not None:
            bpm = tempo_for(self.prompt, self.bpm, self.style)
            if not bars_within(seconds_of(self.seconds_max), bpm):
                bar = Decimal(240) / bpm
                raise RefusedRequest("seconds_max", f"must hold a whole bar, {bar:.2f} seconds at {bpm} bpm")
        return self

    @property
    def most_seconds(self) -> Decimal:
        """The longest that one song can become."""
        length = self.seconds if self.seconds is not None else self.seconds_max
        assert length is not None
        return seconds_of(length)


@dataclass(frozen=True)
class Generation(TieredKind):
    """The kind `generation`; by default made by the embedded composer and synthesizer."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: dict.fromkeys(Generation.tiers, Composer()))

    gates: Gates = GATES

    name: ClassVar[str] = "generation"
    tiers: ClassVar[tuple[str, ...]] = get_args(Model)
    request_model: ClassVar[type[Request]] = GenerationRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: GenerationRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """One entry a variant: the seconds asked, or the most they can become."""
        return (Usage(seconds_out=request.most_seconds),) * request.variants

    def may_be_shorter(self, request: GenerationRequest) -> bool:
        """With `seconds_max` a piece ends when it is over."""
        return request.seconds is None

    def output_names(self, request: GenerationRequest) -> tuple[str, ...]:
        """ "song", "song-2", …"""
        return ("song", *(f"song-{number}" for number in range(2, request.variants + 1)))
