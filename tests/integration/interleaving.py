"""Two or three sessions on one account, stepped: each has written and not committed when the next one begins.

The scene: `R` runs under a token whose lease has lapsed, and holds 10 credits of a gift. `Q` is queued, needs 6 and
would rather wait than be refused; another job holds all that the plan brings, so Q can only be paid by what comes back
or is bought. A second gift of 7 has expired.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids

from tests.integration.books import ACTOR, Store, an_output, patient_claim
from tests.integration.test_subscriptions import LABEL
from worker import failpoints
from worker.credits.operations import (
    AlreadyEnded,
    Cancel,
    CancelAsked,
    Claimed,
    Ended,
    Expire,
    ForceEnd,
    Parked,
    Requeued,
    Settle,
)
from worker.credits.outcomes import Ending
from worker.store.book_shelf import BookApplied, BookDraft, price_shelf
from worker.store.leases import Held, Renewal
from worker.store.purchases import Credited

LONG = 10 * 86_400.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What the sessions meet at."""

    account: str
    running: Claimed
    queued: UUID
    #: Which job a cancel means.
    cancelled: UUID

    @property
    def held(self) -> Held:
        return Held(self.account, self.running.job.job_id, self.running.token)


async def a_scene(store: Store, names: Sequence[str]) -> Scene:
    """The scene for these sessions: a cancel beside a claim is of the job that is claimed."""
    account = await store.account(f"scene-{uuids.uuid7()}")
    await store.accounts.subscribe(account, "label", "start", ACTOR)
    blocker = await store.claim_patiently(account, await store.queued(account, LABEL, job_seconds=LONG))
    assert isinstance(blocker, Claimed)
    now = await store.value("SELECT fermata_now()")
    for amount in (10, 7):
        await store.accounts.grant(account, amount, f"gift-{amount}", ACTOR, expires_at=now.replace(year=now.year + 1))
    r = await store.queued(account, 10, failures_max=1, job_seconds=LONG)
    running = await store.operations.do(patient_claim(account, r, uuids.uuid7(), "w1", 0.001))
    assert isinstance(running, Claimed)
    queued = await store.queued(account, 6, on_insufficient="wait", job_seconds=LONG)
    over = (7, 10) if "expire" in names else (7,)
    async with store.database.connection(as_owner=True) as owner:
        await owner.execute(
            "UPDATE lots SET expires_at = fermata_now() "
            "WHERE account_id = $1 AND source = 'grant' AND granted = ANY($2)",
            account,
            list(over),
        )
    return Scene(account, running, queued, queued if "claim" in names else r)


@dataclass(frozen=True, slots=True)
class Session:
    """What one of them does, and the point at which it can be held: written, not committed."""

    point: str
    do: Callable[[Store, Scene], Awaitable[Any]]


async def _claim(store: Store, scene: Scene) -> Any:
    return await store.operations.do(patient_claim(scene.account, scene.queued, uuids.uuid7(), "w2", 30))


async def _settle(store: Store, scene: Scene) -> Any:
    return await store.settle(scene.account, scene.running, measured=4, outputs=[an_output()])


async def _reap(store: Store, scene: Scene) -> Any:
    held = scene.held
    reaping = Settle(held.account_id, held.job_id, held.token, Ending.LOST_WORKER, reap_grace_seconds=3600)
    return await store.operations.do(reaping)


async def _cancel(store: Store, scene: Scene) -> Any:
    return await store.operations.do(Cancel(scene.account, scene.cancelled, "no more"))


async def _expire(store: Store, scene: Scene) -> Any:
    return await store.operations.do(Expire(scene.account))


async def _topup(store: Store, scene: Scene) -> Any:
    return await store.accounts.topup(scene.account, "bought", ACTOR, amount=6)


