"""What the adapters have in common: one provider, work that goes on elsewhere, results that are fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.engines.contract import Commission
from tasks.engines.remote.failures import Again
from tasks.engines.remote.provider import Gone, Provider, ProviderOptions
from tasks.engines.remote.reaching import Forbidden
from tasks.engines.remote.results import FETCHED, take_over
from tasks.kind import Context, EngineError, EngineFailure, QualityGate, RunLimits

#: Seconds that a provider gets to be told of a cancel: the customer's is over within 2.
CANCEL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Made:
    """What a provider has made: where its results lie, in the order of the commission's names."""

    urls: Sequence[str]
    measures: Mapping[str, str]


class Remote:
    """An engine behind HTTP. Subclasses say how work is ordered, looked at and called off.

    What was ordered is remembered in the job's `engine_state` before anybody looks at it. So it is ordered once,
    whoever runs the next attempt: that one looks, and fetches. Only what failed over there is ordered again.
    """

    deterministic: ClassVar[bool] = False

    def __init__(self, name: str, options: ProviderOptions) -> None:
        self.name = name
        self.options = options
        self.provider = Provider(name, options)

    def prepare(self) -> None:
        self.provider.prepare()

    async def close(self) -> None:
        await self.provider.close()

    async def order(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """See to it that the work is under way; returns the state that finds it again, which it has remembered."""
        raise NotImplementedError

    async def look(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Made | None:
        """What was made, or None while it is under way. Raises `Failed` if it never will be."""
        raise NotImplementedError

    async def noted(self, context: Context, state: Mapping[str, Any], made: Made) -> Mapping[str, Any]:
        """The state, once its work was seen to be done: what helps to find the results again has been remembered."""
        return state

    @property
    def renews_links(self) -> bool:
        """Whether another look at finished work gives fresh links to its results, rather than having it made anew."""
        return True

    async def call_off(self, state: Mapping[str, Any]) -> None:
        """Tell the provider that nobody wants it any more."""

    async def forget(self, state: Mapping[str, Any]) -> None:
        """Call off what an attempt ordered here, unless it was seen to be done."""
        if (own := self._own(state)) and "urls" not in own:
            await self._called_off(own)

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        """Order it unless an earlier attempt did, wait for it, fetch it, hand it over."""
        state: Mapping[str, Any] = {}
        try:
            state = await self.order(commission, context, self._own(context.engine_state))
            files, made = await self._fetched(commission, context, state)
            await take_over(commission, files, context, limits, made.measures, self.options.result_bytes_max)
        except Failed as failed:
            # Another attempt must not be given the same failure again.
            await context.remember({"engine": self.name, "round": round_of(state or context.engine_state) + 1})
            raise failed.error from None
        except QualityGate:
            await context.remember({"engine": self.name, "round": round_of(state) + 1})
            raise
        except asyncio.CancelledError:
            if context.abandoned and (state := state or self._own(context.engine_state)):
                await self._called_off(state)
            raise

    async def _fetched(
        self, commission: Commission, context: Context, state: Mapping[str, Any]
    ) -> tuple[list[Path], Made]:
        """The results as files. Links may have gone stale while we were away, so they are asked for once more."""
        for last in (False, True) if self.renews_links else (True,):
            made = await self._wait(commission, context, state)
            if len(made.urls) != len(commission.names):
                asked, came = len(commission.names), len(made.urls)
                raise Failed(
                    QualityGate(
                        f"{self.name} made {came} of the {asked} outputs that were asked",
                        {"outputs_asked": str(asked), "outputs_came": str(came)},
                    )
                )
            state = await self.noted(context, state, made)
            try:
                return [await self._fetch(context, n, url) for n, url in enumerate(made.urls)], made
            except Gone:
                if last:
                    raise EngineError(f"{self.name} no longer has the result") from None
        raise AssertionError("the last try returns or raises")

    async def _fetch(self, context: Context, number: int, url: str) -> Path:
        context.progress(FETCHED - 0.1 / (1 + number), "fetching")
        target = context.workdir / f"result-{number}"
        await self.provider.fetch(url, target)
        return target

    async def _wait(self, commission: Commission, context: Context, state: Mapping[str, Any]) -> Made:
        while True:
            made = await self.look(commission, context, state)
            if made is not None:
                return made
            await context.pause(self.options.poll_seconds)

    async def _called_off(self, state: Mapping[str, Any]) -> None:
        with suppress(TimeoutError, Again, EngineError, Forbidden):
            async with asyncio.timeout(CANCEL_SECONDS):
                await self.call_off(state)

    def _own(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an earlier attempt remembered, if it asked the same engine."""
        return state if state.get("engine") == self.name else {}


class Failed(Exception):
    """The provider's work came to nothing: the next attempt has to order it anew. `error`: how this one ends."""

    def __init__(self, error: EngineFailure) -> None:
        super().__init__(error.message)
        self.error = error


def round_of(state: Mapping[str, Any]) -> int:
    """How often the work came to nothing before."""
    found = state.get("round", 0)
    return found if isinstance(found, int) else 0
