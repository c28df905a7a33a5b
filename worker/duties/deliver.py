"""Deliver: tell endpoints of events. No connection to the books is held while something is being sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import random
from uuid import UUID

import structlog

from config.settings import Settings
from worker.failpoints import failpoint
from worker.store.errors import StoreError
from worker.store.webhooks import Sending, Webhooks
from worker.webhooks.message import message_of, wait_seconds_for
from worker.webhooks.sender import CONNECTIONS_MAX, Answer, Sender

log = structlog.get_logger(__name__)

#: Under way at a time to one endpoint: a slow one takes this much of our room and no more.
_EACH_MAX = 8
#: Until the next look while something is under way: what waits for it is due the moment it has ended.
_BUSY_WAIT_SECONDS = 0.1
#: Beyond the time for an answer, until a sender that says nothing is given up.
_MARGIN_SECONDS = 30.0


@dataclass(slots=True)
class Deliver:
    """The deliver duty. Any number of schedulers may run it: each event is held by one of them at a time."""

    webhooks: Webhooks
    sender: Sender
    settings: Settings
    _tasks: dict[asyncio.Task[None], UUID] = field(default_factory=dict)

    name = "deliver"

    @property
    def tick_seconds(self) -> float:
        return self.settings.deliver_tick_seconds

    async def run(self) -> float:
        """Start to tell what is due, as far as there is room."""
        room = CONNECTIONS_MAX - len(self._tasks)
        if room > 0:
            busy = Counter(self._tasks.values())
            full = [webhook_id for webhook_id, count in busy.items() if count >= _EACH_MAX]
            lease_seconds = self.settings.webhook_timeout_seconds + _MARGIN_SECONDS
            for sending in await self.webhooks.claim(_EACH_MAX, room, full, lease_seconds):
                task = asyncio.create_task(self._tell(sending), name=f"deliver {sending.seq}")
                self._tasks[task] = sending.target.webhook_id
                task.add_done_callback(self._tasks.pop)
        return _BUSY_WAIT_SECONDS if self._tasks else self.tick_seconds

    async def close(self) -> None:
        """Break off what is under way: it is told again by whoever comes next, once its lease is over."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, sending: Sending) -> None:
        about = {"webhook": str(sending.target.webhook_id), "seq": sending.seq, "attempt": sending.attempts}
        try:
            failpoint("deliver.claimed")
            if sending.facts is None:
                await self.webhooks.failed(sending, None, "the event is not kept any more", None)
                return
            answer = await self.sender.send(sending.target, message_of(sending))
            failpoint("deliver.sent")
            await self._note(sending, answer)
            log.info("told" if answer.taken else "not told", status=answer.status, error=answer.error, **about)
        except StoreError as error:
            # Held until its lease is over, then told again: twice is allowed, never is not.
            log.warning("not noted, it will be told again", error=str(error), **about)
        except Exception:
            log.exception("delivery failed", **about)

    async def _note(self, sending: Sending, answer: Answer) -> None:
        if answer.taken and answer.status is not None:
            await self.webhooks.delivered(sending, answer.status)
            return
        if answer.gone:
            await self.webhooks.close(sending.target.webhook_id)
        await self.webhooks.failed(sending, answer.status, answer.error or "", self._wait_for(sending, answer))

    def _wait_for(self, sending: Sending, answer: Answer) -> float | None:
        settings = self.settings
        wait = wait_seconds_for(
            sending.attempts,
            settings.webhook_backoff_first_seconds,
            settings.webhook_backoff_max_seconds,
            settings.webhook_attempts_max,
        )
        if wait is None or answer.gone:
            return None
        spread = wait * (0.8 + 0.4 * random())  # noqa: S311  spreads retries, guards nothing
        return max(spread, answer.retry_after or 0.0)
