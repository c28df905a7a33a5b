"""The model of a model process: loaded once, kept until another one is wanted, then freed. Runs in a child only."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from tasks.engines.report import Report
from tasks.kind import EngineFailure, OutOfMemory

_loaded: tuple[tuple[str, ...], Any] | None = None


class Stopped(EngineFailure):
    """The worker asked for the run's end. Nobody reads this: the run was cancelled."""


def model(key: tuple[str, ...], load: Callable[[], Any], device: str) -> Any:
    """The model that `key` names; `load` makes it unless it is there. One at a time is held."""
    global _loaded
    if _loaded is None or _loaded[0] != key:
        _loaded = None
        free(device)
        try:
            _loaded = (key, load())
        except MemoryError:
            raise
        except Exception as error:
            raise EngineFailure(f"the model can't be loaded ({type(error).__name__})") from error
    return _loaded[1]


def free(device: str) -> None:
    """Give back what nobody holds any more, on the device too."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def step(report: Report, fraction: float, stage: str) -> None:
    """Between two steps of a model: tell how far it is. Raises `Stopped` if the run is not wanted any more."""
    if report.stop_asked:
        raise Stopped("stopped")
    report.progress(fraction, stage)


class out_of_memory:  # noqa: N801 - reads as the statement that it is
    """A device without room, as `OutOfMemory`: what was taken is given back first."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import torch

        # On the CPU it comes as any error does, and says so.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            free(self._device)
            raise OutOfMemory(f"the model needed more memory than {self._device} has") from None