async def _price(store: Store, scene: Scene) -> Any:
    shelf = price_shelf(store.engine)
    shown = (await shelf.shown()).document
    dearer = re.sub(r"(?m)^rate = (\d+)$", lambda found: f"rate = {int(found[1]) + 1}", shown)
    document = f"{dearer}\n# {uuids.uuid7()}\n"
    return await shelf.apply(BookDraft(document, hashlib.sha256(document.encode()).hexdigest(), ACTOR, "dearer"))


async def _renew(store: Store, scene: Scene) -> Any:
    return await store.leases.renew([scene.held], 30)


SESSIONS: Mapping[str, Session] = {
    "claim": Session("claim.written", _claim),
    "settle": Session("settle.written", _settle),
    "reap": Session("reap.written", _reap),
    "cancel": Session("cancel.written", _cancel),
    "expire": Session("expire.written", _expire),
    "topup": Session("page.written", _topup),
    "price": Session("apply_book.written", _price),
    "renew": Session("renew.written", _renew),
}


@dataclass(frozen=True, slots=True)
class Played:
    """What each answered, which of them had to wait for the one before, and what became of R and Q."""

    answers: tuple[str, ...]
    waited: tuple[bool, ...]
    jobs: str


async def played(stores: Sequence[Store], names: Sequence[str]) -> Played:
    """Begin each one when the one before it has written and not committed; then let that one go on."""
    scene = await a_scene(stores[0], names)
    first, *others = names
    held = failpoints.hold(SESSIONS[first].point)
    tasks = [asyncio.create_task(_answer(SESSIONS[first], stores[0], scene))]
    await held.reached.wait()
    waited = []
    for store, name in zip(stores[1:], others, strict=False):
        busy = store.operations.figures.busy
        tasks.append(asyncio.create_task(_answer(SESSIONS[name], store, scene)))
        waited.append(await _waits(store, tasks[-1], busy))
        if not waited[-1] or len(tasks) == len(names):
            held.let_go()  # it is through already, or the last: nobody comes while it has written
            continue
        after = failpoints.hold(SESSIONS[name].point)
        held.let_go()
        await after.reached.wait()
        held = after
    answers = tuple([await task for task in tasks])
    seen = Played(answers, tuple(waited), await _jobs(stores[0], scene))
    for (job,) in await stores[0].fetch("SELECT job_id FROM live WHERE account_id = $1", scene.account):
        await stores[0].operations.do(ForceEnd(scene.account, job, "the curtain falls"))
    return seen


async def _waits(store: Store, task: asyncio.Task[Any], busy: int) -> bool:
    """Whether it meets what the other holds: it was told so, or PostgreSQL says that it waits. Else it is through."""
    while not task.done():
        if store.operations.figures.busy > busy:
            return True
        if await store.value(_SOMEBODY_WAITS):
            return True
    return False


_SOMEBODY_WAITS = (
    "SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE NOT granted AND datname = current_database()"
)


async def _answer(session: Session, store: Store, scene: Scene) -> str:
    match await session.do(store, scene):
        case Claimed():
            return "claimed"
        case Ended() as ended:
            return f"{ended.state.value} for {ended.charged}"
        case Requeued():
            return "queued again"
        case Parked():
            return "waits"
        case CancelAsked():
            return "asked"
        case AlreadyEnded() as ended:
            return f"already {ended.state.value}"
        case Credited() as credited:
            return "replayed" if credited.replayed else "credited"
        case BookApplied():
            return "in force"
        case Renewal() as renewal:
            return "lost" if renewal.lost else "told to stop" if renewal.cancel_asked else "renewed"
        case other:
            return str(getattr(other, "value", other))


async def _jobs(store: Store, scene: Scene) -> str:
    ids = [scene.running.job.job_id, scene.queued]
    rows = await store.fetch("SELECT state, charged FROM jobs WHERE job_id = ANY($1) ORDER BY job_id", ids)
    return ", ".join(row["state"] + (f" for {row['charged']}" if row["charged"] is not None else "") for row in rows)
