"""A voice made into another: higher or lower, bigger or smaller, nearer to a reference, whispering or a robot.

The embedded engine is the WORLD vocoder. It moves pitch, formants and a voice's colour by statistics; it is not a
neural clone of a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tasks.engines.child import run_in_child
from tasks.formats import Format
from tasks.kind import (
    AudioInfo,
    Context,
    InputFile,
    InputLimits,
    RefusedRequest,
    Request,
    RunLimits,
    Usage,
)
from tasks.validation import Number

#: standard finds the pitch with DIO (0.2 CPU seconds a second of voice), studio with Harvest (0.35, steadier).
Model = Literal["standard", "studio"]


class VocalConversionRequest(Request):
    """What becomes of the voice."""

    #: Semitones up (or down).
    semitones: Number = Field(0.0, ge=-24, le=24)
    #: The formants' factor: above 1 a smaller singer, below 1 a bigger one.
    formant: Number = Field(1.0, ge=0.6, le=1.6)
    preset: Literal["natural", "whisper", "robot"] = "natural"
    #: How far to go towards the input `reference`: 0 not at all, 1 all the way. Only with a reference; 1 if not given.
    strength: Number | None = Field(None, ge=0, le=1)
    #: Whose loudness: 0 follows the voice's own, 1 leaves it as the engine made it.
    volume_mix: Number = Field(1.0, ge=0, le=1)
    model: Model = "standard"
    format: Format = "wav"


class VocalConversion:
    """The kind `vocal_conversion`, by the embedded WORLD vocoder."""

    name: ClassVar[str] = "vocal_conversion"
    request_model: ClassVar[type[Request]] = VocalConversionRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {"voice": InputLimits(), "reference": InputLimits(required=False)}

    def usage(self, request: VocalConversionRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """One output, as long as the voice. The reference is not counted."""
        if request.strength is not None and "reference" not in inputs:
            raise RefusedRequest("strength", "needs the input reference, whose voice it goes towards")
        seconds = inputs["voice"].seconds
        return (Usage(seconds_in=seconds, seconds_out=seconds),)

    async def run(
        self,
        request: VocalConversionRequest,
        inputs: Mapping[str, InputFile],
        context: Context,
        limits: RunLimits,
    ) -> None:
        """Make one output, "voice": as long as the input, with as many channels, at most 48 kHz."""
        change = {
            "semitones": request.semitones,
            "formant": request.formant,
            "preset": request.preset,
            "strength": 1.0 if request.strength is None else request.strength,
            "volume_mix": request.volume_mix,
            "model": request.model,
        }
        reference = inputs.get("reference")
        arguments = {
            "path": inputs["voice"].path.absolute(),
            "info": inputs["voice"].info,
            "reference": None if reference is None else reference.path.absolute(),
            "change": change,
            "audio_format": request.format,
        }
        await run_in_child("tasks.engines.embedded.world:convert", arguments, context, limits)
