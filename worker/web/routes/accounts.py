"""`/v1/accounts`: who has credits, and where they come from. External billing reports here what was paid."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from worker.credits.lots import CREDITS_MAX
from worker.store.limits import AS_PLANNED, AccountLimits
from worker.store.ops import RUNNING_MAX_MAX
from worker.store.purchases import ChargedBack, Credited
from worker.store.reads_accounts import Balance, JournalPage
from worker.store.reads_events import EventsPage
from worker.store.subscriptions import Subscribed
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountPath, Behind, Body, Credits, IdempotencyKey, Instant, Limit, Line
from worker.web.once import asked
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1/accounts", tags=["accounts"], route_class=StrictRoute)

Opener = Annotated[Caller, allowed(May.OPEN_ACCOUNTS)]
Looker = Annotated[Caller, allowed(May.LOOK_AT_ACCOUNTS)]
Biller = Annotated[Caller, allowed(May.CREDIT)]
Steerer = Annotated[Caller, allowed(May.STEER)]
Minter = Annotated[Caller, allowed(May.MINT)]

_CHANGES = responses(400, 404, 409, 413, 415, 422)
_MADE: dict[int | str, dict[str, Any]] = {201: {"description": "It was made now."}}


class AccountAnswer(BaseModel):
    account: str
    created: bool


class SubscribeBody(Body):
    """`external`: each further month waits for `renewed`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"plan": "starter"}]})

    plan: str = Field(min_length=1, max_length=64)
    renewal: Literal["automatic", "external"] = "automatic"
    grace_days: int = Field(0, ge=0, le=365, description="With external renewal: so long a payment may be late.")


class ChangeBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"plan": "creator"}]})

    plan: str = Field(min_length=1, max_length=64)


class SubscriptionCancelBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"at_once": False}]})

    at_once: bool = Field(False, description="By default it runs to the end of the month that is paid for.")


class ResumeBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"plan": "starter"}]})

    plan: str | None = Field(None, min_length=1, max_length=64, description="Another one. Default: as it was.")


class TopupBody(Body):
    """A purchase: a pack or a number of credits."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pack": "small"}, {"credits": 500}]})

    pack: str | None = Field(None, min_length=1, max_length=64)
    credits: Credits | None = None


class GrantBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"credits": 50, "note": "sorry for the wait"}]})

    credits: Credits
    expires_at: Instant | None = Field(None, description="When they end. Default: never.")
    note: Line | None = Field(None, description="Why, for the books.")


class LimitsBody(Body):
    """What is left out, or null, stays as it is; `plan`: as the plan has it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"running_max": 4, "warn_below": "plan"}]})

    running_max: Annotated[int, Field(ge=1, le=RUNNING_MAX_MAX)] | Literal["plan"] | None = Field(
        None, description="Jobs at a time."
    )
    warn_below: Annotated[int, Field(ge=0, le=CREDITS_MAX)] | Literal["plan"] | None = Field(
        None, description="Told once when fewer credits are spendable; 0: never."
    )


class SubscribedAnswer(BaseModel):
    """The subscription after the step. `credits`: what the step brought.

    `given_up_from`, `given_up_until`: months paid for ahead that an end at once gave up; also told by the step that
    comes back after it.
    """

    account: str
    plan: str
    credits: int
    cycle_ends_at: datetime
    reference: str
    replayed: bool
    next_plan: str | None
    active_until: datetime | None
    next_refill_at: datetime | None
    given_up_from: datetime | None
    given_up_until: datetime | None


class CreditedAnswer(BaseModel):
    """`paid_debt`: of these, what paid a debt. `frozen`: a top-up that can't be spent, having no active subscription.

    `frozen_from`: since when, or from when if the subscription does not go on. `frozen_until`: when it expires if none
    has gone on by then. Both null: nothing ends, or nobody has subscribed yet. As it stands when it is asked.
    """

    account: str
    credits: int
    expires_at: datetime | None
    reference: str
    replayed: bool
    paid_debt: int
    frozen: bool
    frozen_from: datetime | None
    frozen_until: datetime | None
    book: int | None = Field(None, description="Of a pack: the plan book that it was credited by.")
    still_sold: bool | None = Field(None, description="False: that pack is sold no more; it is credited as sold last.")


class ChargebackBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reference": "order-77"}]})

    reference: str = Field(min_length=1, max_length=255, description="The purchase: the key it was credited under.")


class ChargedBackAnswer(BaseModel):
    """`revoked`: what was still there; `held`: what is owed if its job spends it; `owed`: what was spent."""

    account: str
    reference: str
    revoked: int
    held: int
    owed: int
    replayed: bool


class TokenBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"seconds": 900}]})

    seconds: int = Field(900, ge=60, le=86_400, description="For so long it opens.")


class TokenAnswer(BaseModel):
    """A customer's token, shown this once: balance, journal, jobs and receipts of one account.

    `replayed`: the same request had minted it before. Its answer has the token again for ten minutes, then null.
    """

    key: str | None
    account: str
    expires_at: datetime
    replayed: bool


@router.put("/{account}", response_model=AccountAnswer, responses=responses(404, 422) | _MADE)
async def open_account(request: Request, caller: Opener, account: AccountPath) -> Response:
    """Make an account. Harmless if it is there already."""
    caller.check(account)
    made = await services_of(request).accounts.create(account, caller.actor)
    return answer({"account": account, "created": made}, 201 if made else 200)


@router.get("/{account}/balance", response_model=Balance, responses=responses(404))
async def balance(request: Request, caller: Looker, account: AccountPath) -> Response:
    """What the account has: from its subscription, bought, given; spendable, held and frozen."""
    caller.check(account)
    return answer(await services_of(request).reads.balance(account))


@router.get("/{account}/journal", response_model=JournalPage, responses=responses(404, 422))
async def journal(
    request: Request,
    caller: Looker,
    account: AccountPath,
    after: Behind = 0,
    limit: Limit = 100,
) -> Response:
    """Every movement of its credits, oldest first. An entry never appears later below one that was seen."""
    caller.check(account)
    return answer(await services_of(request).reads.journal(account, after, limit))


@router.get("/{account}/events", response_model=EventsPage, responses=responses(404, 422))
async def events(
    request: Request,
    caller: Looker,
    account: AccountPath,
    after: Behind = 0,
    limit: Limit = 100,
) -> Response:
    """What it was told, oldest first: ended jobs, few credits left, credits that expire, new cycles. Skips none."""
    caller.check(account)
    return answer(await services_of(request).reads.events(account, after, limit))


@router.get("/{account}/limits", response_model=AccountLimits, responses=responses(404))
async def limits(request: Request, caller: Looker, account: AccountPath) -> Response:
    """How many of its jobs may run at a time, and when it is warned; what of that a person set."""
    caller.check(account)
    return answer(await services_of(request).limits.limits(account))


@router.post("/{account}/limits", response_model=AccountLimits, responses=responses(400, 404, 413, 415, 422))
async def set_limits(request: Request, caller: Steerer, account: AccountPath, body: LimitsBody) -> Response:
    """Set what holds for it whatever its plan has, or leave that to the plan again. From the next start of a job on."""
    caller.check(account)
    wanted = {name: AS_PLANNED if value == "plan" else value for name, value in body.model_dump().items()}
    return answer(await services_of(request).limits.set_limits(account, caller.actor, **wanted))


@router.post("/{account}/topups", status_code=201, response_model=CreditedAnswer, responses=_CHANGES)
async def top_up(
    request: Request, caller: Biller, account: AccountPath, body: TopupBody, key: IdempotencyKey
) -> Response:
    """Credit a purchase that was paid. The idempotency key is its reference: the same purchase is credited once."""
    caller.check(account)
    accounts = services_of(request).accounts
    return _credited(await accounts.topup(account, key, caller.actor, amount=body.credits, pack=body.pack))


@router.post("/{account}/chargebacks", response_model=ChargedBackAnswer, responses=responses(400, 404, 413, 415, 422))
async def charge_back(request: Request, caller: Biller, account: AccountPath, body: ChargebackBody) -> Response:
    """A purchase was taken back by the bank: so are its credits, once. What was spent of them is owed."""
    caller.check(account)
    done = await services_of(request).accounts.chargeback(account, body.reference, caller.actor)
    return answer(_document(done))


