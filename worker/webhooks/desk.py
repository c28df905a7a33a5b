"""What people do with endpoints: each verb of `fermata webhooks`, and each button of the dashboard, is one of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from worker.store.creations import Asked
from worker.store.errors import Refused
from worker.store.webhooks import Webhooks
from worker.webhooks.events import check_events
from worker.webhooks.message import secret_of, trial_message
from worker.webhooks.sender import Answer, Sender
from worker.webhooks.targets import ForbiddenTarget, check_url


@dataclass(frozen=True, slots=True)
class WebhookMade:
    """A new endpoint. The secret is not kept where anybody could read it again.

    `replayed`: the same request had made it before. No secret: too long ago to be told it again.
    """

    webhook: UUID
    url: str
    account: str | None
    events: Sequence[str]
    secret: str | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class WebhookDesk:
    """Endpoints, as people make and try them."""

    webhooks: Webhooks
    make_sender: Callable[[], Sender]
    private_too: bool

    async def create(
        self, url: str, account_id: str | None, events: Sequence[str], actor: str, asked: Asked | None = None
    ) -> WebhookMade:
        """Tell an endpoint of what happens from now on; of `events` only, where some are named. Once a request.

        Raises `Refused` for a URL that may not be called or an event that there is not, `UnknownAccount`, `Conflict`.
        """
        check_events(events)
        try:
            check_url(url, private_too=self.private_too)
        except ForbiddenTarget as error:
            raise Refused("url", str(error)) from None
        wanted = sorted(set(events))
        webhook_id, secret, replayed = await self.webhooks.create(url, secret_of, account_id, wanted, actor, asked)
        return WebhookMade(webhook_id, url, account_id, wanted, secret, replayed)

    async def try_out(self, webhook_id: UUID) -> Answer:
        """Send a signed `test` event now, once. Raises `UnknownWebhook`."""
        target = await self.webhooks.target(webhook_id)
        sender = self.make_sender()
        try:
            return await sender.send(target, trial_message(datetime.now(UTC)))
        finally:
            await sender.close()
