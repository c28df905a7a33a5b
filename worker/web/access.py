"""Who may do what: one table of permissions by role, and the one place where a request becomes a caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from worker.store.api_keys import KeyShown, Role, hash_of, within
from worker.store.errors import UnknownAccount, UnknownJob
from worker.web.problems import Problem
from worker.web.services import Services, services_of


class May(StrEnum):
    """What a route asks of a key."""

    SUBMIT = "submit"  # jobs and their inputs
    CANCEL = "cancel"
    LOOK_AT_JOBS = "look_at_jobs"  # receipts and audio too
    QUOTE = "quote"
    OPEN_ACCOUNTS = "open_accounts"
    LOOK_AT_ACCOUNTS = "look_at_accounts"  # balance and journal
    CREDIT = "credit"  # subscriptions, top-ups, grants, chargebacks
    COMPENSATE = "compensate"
    LOOK_AT_PLANS = "look_at_plans"  # what is sold
    LOOK_AT_PRICES = "look_at_prices"  # the books: planned ones too, and who wrote what to which
    SET_PRICES = "set_prices"
    REVIEW_PRICES = "review_prices"  # what they did to all accounts
    MEND_PRICES = "mend_prices"  # give back what a wrong book took
    LOOK_AT_VOICES = "look_at_voices"
    SET_VOICES = "set_voices"
    LOOK_AT_QUEUES = "look_at_queues"
    STEER = "steer"  # pause and resume
    MINT = "mint"  # customers' tokens
    RULE = "rule"  # keys
    LOOK_AT_LOG = "look_at_log"
    TELL = "tell"  # webhooks


_EVERYONE = frozenset(Role)
_STAFF = frozenset({Role.OPS, Role.ADMIN})

#: The whole of it. What stands nowhere is forbidden.
PERMISSIONS: Mapping[May, frozenset[Role]] = {
    May.SUBMIT: frozenset({Role.PIPELINE, Role.ADMIN}),
    May.CANCEL: frozenset({Role.PIPELINE}) | _STAFF,
    May.LOOK_AT_JOBS: frozenset({Role.PIPELINE, Role.VIEWER, Role.CUSTOMER}) | _STAFF,
    May.QUOTE: _EVERYONE,
    May.OPEN_ACCOUNTS: frozenset({Role.PIPELINE, Role.BILLING, Role.ADMIN}),
    May.LOOK_AT_ACCOUNTS: _EVERYONE - {Role.PRODUCT},
    May.CREDIT: frozenset({Role.BILLING, Role.ADMIN}),
    May.COMPENSATE: frozenset({Role.BILLING}) | _STAFF,
    May.LOOK_AT_PLANS: _EVERYONE,
    May.LOOK_AT_PRICES: _EVERYONE - {Role.CUSTOMER},
    May.SET_PRICES: frozenset({Role.PRODUCT, Role.ADMIN}),
    May.REVIEW_PRICES: frozenset({Role.PRODUCT, Role.VIEWER}) | _STAFF,
    May.MEND_PRICES: frozenset({Role.BILLING, Role.ADMIN}),
    May.LOOK_AT_VOICES: _EVERYONE - {Role.CUSTOMER, Role.BILLING},
    May.SET_VOICES: frozenset({Role.PRODUCT, Role.ADMIN}),
    May.LOOK_AT_QUEUES: frozenset({Role.PIPELINE, Role.VIEWER, Role.PRODUCT}) | _STAFF,
    May.STEER: _STAFF,
    May.MINT: frozenset({Role.PIPELINE, Role.BILLING, Role.ADMIN}),
    May.RULE: frozenset({Role.ADMIN}),
    May.LOOK_AT_LOG: _STAFF,
    May.TELL: _STAFF,
}

#: What touches every account at once: no key that is bound to some accounts may do it, whatever its role.
_OF_ALL_ACCOUNTS = frozenset(
    {
        *(May.RULE, May.LOOK_AT_LOG, May.TELL, May.STEER),
        *(May.SET_PRICES, May.REVIEW_PRICES, May.MEND_PRICES, May.SET_VOICES),
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds the key of this request."""

    key: KeyShown
    #: The hash of its secret, for who looks again whether it opens.
    digest: bytes = b""

    @property
    def actor(self) -> str:
        """As journal, jobs and the log name it."""
        return f"key:{self.key.prefix}"

    @property
    def bound(self) -> bool:
        """Whether it may know of some accounts only."""
        return self.key.account is not None or self.key.account_prefix is not None

    def covers(self, account_id: str) -> bool:
        """Whether it may know of this account."""
        if self.key.account is not None:
            return account_id == self.key.account
        return self.key.account_prefix is None or within(self.key.account_prefix, account_id)

    def check(self, account_id: str) -> None:
        """Raises `UnknownAccount` for an account of others, just as for one that is not there."""
        if not self.covers(account_id):
            raise UnknownAccount(account_id)


_NO_KEY = "a valid key is required: `Authorization: Bearer fmt_…`"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True, slots=True)
class Allowed:
    """The dependency of a route that needs a permission. Raises `Problem` 401, 403 or 429."""

    needed: May

    async def __call__(self, request: Request) -> Caller:
        """Whom `admit` let in, before the body was read. A coroutine that awaits nothing: else it would cost a thread.

        That a key is needed stands in the OpenAPI document by `app`: FastAPI's own way of saying so would be one more
        dependency to solve, request by request.
        """
        caller: Caller = request.state.caller
        return caller

    async def admit(self, request: Request) -> None:
        """Let the request in, or raise."""
        services = services_of(request)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer"
        key = await services.strangers.opening(secret, address_of(request)) if bearer else None
        if key is None:
            raise Problem(401, _NO_KEY, headers=_CHALLENGE)
        await services.rates.check(key)
        if key.role not in PERMISSIONS[self.needed]:
            raise Problem(403, f"a key of the role {key.role} may not do this")
        caller = Caller(key, hash_of(secret))
        if caller.bound and self.needed in _OF_ALL_ACCOUNTS:
            raise Problem(403, "a key that is bound to some accounts may not do what touches all of them")
        request.state.caller = caller


async def check_job(services: Services, caller: Caller, job_id: UUID) -> None:
    """Raises `UnknownJob` for a job of others after the very look that tells of one that is not there: neither the
    answer nor the time that it takes says which of them it is.
    """
    if caller.bound:
        account = await services.reads.account_of(job_id)
        if account is None or not caller.covers(account):
            raise UnknownJob(job_id)


async def still_open(services: Services, caller: Caller) -> None:
    """Whoever was let in long ago is let go on only while the key opens. Raises `Problem` 401."""
    if await services.keyring.opening_by(caller.digest) is None:
        raise Problem(401, _NO_KEY, headers=_CHALLENGE)


def address_of(request: HTTPConnection) -> str:
    """Where it comes from: the proxy's word for it, where FORWARDED_ALLOW_IPS trusts the proxy."""
    return request.client.host if request.client else "unknown"


def allowed(needed: May) -> Any:
    """`caller: Annotated[Caller, allowed(May.SUBMIT)]`"""
    return Depends(Allowed(needed))
