"""What the routes of one API process work with. Made by `worker.boot`, handed over by the application's state."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import HTTPConnection

from config.settings import Settings
from worker.client import Client
from worker.links import Links
from worker.metrics import Metrics
from worker.price_desk import PriceDesk
from worker.steering import Steering
from worker.store.accounts import Accounts
from worker.store.api_keys import ApiKeys
from worker.store.audit_log import AuditLog
from worker.store.compensations import Compensations
from worker.store.creations import Creations
from worker.store.limits import Limits
from worker.store.nudges import Nudges
from worker.store.ops import Controls
from worker.store.reads import Reads
from worker.store.reads_artifacts import ArtifactReads
from worker.store.reads_following import FollowingReads
from worker.store.voices import Voices
from worker.web.depths import Depths
from worker.web.keyring import Keyring
from worker.web.pace import Rates, Strangers
from worker.web.watching import Watcher
from worker.webhooks.desk import WebhookDesk


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may call."""

    settings: Settings
    client: Client
    reads: Reads
    accounts: Accounts
    artifacts: ArtifactReads
    compensations: Compensations
    controls: Controls
    limits: Limits
    voices: Voices
    steering: Steering
    prices: PriceDesk
    keys: ApiKeys
    creations: Creations
    log: AuditLog
    webhooks: WebhookDesk
    keyring: Keyring
    rates: Rates
    strangers: Strangers
    depths: Depths
    following: FollowingReads
    watcher: Watcher
    #: None: providers don't come here.
    links: Links | None
    nudges: Nudges
    #: So many files are measured at a time.
    uploads: asyncio.Semaphore
    #: For `/readyz`.
    engine: Any
    metrics: Metrics


def services_of(request: HTTPConnection) -> Services:
    """The services of the process that answers this request."""
    return cast("Services", request.app.state.services)
