"""What the API forgets: tokens and requests of long ago. The scheduler's role may not touch keys."""

from __future__ import annotations

import asyncio
from itertools import count

import structlog

from worker.store.api_keys import ApiKeys
from worker.store.creations import CREATIONS_KEPT_SECONDS, EVER_SECONDS, Creations
from worker.store.errors import StoreError

log = structlog.get_logger(__name__)

#: Seconds between two looks: so much later than promised a secret that was made can still be derived, at most.
#: Several processes may look; what one has deleted is gone for all.
EVERY_SECONDS = 60.0
#: Every so many looks also for tokens, which no index finds by their end, and for salts back to the beginning: whoever
#: stood still for long, with its machine, has missed some.
SELDOM_EVERY = 60
#: Seconds that the other looks go back for salts: no row is read each minute for a month.
_SALTS_WITHIN_SECONDS = 7_200.0
#: Seconds for which a customer's token that closed is still known, for whoever reads the log.
TOKEN_KEPT_SECONDS = 7 * 86_400.0


async def keep_house(keys: ApiKeys, creations: Creations) -> None:
    """Forget at the start and every minute, until cancelled. If it fails, the next time will do it."""
    within = EVER_SECONDS
    for look in count():
        seldom = look % SELDOM_EVERY == 0
        try:
            requests = await creations.forget(CREATIONS_KEPT_SECONDS, EVER_SECONDS if seldom else within)
            within = _SALTS_WITHIN_SECONDS
            tokens = await keys.forget_tokens(TOKEN_KEPT_SECONDS) if seldom else 0
        except StoreError as error:
            within = EVER_SECONDS
            log.warning("old tokens and requests are not forgotten", error=str(error))
        else:
            if requests or tokens:
                log.info("old tokens and requests forgotten", tokens=tokens, requests=requests)
        await asyncio.sleep(EVERY_SECONDS)
