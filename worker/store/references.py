"""What callers call things by: accounts, purchases, steps, and themselves."""

from __future__ import annotations

import re

from worker.credits.lots import ACCOUNT_ID, CREDITS_MAX
from worker.store.errors import Refused
from worker.store.texts import ACTOR_LENGTH_MAX, is_line

REFERENCE_LENGTH_MAX = 255
_ACCOUNT_ID = re.compile(ACCOUNT_ID)


def check_account_id(account_id: str) -> None:
    """Raises `Refused` unless it is what an account may be called. The schema repeats it."""
    if not isinstance(account_id, str) or not _ACCOUNT_ID.fullmatch(account_id):
        raise Refused("account", "an id has 1 to 128 letters, digits or . _ : @ / -, and starts with a letter or digit")


def check_amount(field: str, amount: int) -> None:
    """Raises `Refused` unless it is a whole number of 1 to 10^12 credits."""
    if isinstance(amount, bool) or not isinstance(amount, int) or not 1 <= amount <= CREDITS_MAX:
        raise Refused(field, f"must be a whole number from 1 to {CREDITS_MAX:,}")


def check_reference(reference: str) -> None:
    """Raises `Refused` unless it can name a purchase, a grant or a job."""
    if not is_line(reference, REFERENCE_LENGTH_MAX):
        raise Refused("reference", f"must be 1 to {REFERENCE_LENGTH_MAX} printable characters")


def check_actor(actor: str) -> None:
    """Raises `Refused` unless it can say who did something."""
    if not is_line(actor, ACTOR_LENGTH_MAX):
        raise Refused("actor", f"must be 1 to {ACTOR_LENGTH_MAX} printable characters on one line")
