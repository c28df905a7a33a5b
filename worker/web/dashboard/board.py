"""What the pages stand on: the services of the API, and what only people need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from worker.store.reads_account_lists import AccountListReads
from worker.store.reads_events import EventReads
from worker.store.reads_overview import OverviewReads
from worker.store.sessions import Sessions
from worker.store.upkeep import Upkeep
from worker.web.dashboard.guests import Guests
from worker.web.dashboard.live import Live
from worker.web.dashboard.pictures import Pictures
from worker.web.services import Services
from worker.webhooks.desk import WebhookDesk


@dataclass(frozen=True, slots=True)
class Board:
    """The dashboard's services. `services` are those of the routes: one function does a thing, whoever asks for it."""

    services: Services
    lists: AccountListReads
    overview: OverviewReads
    sessions: Sessions
    upkeep: Upkeep
    events: EventReads
    webhooks: WebhookDesk
    live: Live
    guests: Guests
    pictures: Pictures


def board_of(request: Request) -> Board:
    """The board of the process that answers this request."""
    return cast("Board", request.app.state.board)
