"""A kind's tiers: which engine makes which, by the settings. What all kinds of ours do around a run stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from tasks.checking import Checked
from tasks.engines.contract import Commission, Engine
from tasks.finish import finish_of
from tasks.gates import Gates
from tasks.kind import AudioInfo, Context, EngineError, InputFile, RefusedRequest, RunLimits, Usage

#: What holds for every kind unless it says otherwise. A stem or a voice may well be silent.
GATES = Gates()


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

    @property
    def gates(self) -> Gates:
        """What its outputs must be to be sold."""
        ...

    def with_gates(self, gates: Gates) -> Tiered:
        """The same kind, with these gates."""
        ...


@dataclass(frozen=True)
class TieredKind:
    """What the kinds that we ship have in common."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: MappingProxyType({}))

    gates: Gates = GATES

    name: ClassVar[str]
    tiers: ClassVar[tuple[str, ...]]

    def with_engines(self, engines: Mapping[str, Engine]) -> TieredKind:
        return replace(self, engines=MappingProxyType(dict(engines)))

    def with_gates(self, gates: Gates) -> TieredKind:
        return replace(self, gates=gates)

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

    def may_be_shorter(self, request: Any) -> bool:
        """Whether an output may rightly be shorter than `usage` says."""
        return False

    async def run(self, request: Any, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits) -> None:
        """Have the tier's engine make the outputs, named as `output_names` says."""
        engine = self.engines.get(request.model)
        if engine is None:  # it was offered when the job was taken
            raise EngineError(f"the tier {request.model} is not offered any more")
        infos = {name: file.info for name, file in inputs.items()}
        commission = Commission(
            kind=self.name,
            request=request,
            inputs=inputs,
            asked=self.usage(request, infos),
            names=self.output_names(request),
            finish=finish_of(self.name, request, context.job_id),
        )
        checked = Checked(context, commission, self.gates, self.may_be_shorter(request))
        await engine.run(commission, checked, limits)
        checked.check_all_came()
