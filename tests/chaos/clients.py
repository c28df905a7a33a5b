"""Clients that ask for jobs, cancel some, buy credits, ask again, and write down what they are told.

Half of them call `worker.client` in this process, half `fermata_client` over HTTP. Every call ends in bounded time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

import httpx2

from fermata_client import errors
from fermata_client.client import AsyncFermata, JobRequest
from tasks.kind import RefusedRequest
from tests.chaos.journal import Call, Journal, Told
from worker import client as ours
from worker.boot import Store
from worker.credits.operations import AlreadyEnded, CancelAsked, Ended
from worker.store.errors import (
    Conflict,
    InsufficientCredits,
    LedgerUnavailable,
    OutcomeUnknown,
    Refused,
    StoreError,
    UnknownJob,
)

ACTOR = "chaos"
#: A call that has no answer by then is given up: unknown.
PATIENCE_SECONDS = 12.0
#: So long a client that must know asks the same again.
PERSISTENCE_SECONDS = 120.0
#: What nobody asks for but under a key that stands for something else.
OTHER_BODY: Mapping[str, Any] = {"kind": "null", "params": {"outputs": 7}, "on_insufficient": "refuse"}

Answer = tuple[Told, Mapping[str, Any]]


class Door(Protocol):
    """A way to ask. Each call ends as one of `Told`, with what was answered."""

    async def submit(self, account: str, key: str, asked: Mapping[str, Any]) -> Answer: ...

    async def cancel(self, account: str, job_id: str) -> Answer: ...

    async def topup(self, account: str, reference: str, credits: int) -> Answer: ...  # noqa: A002

    async def look(self, job_id: str) -> Answer: ...

    async def balance(self, account: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class OurDoor:
    """`worker.client` and the store, as our own processes use them."""

    client: ours.Client
    store: Store

    async def submit(self, account: str, key: str, asked: Mapping[str, Any]) -> Answer:
        request = ours.JobRequest(
            account, asked["kind"], asked["params"], key=key, on_insufficient=asked["on_insufficient"]
        )
        try:
            done = await self.client.submit(request, ACTOR)
        except (StoreError, RefusedRequest) as error:
            return _of_store(error)
        return Told.OK, {"id": str(done.job_id), "quoted": done.quoted, "replayed": done.replayed}

    async def cancel(self, account: str, job_id: str) -> Answer:
        try:
            done = await self.client.cancel(account, UUID(job_id), "changed my mind")
        except StoreError as error:
            return _of_store(error)
        match done:
            case Ended():
                return Told.OK, {"state": done.state.value, "charged": done.charged}
            case AlreadyEnded():
                return Told.OK, {"state": done.state.value}
            case CancelAsked():
                return Told.OK, {"state": "running"}
        return Told.REFUSED, {"code": str(done)}

    async def topup(self, account: str, reference: str, credits: int) -> Answer:  # noqa: A002
        try:
            done = await self.store.accounts.topup(account, reference, ACTOR, amount=credits)
        except StoreError as error:
            return _of_store(error)
        return Told.OK, {"credits": done.credits, "replayed": done.replayed}

    async def look(self, job_id: str) -> Answer:
        try:
            job = await self.client.reads.job(UUID(job_id))
        except StoreError as error:
            return _of_store(error)
        return Told.OK, {"state": job.state, "charged": job.charged}

    async def balance(self, account: str) -> Answer:
        try:
            return Told.OK, credits_of(asdict(await self.client.reads.balance(account)))
        except StoreError as error:
            return _of_store(error)


def _of_store(error: Exception) -> Answer:
    match error:
        case OutcomeUnknown():
            return Told.UNKNOWN, {"error": str(error)}
        case LedgerUnavailable():
            return Told.AWAY, {"error": str(error)}
        case Conflict():
            return Told.REFUSED, {"code": "idempotency_conflict"}
        case InsufficientCredits() | Refused() | RefusedRequest() | UnknownJob():
            return Told.REFUSED, {"code": type(error).__name__}
    raise error


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """`fermata_client`, and plain HTTP for what it has no call for."""

    fermata: AsyncFermata
    http: httpx2.AsyncClient

    async def submit(self, account: str, key: str, asked: Mapping[str, Any]) -> Answer:
        request = JobRequest(
            account=account,
            request=asked["params"],
            kind=asked["kind"],
            key=key,
            on_insufficient=asked["on_insufficient"],
        )
        try:
            done = await self.fermata.submit(request)
        except errors.FermataError as error:
            return _of_http(error)
        return Told.OK, {"id": str(done.id), "quoted": done.quoted, "replayed": done.replayed}

    async def cancel(self, account: str, job_id: str) -> Answer:
        try:
            done = await self.fermata.cancel(job_id)
        except errors.FermataError as error:
            return _of_http(error)
        return Told.OK, {"state": done.state}

    async def topup(self, account: str, reference: str, credits: int) -> Answer:  # noqa: A002
        headers = {"Idempotency-Key": reference}
        try:
            reply = await self.http.post(
                f"/v1/accounts/{account}/topups", json={"credits": credits}, headers=headers, timeout=PATIENCE_SECONDS
            )
        except httpx2.TransportError as error:
            return Told.UNKNOWN, {"error": type(error).__name__}
        document = reply.json()
        if reply.is_success:
            return Told.OK, {"credits": document["credits"], "replayed": document["replayed"]}
        return _of_http(errors.problem_of(reply.status_code, document))

    async def look(self, job_id: str) -> Answer:
        try:
            job = await self.fermata.job(job_id)
        except errors.FermataError as error:
            return _of_http(error)
        return Told.OK, {"state": job.state, "charged": job.charged}

    async def balance(self, account: str) -> Answer:
        try:
            reply = await self.http.get(f"/v1/accounts/{account}/balance", timeout=PATIENCE_SECONDS)
        except httpx2.TransportError as error:
            return Told.UNKNOWN, {"error": type(error).__name__}
        if reply.is_success:
            return Told.OK, credits_of(reply.json())
        return _of_http(errors.problem_of(reply.status_code, reply.json()))


def credits_of(balance: Mapping[str, Any]) -> Mapping[str, int]:
    """A balance, as the API shows it, in the words of `prefixes`."""
    subscription, topup, grants = balance["subscription"], balance["topup"], balance["grants"]
    return {
        "subscription.available": subscription["available"],
        "subscription.held": subscription["held"],
        "topup.available": topup["available"] + topup["frozen"],
        "topup.held": topup["held"],
        "grant.available": grants["available"],
        "grant.held": grants["held"],
    }


def _of_http(error: errors.FermataError) -> Answer:
    match error:
        case errors.Refused():
            return Told.REFUSED, {"code": error.code}
        case errors.Unavailable() | errors.TooManyRequests():
            return Told.AWAY, {"code": error.code}
        case errors.Broken():
            raise error
    return Told.UNKNOWN, {"error": str(error)}


@dataclass(slots=True)
class Wishes:
    """What clients ask for, drawn from a seed."""

    dice: random.Random
    accounts: Sequence[str]
    #: Of which half of all jobs are.
    hot: str
    #: A gate that is open.
    gate: str

    def account(self) -> str:
        """Half the time the hot one; those with a plan, the last two, seldom: they may run few jobs at a time."""
        if self.dice.random() < 0.5:
            return self.hot
        return self.dice.choice([*self.accounts[:-2], *self.accounts])

    def job(self) -> dict[str, Any]:
        """A job of some kind: quick, slow, failing once, failing for good, finished in part."""
        dice = self.dice
        kind, params = dice.choice(
            [
                *(2 * [("null", {"outputs": dice.randint(1, 3)})]),
                *(6 * [("timed", {"milliseconds": dice.choice((20, 60, 150, 400)), "outputs": dice.randint(1, 2)})]),
                ("timed", {"milliseconds": 1500, "outputs": 1}),
                ("gated", {"gate": self.gate, "remembers": "a chord"}),
                ("failing", {"error": "crashed", "times": 1}),
                ("failing", {"error": dice.choice(("invalid", "final")), "finished": dice.randint(0, 1)}),
            ]
        )
        return {"kind": kind, "params": params, "on_insufficient": dice.choice(("refuse", "refuse", "wait"))}


@dataclass(slots=True)
class Client:
    """One client: a door, a journal and a temper."""

    name: str
    door: Door
    journal: Journal
    wishes: Wishes
    #: Seconds between two calls, on average.
    pace_seconds: float
    #: Whether so much is unfinished that nobody asks for more: the load is the machine's measure, not ours.
    crowded: Callable[[], bool] = lambda: False
    #: It cancels half the time, rather than seldom.
    fickle: bool = False
    wrong: list[str] = field(default_factory=list)
    _keys: list[Call] = field(default_factory=list)
    _jobs: list[tuple[str, str]] = field(default_factory=list)
    _purchases: list[tuple[str, str, int]] = field(default_factory=list)
    _number: int = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self._something()
            await asyncio.sleep(self.pace_seconds * 2 * self.wishes.dice.random())

    async def ask_all_again(self) -> list[str]:
        """Every key and every reference once more; returns what was answered otherwise than before."""
        first: dict[tuple[str, str, str], Call] = {}
        for call in self.journal.calls:
            place = (call.what, call.account, call.key)
            if call.what in ("submit", "topup") and call.told is Told.OK and place not in first:
                first[place] = call
        found = []
        for call in first.values():
            told, answer = await self._told_at_last(call)
            said = {**call.answer, "replayed": True}
            if told is not Told.OK or any(answer[name] != said[name] for name in answer):
                found.append(f"{self.name} was told {told} {dict(answer)} where it had been told {call}")
        return found

    async def _told_at_last(self, call: Call) -> Answer:
        """Ask the same again until there is an answer: on a starved machine one may be in doubt, or not come at all."""
        given_up_at = monotonic() + PERSISTENCE_SECONDS
        while True:
            told, answer = await self._told(call.what, call.account, call.key, call.asked)
            if told not in (Told.UNKNOWN, Told.AWAY) or monotonic() > given_up_at:
                return told, answer
            await asyncio.sleep(0.2)

    async def _something(self) -> None:
        dice = self.wishes.dice
        chance = 0.8 if self.fickle and dice.random() < 0.5 else dice.random()
        if (chance < 0.62 and not self.crowded()) or not self._keys:
            self._number += 1
            await self._submit(self.wishes.account(), f"{self.name}-{self._number}", self.wishes.job())
        elif chance < 0.74:
            again = dice.choice(self._keys[-40:])
            await self._submit(again.account, again.key, again.asked)
        elif chance < 0.77:
            again = dice.choice(self._keys[-40:])
            await self._submit(again.account, again.key, OTHER_BODY)
        elif chance < 0.85 and self._jobs:
            account, job_id = dice.choice(self._jobs[-30:])
            await self._ask("cancel", account, job_id, {})
        elif chance < 0.91 or not self._jobs:
            await self._buy()
        elif chance < 0.95:
            await self._ask("balance", self.wishes.account(), "", {})
        else:
            account, job_id = dice.choice(self._jobs[-60:])
            await self._ask("look", account, job_id, {})

    async def _submit(self, account: str, key: str, asked: Mapping[str, Any]) -> None:
        call = await self._ask("submit", account, key, asked)
        if asked is not OTHER_BODY:
            self._keys.append(call)
        if call.told is Told.OK:
            self._jobs.append((account, call.answer["id"]))

    async def _buy(self) -> None:
        dice = self.wishes.dice
        if not self._purchases or dice.random() < 0.6:
            reference = f"{self.name}-p{len(self._purchases)}"
            self._purchases.append((self.wishes.account(), reference, dice.choice((10, 40, 70))))
        account, reference, credits = dice.choice(self._purchases[-5:])  # noqa: A001
        await self._ask("topup", account, reference, {"credits": credits})

    async def _ask(self, what: str, account: str, key: str, asked: Mapping[str, Any]) -> Call:
        call = self.journal.ask(what, account, key, asked)
        told, answer = await self._told(what, account, key, asked)
        self.journal.tell(call, told, answer)
        return self.journal.calls[call.number - 1]

    async def _told(self, what: str, account: str, key: str, asked: Mapping[str, Any]) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                match what:
                    case "submit":
                        return await self.door.submit(account, key, asked)
                    case "topup":
                        return await self.door.topup(account, key, asked["credits"])
                    case "cancel":
                        return await self.door.cancel(account, key)
                    case "balance":
                        return await self.door.balance(account)
                return await self.door.look(key)
        except TimeoutError:
            return Told.UNKNOWN, {"error": f"no answer within {PATIENCE_SECONDS:g} s"}
        except Exception as error:  # nothing of ours may come out of a call but what it promises
            self.wrong.append(f"{self.name}: {what} {key} raised {error!r}")
            return Told.UNKNOWN, {"error": repr(error)}


def tally(clients: Sequence[Client]) -> dict[str, int]:
    """How the calls of all ended."""
    return {told.value: sum(client.journal.told[told] for client in clients) for told in Told}
