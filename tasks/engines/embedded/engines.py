"""The embedded engines: real signal processing on the CPU, each run in a child process. Nothing to install or reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.engines.child import close_children, run_in_child
from tasks.engines.contract import Commission
from tasks.engines.embedded.composer import Brief
from tasks.kind import Context, RefusedRequest, RunLimits

if TYPE_CHECKING:
    from fermata_client.requests import StemSplitRequest, VocalConversionRequest
    from tasks.generation import GenerationRequest


class _Embedded:
    """What they have in common."""

    deterministic: ClassVar[bool] = True

    def prepare(self) -> None:
        """Always ready: all they need is installed with us."""

    async def close(self) -> None:
        """End the warm children of this thread."""
        await close_children()


class Composer(_Embedded):
    """Instrumental pieces, by a procedural composer and a synthesizer."""

    kinds: ClassVar[frozenset[str]] = frozenset({"generation"})

    def check(self, kind: str, request: GenerationRequest) -> None:
        if request.lyrics is not None:
            raise RefusedRequest("lyrics", "are not sung by this engine: it is instrumental. Leave the field out")

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        """Make the songs one after the other, each handed over when it is finished."""
        request: GenerationRequest = commission.request
        brief = Brief(
            prompt=request.prompt,
            seconds=None if request.seconds is None else request.most_seconds,
            seconds_max=None if request.seconds_max is None else request.most_seconds,
            bpm=request.bpm,
            key=request.key,
            style=request.style,
        )
        arguments = {
            "brief": brief,
            "seed": request.seed,
            "variants": request.variants,
            "model": request.model,
            "finish": commission.finish,
        }
        await run_in_child("tasks.engines.embedded.synth:make_songs", arguments, context, limits)


class Vocoder(_Embedded):
    """Another voice, by WORLD: as long as the input, with as many channels, at most 48 kHz."""

    kinds: ClassVar[frozenset[str]] = frozenset({"vocal_conversion"})

    def check(self, kind: str, request: VocalConversionRequest) -> None:
        """It takes all that the request can say."""

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        request: VocalConversionRequest = commission.request
        change = {
            "semitones": request.semitones,
            "formant": request.formant,
            "preset": request.preset,
            "strength": 1.0 if request.strength is None else request.strength,
            "volume_mix": request.volume_mix,
            "model": request.model,
        }
        voice, reference = commission.inputs["voice"], commission.inputs.get("reference")
        arguments = {
            "path": voice.path.absolute(),
            "info": voice.info,
            "reference": None if reference is None else reference.path.absolute(),
            "change": change,
            "finish": commission.finish,
        }
        await run_in_child("tasks.engines.embedded.world:convert", arguments, context, limits)


class Splitter(_Embedded):
    """Stems, by the numpy U-Net and harmonic/percussive separation; vocals are handed over before the rest."""

    kinds: ClassVar[frozenset[str]] = frozenset({"stem_split"})

    def check(self, kind: str, request: StemSplitRequest) -> None:
        """It takes all that the request can say."""

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        request: StemSplitRequest = commission.request
        mix = commission.inputs["mix"]
        arguments = {
            "path": mix.path.absolute(),
            "info": mix.info,
            "stems": request.stems,
            "finish": commission.finish,
        }
        await run_in_child("tasks.engines.embedded.stems:split", arguments, context, limits)
