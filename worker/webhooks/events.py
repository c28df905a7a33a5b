"""What endpoints can be told of: each event's name, and what its `data` holds. Only ever added to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.credits.notices import What
from worker.store.errors import Refused

#: In the order in which people ask for them.
EVENTS: Mapping[str, str] = {
    "ended": "a job ended, however: `job`, `key`, `state`, `kind`, `queue`, `reason`, `charged`, `partial`, `message`, "
    "`metadata`, `outputs`",
    What.BALANCE_LOW.value: "a spend went below the account's warning: `spendable`, `threshold`",
    What.CREDITS_EXPIRING.value: "credits expire soon: `credits`, `source`, `expires_at`, `lot`",
    What.TOPUP_FROZEN.value: "the subscription lapsed, bought credits are frozen: `credits`, `lot`",
    What.CYCLE_RENEWED.value: "a new cycle began: `plan`, `credits`, `ends_at`",
    "paused": "the account's jobs were paused: `reason`, `actor`",
    "resumed": "the account's jobs run again: `reason`, `actor`",
}


def check_events(names: Iterable[str]) -> None:
    """Raises `Refused` for a name that nothing here will ever be told by: a misspelt one waits in vain."""
    for name in names:
        if name not in EVENTS:
            shown = "".join(sign if sign.isprintable() else "?" for sign in name[:64])
            raise Refused("events", f"no event {shown!r}; there are {', '.join(EVENTS)}")
