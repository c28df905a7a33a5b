"""The contract between a kind's tier and the engine that makes its sound: embedded, behind HTTP, or a model on a GPU.

An engine knows requests and audio. It never hears of credits, queues or databases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol, runtime_checkable

from tasks.finish import Finish
from tasks.kind import Context, EngineUnavailable, InputFile, RunLimits, Usage


@dataclass(frozen=True, slots=True)
class Commission:
    """What an engine is asked to make."""

    kind: str
    #: An instance of the kind's `request_model`.
    request: Any
    inputs: Mapping[str, InputFile]
    #: One entry an output, in the order of their making: the most that each may use.
    asked: tuple[Usage, ...]
    #: The outputs' names, in the same order.
    names: tuple[str, ...]
    #: How they are written: `tasks.engines.writing.OutputFile` does it.
    finish: Finish


class Link(StrEnum):
    """What a provider may be given of ours, by a signed link."""

    COMPLETION = "completion"  # saying that work is done
    INPUT = "input"  # fetching an input


class Engine(Protocol):
    """What makes sound. One object serves all runs of a process, several at once.

    One that can't work without links has a set of them, `links`: where they can't be given, it is not started.
    """

    #: The kinds it can make.
    kinds: ClassVar[frozenset[str]]
    #: Whether the same request gives the same bytes each time.
    deterministic: ClassVar[bool]

    def check(self, kind: str, request: Any) -> None:
        """Turn down what it can't do, before anything is priced. Raises `RefusedRequest`. No I/O."""
        ...

    def prepare(self) -> None:
        """Called once when a worker starts. Raises `EngineNotReady` where something is missing here."""
        ...

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        """Make the outputs in the order of `commission.names`, handing each to `context.finished`.

        Cancelling stops the work at once. An engine that leaves work behind elsewhere ends it too, if
        `context.abandoned`; if not, another attempt will ask for it. Errors: `EngineError`s of `tasks.kind`.
        """
        ...

    async def close(self) -> None:
        """End what it keeps open: connections, processes."""
        ...


@runtime_checkable
class CallsOff(Protocol):
    """An engine that leaves work elsewhere, and can end it without a run."""

    async def forget(self, state: Mapping[str, Any]) -> None:
        """A job has ended of which an attempt remembered this: end its work elsewhere, if it is this engine's.

        Within seconds, and without an error where that can't be done.
        """
        ...


class EngineNotReady(Exception):
    """An engine can't run here. The message is one sentence: what is missing, and what to do."""


class NotHere:
    """Stands for an engine that could not be prepared in this process: a run waits for another worker."""

    kinds: ClassVar[frozenset[str]] = frozenset()
    deterministic: ClassVar[bool] = False

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def check(self, kind: str, request: Any) -> None:
        return None

    def prepare(self) -> None:
        raise EngineNotReady(self.problem)

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        raise EngineUnavailable("the engine of this tier was not started on this worker")

    async def close(self) -> None:
        return None
