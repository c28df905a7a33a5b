"""What people and pipelines do in one transaction each, for a process that is killed in it.

`PEOPLE` has each such step with what it takes: `prepare` brings about what it acts on and names it, `do` is done by a
process that dies at one of the step's points (`play`, in a fork of the zygote), and once more by one that does not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from config.settings import load
from worker.boot import Store, opened_client, price_desk
from worker.client import Client, JobRequest
from worker.credits.notices import Notify
from worker.credits.operations import Cancel, Claim, EndOverdue, Expire, ForceEnd, Settle, Wake
from worker.credits.outcomes import Ending
from worker.credits.subscribing import Turn
from worker.store.api_keys import ApiKeys, KeyShown, NewKey, Role
from worker.store.artifacts import Artifacts
from worker.store.audit_log import AuditLog
from worker.store.book_shelf import BookDraft, price_shelf
from worker.store.creations import Asked, Creations
from worker.store.ids import new_id
from worker.store.limits import Limits
from worker.store.ops import Controls, Scope
from worker.store.sessions import Sessions
from worker.store.submits import ArtifactFacts
from worker.store.voices import NewVoice, Voices
from worker.store.webhooks import Webhooks
from worker.store.workers import WorkerCard, Workers
from worker.webhooks.message import secret_of

if TYPE_CHECKING:  # the zygote has no use for it
    from tests.acceptance.stage import Stage

ACTOR = "test"
ACCOUNT = "ada"
#: Seconds: to forget also what will come.
EVER = 86_400.0

Prepare = Callable[["Stage"], Awaitable[str]]
Do = Callable[[Store, Client, str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of somebody. `again`: whether doing it once more changes nothing."""

    do: Do
    prepare: Prepare | None = None
    again: bool = False


async def main(name: str, subject: str) -> None:
    """Do that step, as any process of ours would."""
    async with opened_client(load()) as (client, store):
        await PEOPLE[name].do(store, client, subject)


def play(name: str, subject: str) -> None:
    """For the zygote."""
    asyncio.run(main(name, subject))


# What is there before


async def _queued(stage: Stage, **more: Any) -> str:
    return str((await stage.client.submit(JobRequest(ACCOUNT, "null", **more), ACTOR)).job_id)


async def _running(stage: Stage) -> str:
    """A job that runs, and its token: as if its worker had gone."""
    job, token = await _queued(stage), new_id()
    await stage.store.operations.do(Claim(ACCOUNT, UUID(job), token, "lost", 0.001))
    return f"{job} {token}"


async def _overdue(stage: Stage) -> str:
    job = await _queued(stage)
    async with stage.database.connection(as_owner=True) as owner:
        over = "UPDATE jobs SET ends_by = fermata_now() WHERE job_id = $1 RETURNING ends_by"
        ends_by = await owner.fetchval(over, UUID(job))
        await owner.execute("UPDATE due SET ends_by = $2 WHERE job_id = $1", UUID(job), ends_by)
    return job


async def _key(stage: Stage) -> str:
    return str((await ApiKeys(stage.store.engine).create(NewKey(Role.PIPELINE, "crash"), ACTOR)).shown.id)


async def _token(stage: Stage) -> str:
    return (await ApiKeys(stage.store.engine).token(ACCOUNT, 600, ACTOR)).key


async def _noted(stage: Stage) -> str:
    await Creations(stage.store.engine).check(_request(await _key(stage)), "made")
    return ""


async def _session(stage: Stage) -> str:
    return await Sessions(stage.store.engine).open(await _shown_key(stage))


async def _artifact(stage: Stage) -> str:
    artifact = str(new_id())
    await _add_artifact(stage.store, stage.client, artifact)
    return artifact


async def _voice(stage: Stage) -> str:
    name = f"voice-{new_id().hex[-8:]}"
    await _add_voice(stage.store, stage.client, f"{name} {await _artifact(stage)}")
    return name


async def _voice_to_be(stage: Stage) -> str:
    return f"voice-{new_id().hex[-8:]} {await _artifact(stage)}"


async def _webhook(stage: Stage) -> str:
    webhook, *_ = await Webhooks(stage.store.engine).create("https://example.com/x", secret_of, None, [], ACTOR)
    return str(webhook)


async def _planned_book(stage: Stage) -> str:
    return str(await _apply_book(stage.store, stage.client, ""))


