"""A mix taken apart: vocals by the embedded U-Net, the rest by harmonic/percussive separation.

The four stems of one mix add up to it. All stems come at 44.1 kHz, the rate the network was trained at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from tasks.engines.contract import Engine
from tasks.engines.embedded.engines import Splitter
from tasks.finish import FinishedRequest
from tasks.kind import AudioInfo, InputLimits, Request, Usage
from tasks.tiers import TieredKind
from tasks.validation import FromList

Stem = Literal["vocals", "drums", "bass", "other"]
#: standard is the embedded engine; studio is offered where the settings name an engine for it.
Model = Literal["standard", "studio"]
#: In the order they are made: vocals are finished before the rest is begun.
STEMS: tuple[Stem, ...] = ("vocals", "drums", "bass", "other")


class StemSplitRequest(FinishedRequest):
    """Which stems to make."""

    stems: Annotated[tuple[Stem, ...], FromList] = Field(STEMS, min_length=1, max_length=4)
    model: Model = "standard"

    @field_validator("stems")
    @classmethod
    def _each_once(cls, stems: tuple[Stem, ...]) -> tuple[Stem, ...]:
        if len(set(stems)) < len(stems):
            raise ValueError("must name each stem once")
        return tuple(stem for stem in STEMS if stem in stems)


@dataclass(frozen=True)
class StemSplit(TieredKind):
    """The kind `stem_split`; by default its tier standard only, by the embedded U-Net."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: {"standard": Splitter()})

    name: ClassVar[str] = "stem_split"
    tiers: ClassVar[tuple[str, ...]] = get_args(Model)
    request_model: ClassVar[type[Request]] = StemSplitRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {"mix": InputLimits()}

    def usage(self, request: StemSplitRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """One entry a stem, each as long as the mix."""
        seconds = inputs["mix"].seconds
        return (Usage(seconds_in=seconds, seconds_out=seconds),) * len(request.stems)

    def output_names(self, request: StemSplitRequest) -> tuple[str, ...]:
        """The stems in the order of `STEMS`, each named as it is."""
        return request.stems
