"""A mix taken apart: vocals by the embedded U-Net, the rest by harmonic/percussive separation.

The four stems of one mix add up to it. All stems come at 44.1 kHz, the rate the network was trained at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from fermata_client.requests import SplitModel, StemSplitRequest
from tasks.engines.contract import Engine
from tasks.engines.embedded.engines import Splitter
from tasks.kind import AudioInfo, InputLimits, Request, Usage
from tasks.tiers import TieredKind

#: standard is the embedded engine; studio is offered where the settings name an engine for it.
Model = SplitModel


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