async def _worker(stage: Stage) -> str:
    card = WorkerCard(f"w-{new_id().hex[-8:]}", "here", 1, "1", ["null"], 1)
    await Workers(stage.store.engine).here(card)
    return card.worker_id


async def _fresh(stage: Stage) -> str:
    return f"a-{new_id().hex[-8:]}"


async def _shown_key(stage: Stage) -> KeyShown:
    return (await ApiKeys(stage.store.engine).create(NewKey(Role.OPS, "crash"), ACTOR)).shown


async def _new_id(stage: Stage) -> str:
    return str(new_id())


async def _account(stage: Stage) -> str:
    name = await _fresh(stage)
    await stage.store.accounts.create(name, ACTOR)
    return name


async def _paused_account(stage: Stage) -> str:
    name = await _account(stage)
    await stage.controls.pause(Scope.ACCOUNT, name, "crash", ACTOR)
    return name


async def _account_with_a_cycle_over(stage: Stage) -> str:
    name = await _account(stage)
    await stage.store.accounts.subscribe(name, "starter", "start", ACTOR)
    await stage.end_cycle(name)
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE accounts SET look_at = cycle_ends_at WHERE account_id = $1", name)
    return name


async def _account_with_an_expired_lot(stage: Stage) -> str:
    name = await _account_with_an_expiring_lot(stage)
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE lots SET expires_at = fermata_now() WHERE account_id = $1", name)
    return name


async def _account_with_an_expiring_lot(stage: Stage) -> str:
    name = await _account(stage)
    expires_at = (await stage.client.views.view(ACCOUNT, [])).now + timedelta(hours=1)
    await stage.store.accounts.grant(name, 5, "gift", ACTOR, expires_at=expires_at)
    return name


async def _closed_webhook(stage: Stage) -> str:
    webhook = await _webhook(stage)
    await Webhooks(stage.store.engine).close(UUID(webhook))
    return webhook


# What is done


def _request(key: str) -> Asked:
    return Asked(UUID(key), "crash", "once", bytes(32), "secret")


def _controls(store: Store, client: Client) -> Controls:
    return Controls(store.engine, client.kinds)


async def _open_session(store: Store, client: Client, subject: str) -> None:
    await Sessions(store.engine).open(await ApiKeys(store.engine).find(subject))


async def _create_webhook(store: Store, client: Client, subject: str) -> None:
    await Webhooks(store.engine).create("https://example.com/x", secret_of, None, [], ACTOR)


async def _add_artifact(store: Store, client: Client, subject: str) -> None:
    facts = ArtifactFacts(UUID(subject), "in.wav", "audio/wav", f"inputs/{subject}", bytes(32), 800, 8000, 1, 1600)
    await Artifacts(store.engine).add(ACCOUNT, facts, ACTOR)


async def _add_voice(store: Store, client: Client, subject: str) -> None:
    name, clip = subject.split()
    await Voices(store.engine).add(NewVoice(name, ACCOUNT, UUID(clip), "own", "signed", {}), ACTOR)


async def _apply_book(store: Store, client: Client, subject: str) -> int:
    shelf = price_shelf(store.engine)
    shown = await shelf.shown()
    at = datetime.now(UTC) + timedelta(days=2, seconds=new_id().int % 80_000)
    document = f"{shown.document}\n# {new_id()}\n"
    digest = hashlib.sha256(document.encode()).hexdigest()
    return (await shelf.apply(BookDraft(document, digest, ACTOR, "a note", at))).book


async def _rehearse(store: Store, client: Client, subject: str) -> None:
    desk = price_desk(client.settings, store.engine, store.books)
    shown = await price_shelf(store.engine).shown()
    await desk.rehearse(shown.document, timedelta(days=1), ACTOR)


def _settle(subject: str, ending: Ending, **more: Any) -> Settle:
    job, token = subject.split()
    return Settle(ACCOUNT, UUID(job), UUID(token), ending, **more)


def _on_books(operation: Callable[[str], Any]) -> Do:
    """A batch of one operation."""

    async def do(store: Store, client: Client, subject: str) -> Any:
        return await store.operations.do(operation(subject))

    return do


async def _submit(store: Store, client: Client, subject: str) -> None:
    await client.submit(JobRequest(ACCOUNT, "null", key=subject), ACTOR)


