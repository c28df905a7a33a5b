"""The ACE-Step 1.5 server: songs, with or without lyrics. Its docs/en/API.md.

It hands out task ids of its own and knows neither idempotency nor cancelling. So the id is remembered before
anybody polls, and a release whose answer got lost may be made twice over there, but is paid once here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx2
from pydantic import Field

from tasks.engines.contract import Commission
from tasks.engines.offer import Options
from tasks.engines.remote.engine import Failed, Made, Remote, round_of
from tasks.engines.remote.provider import ProviderOptions, json_of
from tasks.kind import Context, EngineFailure, RefusedRequest

#: A task's states, as /query_result names them.
UNDER_WAY, SUCCEEDED, FAILED = 0, 1, 2
#: Seconds of music and beats a minute that the server takes.
SECONDS_MIN, SECONDS_MAX, BPM_MIN, BPM_MAX = 10, 600, 30, 300

#: Characters of a task's id.
TASK_MAX = 500


class AceStepOptions(ProviderOptions):
    """What the document says of an ACE-Step server."""

    inference_steps: int = Field(8, ge=1, le=200)
    #: Further fields of /release_task that are always the same.
    constants: dict[str, Any] = Field(default_factory=dict)


class AceStepServer(Remote):
    """An ACE-Step 1.5 server."""

    Options: ClassVar[type[Options]] = AceStepOptions
    kinds: ClassVar[frozenset[str]] = frozenset({"generation"})

    options: AceStepOptions

    def check(self, kind: str, request: Any) -> None:
        if request.most_seconds < SECONDS_MIN:
            raise RefusedRequest("seconds", f"must be at least {SECONDS_MIN} with this model")
        if request.bpm is not None and not BPM_MIN <= request.bpm <= BPM_MAX:
            raise RefusedRequest("bpm", f"must be between {BPM_MIN} and {BPM_MAX} with this model")

    async def order(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Mapping[str, Any]:
        if "task" not in state:
            context.progress(0.02, "ordering")
            answer = await self.provider.ask("POST", "/release_task", body=self._task(commission))
            task = _data(answer).get("task_id")
            if not isinstance(task, str) or not task or not task.isprintable() or len(task) > TASK_MAX:
                raise EngineFailure(f"{self.name} released a task without an id")
            state = {"engine": self.name, "round": round_of(state), "task": task}
            await context.remember(state)
        context.progress(0.05, "ordered")
        return state

    async def look(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Made | None:
        answer = await self.provider.ask("POST", "/query_result", body={"task_id_list": [state["task"]]})
        found = [one for one in _list(answer) if isinstance(one, dict) and one.get("task_id") == state["task"]]
        if not found:
            raise Failed(EngineFailure(f"{self.name} knows nothing of the task any more"))
        status = found[0].get("status")
        if status == UNDER_WAY:
            context.progress(0.3, "making")
            return None
        if status != SUCCEEDED:
            raise Failed(EngineFailure(f"{self.name} could not make it"))
        return Made(_files(found[0].get("result")), {})

    def _task(self, commission: Commission) -> dict[str, Any]:
        request = commission.request
        words = ", ".join(filter(None, (request.style, request.prompt)))
        task = {
            "prompt": words,
            "lyrics": request.lyrics or "[instrumental]",
            "audio_duration": float(request.most_seconds),
            "bpm": request.bpm,
            "key_scale": request.key,
            "inference_steps": self.options.inference_steps,
            "seed": request.seed,
            "use_random_seed": False,
            "batch_size": request.variants,
            "audio_format": "flac",  # the format that was asked for is written here
            "task_type": "text2music",
        }
        return {**{name: value for name, value in task.items() if value is not None}, **self.options.constants}


def _answered(answer: httpx2.Response) -> Any:
    found = json_of(answer)
    return found.get("data") if isinstance(found, dict) else None


def _data(answer: httpx2.Response) -> Mapping[str, Any]:
    data = _answered(answer)
    return data if isinstance(data, dict) else {}


def _list(answer: httpx2.Response) -> list[Any]:
    data = _answered(answer)
    return data if isinstance(data, list) else []


def _files(result: object) -> list[str]:
    """Where the songs lie. `result` is JSON within JSON."""
    try:
        songs = json.loads(result) if isinstance(result, str) else result
    except ValueError:
        songs = None
    if not isinstance(songs, list):
        raise Failed(EngineFailure("the provider's result is no list of songs"))
    return [str(song["file"]) for song in songs if isinstance(song, dict) and song.get("file")]
