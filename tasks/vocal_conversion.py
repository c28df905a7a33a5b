"""A voice made into another: higher or lower, bigger or smaller, nearer to a reference, whispering or a robot.

The embedded engine is the WORLD vocoder. It moves pitch, formants and a voice's colour by statistics; it is not a
neural clone of a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from fermata_client.requests import VocalConversionRequest, VocalModel
from tasks.engines.contract import Engine
from tasks.engines.embedded.engines import Vocoder
from tasks.kind import AudioInfo, InputLimits, RefusedRequest, Request, Usage
from tasks.tiers import TieredKind
from tasks.voices import REFERENCE

#: standard finds the pitch with DIO (0.2 CPU seconds a second of voice), studio with Harvest (0.35, steadier).
Model = VocalModel


@dataclass(frozen=True)
class VocalConversion(TieredKind):
    """The kind `vocal_conversion`; by default made by the embedded WORLD vocoder."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: dict.fromkeys(VocalConversion.tiers, Vocoder()))

    name: ClassVar[str] = "vocal_conversion"
    tiers: ClassVar[tuple[str, ...]] = get_args(Model)
    request_model: ClassVar[type[Request]] = VocalConversionRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {"voice": InputLimits(), "reference": InputLimits(required=False)}

    def usage(self, request: VocalConversionRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """One output, as long as the voice. The reference is not counted."""
        if request.strength is not None and request.target is None and REFERENCE not in inputs:
            raise RefusedRequest("strength", "needs the input reference or a target, whose voice it goes towards")
        seconds = inputs["voice"].seconds
        return (Usage(seconds_in=seconds, seconds_out=seconds),)

    def output_names(self, request: VocalConversionRequest) -> tuple[str, ...]:
        """One, "voice"."""
        return ("voice",)