#: By the step's name in `worker.failpoints`.
PEOPLE: Mapping[str, Step] = {
    # the books
    "page": Step(lambda s, c, x: s.accounts.grant(ACCOUNT, 5, x, ACTOR), _fresh, again=True),
    "batch": Step(_on_books(lambda x: Cancel(ACCOUNT, UUID(x), "crash")), _queued, again=True),
    "cancel": Step(_on_books(lambda x: Cancel(ACCOUNT, UUID(x), "crash")), _queued, again=True),
    "force_end": Step(_on_books(lambda x: ForceEnd(ACCOUNT, UUID(x.split()[0]), "crash")), _running, again=True),
    "reap": Step(_on_books(lambda x: _settle(x, Ending.LOST_WORKER, reap_grace_seconds=0)), _running, again=True),
    "end_overdue": Step(_on_books(lambda x: EndOverdue(ACCOUNT, UUID(x))), _overdue, again=True),
    "wake": Step(_on_books(Wake), _account, again=True),
    "turn": Step(_on_books(Turn), _account_with_a_cycle_over, again=True),
    "expire": Step(_on_books(Expire), _account_with_an_expired_lot, again=True),
    "notify": Step(_on_books(lambda x: Notify(x, 3)), _account_with_an_expiring_lot, again=True),
    # jobs
    "take_turns": Step(_submit, _fresh, again=True),
    "submit": Step(_submit, _fresh, again=True),
    # accounts, artifacts, voices
    "create_account": Step(lambda s, c, x: s.accounts.create(x, ACTOR), _fresh, again=True),
    "set_limits": Step(lambda s, c, x: Limits(s.engine).set_limits(x, ACTOR, running_max=2), _account),
    "add_artifact": Step(_add_artifact, _new_id),
    "add_voice": Step(_add_voice, _voice_to_be),
    "remove_voice": Step(lambda s, c, x: Voices(s.engine).remove(x, ACTOR), _voice, again=True),
    # prices
    "apply_book": Step(_apply_book),
    "withdraw_book": Step(
        lambda s, c, x: price_shelf(s.engine).withdraw(int(x), ACTOR, "wrong"), _planned_book, again=True
    ),
    "keep_rehearsal": Step(_rehearse),
    # operating
    "pause": Step(lambda s, c, x: _controls(s, c).pause(Scope.ACCOUNT, x, "crash", ACTOR), _account, again=True),
    "resume": Step(lambda s, c, x: _controls(s, c).resume(Scope.ACCOUNT, x, ACTOR), _paused_account, again=True),
    "limit_queue": Step(lambda s, c, x: _controls(s, c).limit("null", len(x), ACTOR), _fresh),
    "worker_drain": Step(lambda s, c, x: Workers(s.engine).ask_to_drain(x, ACTOR), _worker, again=True),
    "tell_audit_log": Step(lambda s, c, x: AuditLog(s.engine).tell(ACTOR, "crash", x, None, {"x": 1}), _fresh),
    # keys and sessions
    "create_key": Step(lambda s, c, x: ApiKeys(s.engine).create(NewKey(Role.OPS, x), ACTOR), _fresh),
    "make_token": Step(lambda s, c, x: ApiKeys(s.engine).token(x, 600, ACTOR), _account),
    "revoke_key": Step(lambda s, c, x: ApiKeys(s.engine).revoke(UUID(x), ACTOR), _key, again=True),
    "rotate_key": Step(lambda s, c, x: ApiKeys(s.engine).rotate(UUID(x), ACTOR), _key),
    "use_keys": Step(lambda s, c, x: ApiKeys(s.engine).used([UUID(x)]), _key),
    "note_creation": Step(lambda s, c, x: Creations(s.engine).check(_request(x), "made"), _key, again=True),
    "forget_tokens": Step(lambda s, c, x: ApiKeys(s.engine).forget_tokens(-EVER), _token, again=True),
    "forget_creations": Step(lambda s, c, x: Creations(s.engine).forget(-EVER), _noted, again=True),
    "open_session": Step(_open_session, _key),
    "close_session": Step(lambda s, c, x: Sessions(s.engine).close(x), _session, again=True),
    # webhooks
    "create_webhook": Step(_create_webhook),
    "delete_webhook": Step(lambda s, c, x: Webhooks(s.engine).delete(UUID(x), ACTOR), _webhook),
    "redeliver": Step(lambda s, c, x: Webhooks(s.engine).redeliver(UUID(x), None), _closed_webhook),
}
