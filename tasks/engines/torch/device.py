"""One model process a device, shared by all slots of a worker: a queue in front of it, its model loaded once.

The process is a child as every engine's is, but stays for as long as the worker, keeps its model between runs, and is
asked to stop before it is killed: loading a large model takes longer than most songs.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.engines.child import Restraints, run_in_child
from tasks.engines.contract import EngineNotReady
from tasks.engines.offer import Options, PathOption
from tasks.kind import Context, RunLimits

#: Seconds that a model gets between two of its steps to notice that its run was stopped.
STOP_SECONDS = 1.2
#: A GPU's driver maps more address space than any limit would allow, so what a model holds in memory is limited.
ADDRESS_SPACE_BYTES = 2**46
#: Never given back for want of work: the next song would wait for the model.
IDLE_SECONDS = 10**7

DType = Literal["float32", "bfloat16", "float16"]


class ModelOptions(Options):
    """What the document says of every model."""

    #: The folder that its weights lie in. Nothing is ever fetched.
    folder: PathOption
    device: str = Field("cpu", pattern=r"^(cpu|mps|cuda(:\d{1,2})?)$")
    dtype: DType = "float32"
    #: Threads of a model on the CPU.
    threads: int = Field(1, ge=1, le=256)
    #: Bytes of this machine's memory that a run may take its process to; a GPU's own is the GPU's to limit.
    #: None: FERMATA_RUN_MEMORY_BYTES.
    memory_bytes: int | None = Field(None, ge=64 * 1024**2)


class Device:
    """The way to the process of one device."""

    _known: dict[str, Device] = {}  # noqa: RUF012 - one a process, whoever asks

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    @classmethod
    def named(cls, name: str) -> Device:
        """The same for all that run on it."""
        return cls._known.setdefault(name, cls())

    async def run(
        self, function: str, arguments: Mapping[str, Any], options: ModelOptions, context: Context, limits: RunLimits
    ) -> Any:
        """As `run_in_child`, one after the other. Cancelling stops the run at the model's next step."""
        restraints = Restraints(
            open_files=1024,
            idle_seconds=IDLE_SECONDS,
            stop_seconds=STOP_SECONDS,
            threads=options.threads,
            name=options.device,
        )
        context.progress(0.0, "waiting for the model")
        async with self._turn:
            return await run_in_child(
                function,
                {**arguments, "folder": options.folder.absolute(), "device": options.device, "dtype": options.dtype},
                context,
                RunLimits(limits.seconds, ADDRESS_SPACE_BYTES),
                restraints,
                options.memory_bytes or limits.memory_bytes,
            )


def check_installed(name: str, modules: tuple[str, ...]) -> None:
    """Raises `EngineNotReady` unless these can be imported. Imports none: that would take seconds, and memory."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise EngineNotReady(f"{name} needs {', '.join(missing)}: install fermata-worker with the extra torch")


def check_folder(name: str, folder: Path, files: tuple[str, ...]) -> None:
    """Raises `EngineNotReady` unless the weights' folder has these files."""
    for file in files:
        if not (folder / file).is_file():
            raise EngineNotReady(f"{name} has no weights: {folder / file} is not there; put the model's folder there")


def check_trusted(name: str, folder: Path) -> None:
    """Raises `EngineNotReady` for a folder that others can write to: what is unpickled can do anything."""
    try:
        facts = {path: path.stat() for path in (folder, *folder.iterdir())}
    except OSError as error:
        raise EngineNotReady(f"{name} can't look through its weights: {error.filename} ({error.strerror})") from None
    for path, fact in facts.items():
        if fact.st_mode & 0o022:
            raise EngineNotReady(f"{name} unpickles its weights, and {path} can be written by others: chmod go-w it")
