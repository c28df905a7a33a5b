"""Models behind Cog's HTTP interface, and services that speak it (Replicate's own among them).

`PUT /predictions/ID` with an id of ours: asked twice while it runs, it is one prediction. Cog, docs/http.md.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx2
import structlog
from pydantic import Field

from tasks.engines.contract import Commission, Link
from tasks.engines.offer import Options
from tasks.engines.remote.engine import Failed, Made, Remote, round_of
from tasks.engines.remote.failures import Away, Busy
from tasks.engines.remote.provider import Gone, ProviderOptions, json_of
from tasks.finish import FIELDS
from tasks.kind import Context, EngineError, EngineFailure, RefusedRequest, field_of

log = structlog.get_logger(__name__)

#: Fields of a request that say how the result is written, which is our doing, or which tier it is.
OURS = FIELDS | {"model", "seconds_max"}
#: What /health-check says of a model that will answer soon, and of one that will.
STARTING, WELL = frozenset({"STARTING"}), frozenset({"READY", "BUSY"})
#: Seconds that a held request may take beyond all patience; the job's own limits end it before.
HOLD_SECONDS = 86_400.0
#: Characters of a result's link that is remembered.
URL_MAX = 4000
#: A measured time beyond this is none.
PREDICT_SECONDS_MAX = 10**7


class CogOptions(ProviderOptions):
    """What the document says of a model behind Cog."""

    #: poll: `Prefer: respond-async`, then `GET /predictions/ID`. hold: plain Cog knows no GET, so the PUT is held
    #: until the prediction is done, and asked again with the same id if the connection breaks.
    wait: Literal["poll", "hold"] = "poll"
    #: The model's input names, each with the request field or input that it is given; all by their own names if empty.
    fields: dict[str, str] = Field(default_factory=dict)
    #: Further inputs of the model that are always the same.
    constants: dict[str, Any] = Field(default_factory=dict)
    #: Whether the model sings lyrics.
    sings: bool = False
    #: data: inputs go along as `data:` URLs, up to `upload_bytes_max` together. url: by a signed link that holds for
    #: as long as an attempt, to the bucket that they lie in or to our API.
    inputs: Literal["data", "url"] = "data"
    upload_bytes_max: int = Field(64 * 1024**2, ge=1024)
    #: Whether the provider is asked to say when it is done. We look at once then, and as often as ever.
    webhook: bool = False


class Cog(Remote):
    """A model behind Cog's HTTP interface."""

    Options: ClassVar[type[Options]] = CogOptions
    kinds: ClassVar[frozenset[str]] = frozenset({"generation", "vocal_conversion", "stem_split"})

    options: CogOptions

    def __init__(self, name: str, options: CogOptions) -> None:
        if options.webhook and options.wait == "hold":
            raise ValueError('webhook: goes with wait = "poll" only: a held request brings the result itself')
        super().__init__(name, options)
        self.provider.probe = self._probe

    @property
    def links(self) -> frozenset[Link]:
        """What its provider must be given."""
        wanted = {Link.COMPLETION: self.options.webhook, Link.INPUT: self.options.inputs == "url"}
        return frozenset(link for link, asked in wanted.items() if asked)

    def check(self, kind: str, request: Any) -> None:
        if not self.options.sings and field_of(request, "lyrics") is not None:
            raise RefusedRequest("lyrics", "are not sung by this engine. Leave the field out")

    async def order(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Mapping[str, Any]:
        if "prediction" not in state:
            rounds = round_of(state)
            prediction = str(context.job_id) + (f"-{rounds}" if rounds else "")
            state = {"engine": self.name, "round": rounds, "prediction": prediction}
            # Before it is asked for: the id is ours, so whoever comes next finds it in any case.
            await context.remember(state)
            if self.options.wait == "poll":
                await self._put(commission, context, state)
        context.progress(0.05, "ordered")
        return state

    async def look(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Made | None:
        known = Made(state["urls"], state["measures"]) if "urls" in state else None
        if self.options.wait == "hold":
            if known is not None:
                return known
            answer = await self._put(commission, context, state)
        else:
            try:
                answer = await self.provider.ask("GET", f"/predictions/{state['prediction']}")
            except Gone:
                if known is not None:
                    return known  # forgotten over there since: it is fetched, if it still lies there, never made again
                answer = await self._put(commission, context, state)  # it never came there, or a restart lost it
        found = _object(answer)
        status = found.get("status")
        if status in ("starting", "processing"):
            context.progress(0.1 if status == "starting" else 0.3, status)
            return None
        if status == "succeeded":
            return Made(_urls(found.get("output"), commission.names), _measures(found))
        log.error("prediction_failed", provider=self.name, status=status, error=str(found.get("error"))[:500])
        raise Failed(EngineFailure(f"{self.name} could not make it"))

    async def noted(self, context: Context, state: Mapping[str, Any], made: Made) -> Mapping[str, Any]:
        """With where its results lie: plain Cog forgets it at once, a service some day or by a restart."""
        if state.get("urls") == made.urls or not all(map(_is_short, made.urls)):
            return state
        state = {**state, "urls": made.urls, "measures": made.measures}
        await context.remember(state)
        return state

    @property
    def renews_links(self) -> bool:
        return self.options.wait == "poll"

    async def call_off(self, state: Mapping[str, Any]) -> None:
        if "prediction" in state:  # else it came to nothing there, and was not ordered again
            await self.provider.ask_once("POST", f"/predictions/{state['prediction']}/cancel")

    async def _put(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> httpx2.Response:
        body: dict[str, Any] = {"input": self._input(commission, await self._audio(commission, context))}
        if self.options.webhook:
            body |= {"webhook": context.completion_url(), "webhook_events_filter": ["completed"]}
        headers = {"Prefer": "respond-async"} if self.options.wait == "poll" else {}
        hold = HOLD_SECONDS if self.options.wait == "hold" else None
        return await self.provider.ask(
            "PUT", f"/predictions/{state['prediction']}", body=body, headers=headers, timeout_seconds=hold
        )

    async def _audio(self, commission: Commission, context: Context) -> dict[str, str | None]:
        """The URL of each input."""
        if self.options.inputs == "url":
            return {name: await context.input_url(name) for name in commission.inputs}
        size = sum(file.path.stat().st_size for file in commission.inputs.values())
        if size > self.options.upload_bytes_max:
            raise EngineError(f"{self.name} takes at most {self.options.upload_bytes_max} bytes of audio; it is {size}")
        return {name: await asyncio.to_thread(_data_url, file.path) for name, file in commission.inputs.items()}

    def _input(self, commission: Commission, audio: Mapping[str, str | None]) -> dict[str, Any]:
        """The model's input: the request's fields, and audio by its URLs."""
        request = commission.request.model_dump(mode="json", exclude_none=True)
        given = {name: value for name, value in request.items() if name not in OURS}
        given |= {"seconds": float(commission.asked[0].seconds_out), **audio}
        if self.options.fields:
            given = {theirs: given[ours] for theirs, ours in self.options.fields.items() if ours in given}
        return {**given, **self.options.constants}

    async def _probe(self) -> None:
        """Whether it is well again, before a job's request goes there."""
        try:
            status = str(_object(await self.provider.ask_once("GET", "/health-check")).get("status"))
        except Gone:
            return  # a service that speaks Cog but has no such thing
        except Failed:
            raise Away("says nothing of its health") from None
        if status in STARTING:
            raise Busy("is starting")
        if status not in WELL:
            raise Away(f"is {status[:40]}")


def _data_url(path: Path) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()


def _is_short(url: str) -> bool:
    """Whether it is a link that can be remembered, and no `data:` URL."""
    return len(url) <= URL_MAX and url.isprintable() and not url.startswith("data:")


def _object(answer: httpx2.Response) -> Mapping[str, Any]:
    found = json_of(answer)
    if not isinstance(found, dict):
        raise Failed(EngineFailure("the provider answered with something that is no object"))
    return found


def _urls(output: object, names: tuple[str, ...]) -> list[str]:
    """Where the outputs lie: one URL, a list in the order of the names, or an object by names."""
    if isinstance(output, str):
        return [output]
    if isinstance(output, dict):
        return [str(output[name]) for name in names if output.get(name)]
    return [str(url) for url in output] if isinstance(output, list) else []


def _measures(prediction: Mapping[str, Any]) -> dict[str, str]:
    """What the provider measured of its own work."""
    metrics = prediction.get("metrics")
    seconds = metrics.get("predict_time") if isinstance(metrics, dict) else None
    plausible = isinstance(seconds, int | float) and 0 <= seconds < PREDICT_SECONDS_MAX
    return {"predict_seconds": f"{seconds:.3f}"} if plausible else {}
