"""What a child's last message means for the run. Nothing that a child names is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from tasks.kind import EngineError, EngineFailure, OutOfMemory

log = structlog.get_logger(__name__)

#: Characters of an error's words that are passed on to a customer.
MESSAGE_SHOWN_MAX = 500


def returned(answer: Mapping[str, Any], function: str, memory_bytes: int) -> Any:
    """What the function returned. Raises what it raised."""
    if "returned" in answer:
        return answer["returned"]
    if "failed" in answer:
        raise _engine_error(answer["failed"])(str(answer["text"])[:MESSAGE_SHOWN_MAX])
    if "out_of_memory" in answer:
        raise out_of_memory(memory_bytes)
    log.error("engine_failed", function=function, traceback=answer.get("traceback"))
    raise EngineFailure(f"the engine failed unexpectedly ({str(answer.get('unexpected'))[:80]})")


def is_sound(answer: Mapping[str, Any]) -> bool:
    """Whether a child that answered so can take the next run: not in an unknown state, or out of memory."""
    return "returned" in answer or ("failed" in answer and not issubclass(_engine_error(answer["failed"]), OutOfMemory))


def out_of_memory(memory_bytes: int) -> OutOfMemory:
    """Past a limit of that many bytes."""
    return OutOfMemory(f"the engine needed more than its {memory_bytes // 1024**2} MiB of memory")


def _engine_error(names: list[str]) -> type[EngineError]:
    """The nearest class that we know in a raised exception's line of ancestors."""
    known, unseen = {}, [EngineError]
    while unseen:
        error = unseen.pop()
        known[f"{error.__module__}:{error.__qualname__}"] = error
        unseen += error.__subclasses__()
    return next((known[name] for name in names if name in known), EngineFailure)
