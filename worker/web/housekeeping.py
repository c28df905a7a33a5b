"""What the API forgets: tokens and requests of long ago. The scheduler's role may not touch keys."""

from __future__ import annotations

import asyncio

import structlog

from worker.store.api_keys import ApiKeys
from worker.store.creations import CREATIONS_KEPT_SECONDS, Creations
from worker.store.errors import StoreError

log = structlog.get_logger(__name__)

#: Seconds between two looks. Several processes may look; what one has deleted is gone for all.
_EVERY_SECONDS = 3600.0
#: Seconds for which a customer's token that closed is still known, for whoever reads the log.
TOKEN_KEPT_SECONDS = 7 * 86_400.0


async def keep_house(keys: ApiKeys, creations: Creations) -> None:
    """Forget at the start and every hour, until cancelled. If it fails, the next time will do it."""
    while True:
        try:
            tokens = await keys.forget_tokens(TOKEN_KEPT_SECONDS)
            requests = await creations.forget(CREATIONS_KEPT_SECONDS)
        except StoreError as error:
            log.warning("old tokens and requests are not forgotten", error=str(error))
        else:
            log.info("old tokens and requests forgotten", tokens=tokens, requests=requests)
        await asyncio.sleep(_EVERY_SECONDS)
