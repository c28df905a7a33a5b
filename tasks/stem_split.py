"""A mix taken apart: vocals by the embedded U-Net, the rest by harmonic/percussive separation.

The four stems of one mix add up to it. All stems come at 44.1 kHz, the rate the network was trained at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from tasks.engines.child import run_in_child
from tasks.formats import Format
from tasks.kind import AudioInfo, Context, InputFile, InputLimits, Request, RunLimits, Usage
from tasks.validation import FromList

Stem = Literal["vocals", "drums", "bass", "other"]
#: In the order they are made: vocals are finished before the rest is begun.
STEMS: tuple[Stem, ...] = ("vocals", "drums", "bass", "other")


class StemSplitRequest(Request):
    """Which stems to make."""

    stems: Annotated[tuple[Stem, ...], FromList] = Field(STEMS, min_length=1, max_length=4)
    format: Format = "wav"

    @field_validator("stems")
    @classmethod
    def _each_once(cls, stems: tuple[Stem, ...]) -> tuple[Stem, ...]:
        if len(set(stems)) < len(stems):
            raise ValueError("must name each stem once")
        return tuple(stem for stem in STEMS if stem in stems)


class StemSplit:
    """The kind `stem_split`, by the embedded U-Net and harmonic/percussive separation."""

    name: ClassVar[str] = "stem_split"
    request_model: ClassVar[type[Request]] = StemSplitRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {"mix": InputLimits()}

    def usage(self, request: StemSplitRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """One entry a stem, each as long as the mix."""
        seconds = inputs["mix"].seconds
        return (Usage(seconds_in=seconds, seconds_out=seconds),) * len(request.stems)

    async def run(
        self,
        request: StemSplitRequest,
        inputs: Mapping[str, InputFile],
        context: Context,
        limits: RunLimits,
    ) -> None:
        """Make the stems in the order of `STEMS`, each named as it is; vocals are handed over before the rest."""
        mix = inputs["mix"]
        arguments = {
            "path": mix.path.absolute(),
            "info": mix.info,
            "stems": request.stems,
            "audio_format": request.format,
        }
        await run_in_child("tasks.engines.embedded.stems:split", arguments, context, limits)
