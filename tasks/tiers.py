"""A kind's tiers: which engine makes which, by the settings. What all kinds of ours do around a run stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from tasks.engines.contract import Commission, Engine
from tasks.kind import AudioInfo, Context, EngineError, InputFile, RefusedRequest, RunLimits, Usage


@runtime_checkable
class Tiered(Protocol):
    """A kind whose tiers are made by engines that the settings choose."""

    tiers: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engine of each tier that is offered here."""
        ...

    def check(self, request: Any) -> None:
        """Turn down a request that the engine of its tier can't do. Raises `RefusedRequest`."""
        ...

    def with_engines(self, engines: Mapping[str, Engine]) -> Tiered:
        """The same kind, made by these."""
        ...


@dataclass(frozen=True)
class TieredKind:
    """What the kinds that we ship have in common."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: MappingProxyType({}))

    name: ClassVar[str]
    tiers: ClassVar[tuple[str, ...]]

    def with_engines(self, engines: Mapping[str, Engine]) -> TieredKind:
        return type(self)(MappingProxyType(dict(engines)))

    def check(self, request: Any) -> None:
        engine = self.engines.get(request.model)
        if engine is None:
            offered = ", ".join(tier for tier in self.tiers if tier in self.engines)
            raise RefusedRequest("model", f"{request.model} is not offered here (offered: {offered or 'none'})")
        engine.check(self.name, request)

    def usage(self, request: Any, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        raise NotImplementedError

    def output_names(self, request: Any) -> tuple[str, ...]:
        """The names of the outputs, in the order of `usage`."""
        raise NotImplementedError

    async def run(self, request: Any, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits) -> None:
        """Have the tier's engine make the outputs, named as `output_names` says."""
        engine = self.engines.get(request.model)
        if engine is None:  # it was offered when the job was taken
            raise EngineError(f"the tier {request.model} is not offered any more")
        infos = {name: file.info for name, file in inputs.items()}
        commission = Commission(self.name, request, inputs, self.usage(request, infos), self.output_names(request))
        await engine.run(commission, context, limits)