@router.post("/{account}/grants", status_code=201, response_model=CreditedAnswer, responses=_CHANGES)
async def grant(
    request: Request, caller: Biller, account: AccountPath, body: GrantBody, key: IdempotencyKey
) -> Response:
    """Give credits away, once a key."""
    caller.check(account)
    done = await services_of(request).accounts.grant(
        account, body.credits, key, caller.actor, expires_at=body.expires_at, note=body.note
    )
    return _credited(done)


@router.post("/{account}/subscription", status_code=201, response_model=SubscribedAnswer, responses=_CHANGES)
async def subscribe(
    request: Request, caller: Biller, account: AccountPath, body: SubscribeBody, key: IdempotencyKey
) -> Response:
    """Begin a subscription now: its first month's credits are there at once."""
    caller.check(account)
    done = await services_of(request).accounts.subscribe(
        account, body.plan, key, caller.actor, renewal=body.renewal, grace_days=body.grace_days
    )
    return _subscribed(done, 201)


@router.post("/{account}/subscription/change", response_model=SubscribedAnswer, responses=_CHANGES)
async def change(
    request: Request, caller: Biller, account: AccountPath, body: ChangeBody, key: IdempotencyKey
) -> Response:
    """Another plan: a larger one at once, a smaller one from the next month on."""
    caller.check(account)
    return _subscribed(await services_of(request).accounts.change(account, body.plan, key, caller.actor))


@router.post("/{account}/subscription/cancel", response_model=SubscribedAnswer, responses=_CHANGES)
async def cancel(
    request: Request,
    caller: Biller,
    account: AccountPath,
    key: IdempotencyKey,
    body: SubscriptionCancelBody | None = None,
) -> Response:
    """No further month than those that are paid for; `at_once` gives up those paid ahead.

    Top-ups are frozen when it ends, and thaw if it is resumed in time.
    """
    caller.check(account)
    at_once = body is not None and body.at_once
    return _subscribed(await services_of(request).accounts.cancel(account, key, caller.actor, at_once=at_once))


@router.post("/{account}/subscription/resume", response_model=SubscribedAnswer, responses=_CHANGES)
async def resume(
    request: Request, caller: Biller, account: AccountPath, key: IdempotencyKey, body: ResumeBody | None = None
) -> Response:
    """Go on after a cancel or a lapse. An external one whose month is over waits for its payment."""
    caller.check(account)
    plan = body.plan if body else None
    return _subscribed(await services_of(request).accounts.resume(account, key, caller.actor, plan=plan))


@router.post("/{account}/subscription/renewed", response_model=SubscribedAnswer, responses=_CHANGES)
async def renewed(request: Request, caller: Biller, account: AccountPath, key: IdempotencyKey) -> Response:
    """External billing was paid for one more month."""
    caller.check(account)
    return _subscribed(await services_of(request).accounts.renewed(account, key, caller.actor))


@router.post("/{account}/tokens", status_code=201, response_model=TokenAnswer, responses=_CHANGES)
async def mint(
    request: Request, caller: Minter, account: AccountPath, key: IdempotencyKey, body: TokenBody | None = None
) -> Response:
    """A short-lived token with which this customer's own page looks at this account, and changes nothing.

    It closes early if the key that minted it is revoked, and is never made to outlive that key.
    """
    caller.check(account)
    wanted = body or TokenBody()
    once = asked(request, caller, "tokens", key, account, wanted)
    made = await services_of(request).keys.token(
        account, wanted.seconds, caller.actor, minted_by=caller.key.id, asked=once
    )
    document = {"account": account, "expires_at": made.shown.expires_at, "replayed": made.replayed}
    return answer({"key": made.key or None, **document}, 200 if made.replayed else 201)


def _credited(done: Credited) -> Response:
    return answer(_document(done), 200 if done.replayed else 201)


def _subscribed(done: Subscribed, status: int = 200) -> Response:
    return answer(_document(done), 200 if done.replayed else status)


def _document(done: Credited | Subscribed | ChargedBack) -> dict[str, Any]:
    """The public names: an account is `account` in every document."""
    return {"account" if name == "account_id" else name: value for name, value in asdict(done).items()}
