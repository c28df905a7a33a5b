"""What ops do to jobs and workers: end a stuck job; cancel, retry or compensate many by a filter; drain a worker.

One function each, for the CLI, the API and the dashboard alike; every act that changes something is in the audit log.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from tasks.kind import RefusedRequest
from worker.client import Client
from worker.credits.operations import AlreadyEnded, CancelAsked, Ended, ForceEnd
from worker.credits.outcomes import Ending
from worker.credits.states import ENDED, JobState
from worker.store.audit_log import AuditLog
from worker.store.compensations import Compensations
from worker.store.errors import Refused, RefusedByDatabase, StoreError, UnknownAccount
from worker.store.reads_accounts import PAGE_MAX
from worker.store.reads_job_lists import JobLine
from worker.store.references import check_reference
from worker.store.submits import Submitted
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX, is_line
from worker.store.workers import Workers

#: Jobs of one portion at most. An act on more goes on where the last portion ended, by its `next`.
JOBS_MAX = 10_000

#: What can be cancelled, and what can be tried again.
UNFINISHED = (JobState.QUEUED, JobState.WAITING, JobState.RUNNING)
UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED, JobState.REFUSED)
#: What may have been charged: a book can charge for other ends than success.
CHARGED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
#: Of a charge: more than all of it never comes back.
PERCENT_MAX = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs are meant; None: any. `reason`: why they ended."""

    account: str | None = None
    kind: str | None = None
    queue: str | None = None
    state: JobState | None = None
    reason: str | None = None
    limit: int = 1000
    #: When they were submitted.
    created_from: datetime | None = None
    created_before: datetime | None = None
    #: With these values, read as text; with an account only.
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: Only those behind this place: the `next` of the portion before.
    after: str | None = None
    #: Whether a dry run counts those beyond the portion, too: it has to look at each of them.
    to_the_end: bool = True


@dataclass(frozen=True, slots=True)
class JobDone:
    """One job of an act. `outcome`: what became of it, or would; `new_job`: the one that a retry made.

    `credits`: what it was given, or would be.
    """

    id: UUID
    account: str
    state: JobState
    quoted: int
    outcome: str
    new_job: UUID | None = None
    credits: int = 0


@dataclass(frozen=True, slots=True)
class ManyDone:
    """What an act did to a portion, or, with `dry_run`, would do.

    `more`: others match beyond the limit; `next` is then the place from which the next portion goes on. `total`,
    `total_quoted` and, of compensations, `total_credits`, of a dry run `to_the_end`: all that match, this portion and
    what lies beyond.
    """

    act: str
    dry_run: bool
    matched: int
    changed: int
    turned_down: int
    #: The credits that the matched jobs were quoted: what retries would cost at most by the prices of then.
    quoted: int
    more: bool
    jobs: tuple[JobDone, ...]
    #: The credits that were given, or would be.
    credits: int = 0
    next: str | None = None
    total: int | None = None
    total_quoted: int | None = None
    total_credits: int | None = None


@dataclass(frozen=True, slots=True)
class _Portion:
    jobs: list[JobLine]
    next: str | None
    total: int | None
    total_quoted: int | None


@dataclass(frozen=True, slots=True)
class ForcedEnd:
    """A job that was ended by hand. `refunded`: what it had held."""

    id: UUID
    account: str
    state: JobState
    refunded: int


@dataclass(frozen=True, slots=True)
class Steering:
    """The acts."""

    client: Client
    workers: Workers
    log: AuditLog
    compensations: Compensations

    async def force_end(self, job_id: UUID, reason: str, actor: str) -> ForcedEnd:
        """End a running job as `failed`, give back what it holds and void its token, in one transaction.

        For a job that is stuck: whoever still runs it can neither settle nor publish. Raises `UnknownJob`, and
        `Refused` for a job that does not run (cancel it) or that has ended.
        """
        _check_words(reason, actor)
        before = await self.client.reads.job(job_id)
        answer = await self.client.operations.do(ForceEnd(before.account, job_id, reason, actor))
        match answer:
            case Ended():
                pass
            case AlreadyEnded():
                raise Refused("job", f"has ended before: {answer.state}")
            case _:
                raise Refused("job", f"does not run, it is {before.state}: cancel it instead")
        return ForcedEnd(job_id, before.account, answer.state, before.reserved - answer.charged)

    async def cancel_many(self, wanted: Wanted, reason: str, actor: str, *, dry_run: bool) -> ManyDone:
        """Cancel all unfinished jobs that match; with `dry_run` only say which. Raises `Refused`."""
        _check_words(reason, actor)

        async def cancel(job: JobLine) -> JobDone:
            answer = await self.client.cancel(job.account, job.id, reason, actor)
            match answer:
                case Ended():
                    return _done(job, str(answer.state))
                case CancelAsked():
                    return _done(job, "cancel asked")
                case _:
                    return _done(job, "had ended before")

        would = "would be cancelled"
        return await self._many("cancel", UNFINISHED, wanted, actor, cancel, would, dry_run=dry_run, reason=reason)

    async def retry(self, job_id: UUID, reason: str, actor: str) -> Submitted:
        """Ask again for an ended job, once; the log keeps why. Raises `UnknownJob` and `Refused`."""
        _check_words(reason, actor)
        done: Submitted = await self.client.retry(job_id, actor)
        if not done.replayed:
            told = {"account_id": done.account_id, "new_job": str(done.job_id), "reason": reason}
            await self.log.tell(actor, "jobs.retry", str(job_id), None, told)
        return done

    async def retry_many(self, wanted: Wanted, actor: str, *, dry_run: bool) -> ManyDone:
        """Ask again for all jobs that match and did not succeed, each once; with `dry_run` only say which."""
        _check_words("retry", actor)

        async def retry(job: JobLine) -> JobDone:
            answer: Submitted = await self.client.retry(job.id, actor)
            outcome = "was retried before" if answer.replayed else "retried"
            return replace(_done(job, outcome), new_job=answer.job_id)

        return await self._many("retry", UNSUCCESSFUL, wanted, actor, retry, "would be retried", dry_run=dry_run)

    async def compensate_many(
        self, wanted: Wanted, percent: int, reference: str, reason: str, actor: str, *, dry_run: bool
    ) -> ManyDone:
        """Give credits for all ended jobs that match and were charged: `percent` of each charge, rounded up.

        Each once under `reference`, in total at most what it was charged; with `dry_run` only say what. The jobs of
        one account are done in one transaction, which the journal tells of; an account that can't be given harms no
        other. Raises `Refused`.
        """
        _check_words(reason, actor)
        check_reference(f"{reference}:{UUID(int=0)}")  # as it stands at each job
        if not 1 <= percent <= PERCENT_MAX:
            raise Refused("percent", f"must be from 1 to {PERCENT_MAX}")
        portion = await self._portion(wanted, CHARGED, to_the_end=dry_run and wanted.to_the_end)
        found = portion.jobs
        given, why_not = dict[UUID, int](), dict[UUID, str]()
        for account, amounts in _parts(found, percent).items():
            try:
                if dry_run:
                    given |= await self.compensations.due_each(account, amounts, reference)
                else:
                    given |= await self.compensations.compensate_each(account, amounts, reference, reason, actor)
            except (Refused, RefusedByDatabase, UnknownAccount) as error:
                why_not |= dict.fromkeys(amounts, f"{_TURNED_DOWN}: {error}")
        if not dry_run:
            told = {"matched": len(found), "credits": sum(given.values()), "filter": _told(wanted)}
            told |= {"reference": reference} | _why(wanted, reason)
            await self.log.tell(actor, "jobs.compensate_many", wanted.account or "all accounts", None, told)
        word = "would be compensated" if dry_run else "compensated"
        return ManyDone(
            act="compensate",
            dry_run=dry_run,
            matched=len(found),
            changed=0 if dry_run else len(given),
            turned_down=len(why_not),
            quoted=sum(job.quoted for job in found),
            more=portion.next is not None,
            jobs=tuple(
                replace(
                    _done(job, word if job.id in given else why_not.get(job.id, "nothing left to give")),
                    credits=given.get(job.id, 0),
                )
                for job in found
            ),
            credits=sum(given.values()),
            next=portion.next,
            total=portion.total,
            total_quoted=portion.total_quoted,
            total_credits=None
            if portion.total is None
            else sum(given.values()) + await self._due_behind(portion.next, wanted, percent, reference),
        )

    async def _due_behind(self, place: str | None, wanted: Wanted, percent: int, reference: str) -> int:
        """The credits that jobs behind that place would be given."""
        due = 0
        while place is not None:
            portion = await self._portion(replace(wanted, after=place, limit=JOBS_MAX), CHARGED, to_the_end=False)
            for account, amounts in _parts(portion.jobs, percent).items():
                due += sum((await self.compensations.due_each(account, amounts, reference)).values())
            place = portion.next
        return due

    async def drain_worker(self, worker_id: str, actor: str) -> None:
        """Let a worker process take no more jobs, finish those it has and end, as by a first SIGTERM.

        It hears of it with its next sign of life. Raises `Refused` for a worker that is not alive.
        """
        _check_words("drain", actor)
        if not await self.workers.ask_to_drain(worker_id, actor):
            raise Refused("worker", f"no worker {worker_id!r} is alive; see `fermata queues`")
        await self.log.tell(actor, "workers.drain", worker_id, None, {"draining": True})

    async def _many(
        self,
        act: str,
        states: tuple[JobState, ...],
        wanted: Wanted,
        actor: str,
        do: Callable[[JobLine], Awaitable[JobDone]],
        would: str,
        *,
        dry_run: bool,
        reason: str | None = None,
    ) -> ManyDone:
        portion = await self._portion(wanted, states, to_the_end=dry_run and wanted.to_the_end)
        jobs = portion.jobs
        if dry_run:
            done = [_done(job, would) for job in jobs]
        else:
            done = list(await asyncio.gather(*(_or_why(do, job) for job in jobs)))
            told = {"matched": len(jobs), "filter": _told(wanted)}
            told |= _why(wanted, reason)
            await self.log.tell(actor, f"jobs.{act}_many", wanted.account or "all accounts", None, told)
        turned_down = sum(one.outcome.startswith(_TURNED_DOWN) for one in done)
        return ManyDone(
            act=act,
            dry_run=dry_run,
            matched=len(jobs),
            changed=0 if dry_run else sum(one.outcome in _CHANGED for one in done),
            turned_down=turned_down,
            quoted=sum(job.quoted for job in jobs),
            more=portion.next is not None,
            jobs=tuple(done),
            next=portion.next,
            total=portion.total,
            total_quoted=portion.total_quoted,
        )

    async def _portion(self, wanted: Wanted, states: tuple[JobState, ...], *, to_the_end: bool) -> _Portion:
        """As many of the jobs as wanted. `to_the_end`: count those beyond, too."""
        if not 1 <= wanted.limit <= JOBS_MAX:
            raise Refused("limit", f"must be from 1 to {JOBS_MAX:,}")
        if wanted.state is not None and wanted.state not in states:
            raise Refused("state", f"must be one of {', '.join(states)}")
        found: list[JobLine] = []
        place, beyond, quoted = "", 0, 0
        async for state, job in self._matching(wanted, states if wanted.state is None else (wanted.state,)):
            if len(found) < wanted.limit:
                found.append(job)
                place = f"{state}:{job.id}"
                continue
            beyond, quoted = beyond + 1, quoted + job.quoted
            if not to_the_end:
                break
        if not found and wanted.after is None:
            _check_names(wanted, self.client.kinds)
        if not to_the_end:
            return _Portion(found, place if beyond else None, None, None)
        quoted += sum(job.quoted for job in found)
        return _Portion(found, place if beyond else None, len(found) + beyond, quoted)

    async def _matching(self, wanted: Wanted, states: tuple[JobState, ...]) -> AsyncIterator[tuple[JobState, JobLine]]:
        """All that match, behind the place that is wanted, by the state under which they were found."""
        first, after = _place(wanted.after, states)
        for state in states[states.index(first) :]:
            while True:
                page = await self.client.reads.jobs(
                    wanted.account,
                    state,
                    wanted.kind,
                    PAGE_MAX,
                    after,
                    created_from=wanted.created_from,
                    created_before=wanted.created_before,
                    metadata=wanted.metadata,
                )
                for job in page.jobs:
                    if _matches(job, wanted):
                        yield state, job
                after = page.next
                if after is None:
                    break


async def in_portions(act: Callable[[Wanted], Awaitable[ManyDone]], wanted: Wanted) -> ManyDone:
    """An act on all that match, however many: one portion of `wanted.limit` after the other, as one answer.

    Of its jobs it names those that were turned down; all are counted. If it breaks off, what was done is done, and
    the same act again does the rest.
    """
    whole: ManyDone | None = None
    while True:
        done = await act(wanted)
        named = tuple(job for job in done.jobs if job.outcome.startswith(_TURNED_DOWN))
        if whole is None:
            whole = replace(done, jobs=named)
        else:
            whole = replace(
                whole,
                matched=whole.matched + done.matched,
                changed=whole.changed + done.changed,
                turned_down=whole.turned_down + done.turned_down,
                quoted=whole.quoted + done.quoted,
                credits=whole.credits + done.credits,
                jobs=whole.jobs + named,
            )
        if done.next is None:
            return replace(whole, more=False, next=None)
        wanted = replace(wanted, after=done.next, to_the_end=False)  # counted once: the first portion saw them all


#: How the outcome of a job begins that could not be done.
_TURNED_DOWN = "turned down"
_CHANGED = frozenset({"retried", "cancel asked", *map(str, ENDED)})


async def _or_why(do: Callable[[JobLine], Awaitable[JobDone]], job: JobLine) -> JobDone:
    """One that can't be done harms no other."""
    try:
        return await do(job)
    except (StoreError, RefusedRequest) as error:
        return _done(job, f"{_TURNED_DOWN}: {error}")


def _parts(jobs: Iterable[JobLine], percent: int) -> Mapping[str, dict[UUID, int]]:
    """By account, `percent` of what each job was charged, rounded up; without those that were not."""
    found: dict[str, dict[UUID, int]] = defaultdict(dict)
    for job in jobs:
        if job.charged:
            found[job.account][job.id] = -(-job.charged * percent // 100)
    return found


def _done(job: JobLine, outcome: str) -> JobDone:
    return JobDone(job.id, job.account, job.state, job.quoted, outcome)


def _place(after: str | None, states: tuple[JobState, ...]) -> tuple[JobState, UUID | None]:
    """Where to go on. Raises `Refused` for what no portion of this act has told."""
    if after is None:
        return states[0], None
    state, _, job = after.partition(":")
    try:
        found = JobState(state), UUID(job)
    except ValueError:
        found = None
    if found is None or found[0] not in states:
        raise Refused("after", "must be the `next` of the portion before, of the same act and filter")
    return found


def _matches(job: JobLine, wanted: Wanted) -> bool:
    return (wanted.queue is None or job.queue == wanted.queue) and (
        wanted.reason is None or job.reason == wanted.reason
    )


def _check_names(wanted: Wanted, kinds: Collection[str]) -> None:
    """Raises `Refused` for what nothing is called: whoever mistypes must not believe that no job matches.

    Asked only where none does: jobs of a kind that is not run any more are found under its name.
    """
    for name, given in (("kind", wanted.kind), ("queue", wanted.queue)):  # each kind has a queue of its name
        if given is not None and given not in kinds:
            raise Refused(name, f"no {name} {given!r}; there are {', '.join(sorted(kinds))}")
    if wanted.reason is not None:
        check_ending("ended_for", wanted.reason)


def _why(wanted: Wanted, reason: str | None) -> dict[str, str]:
    """For the log. Over all accounts it is left to each job and lot: nowhere else would an erasure of one find it."""
    return {} if reason is None or wanted.account is None else {"reason": reason}


def check_ending(name: str, reason: str) -> None:
    """Raises `Refused`, by the name of the field, for a reason for which no job ever ends."""
    if reason not in set(Ending):
        raise Refused(name, f"no job ends for {reason!r}; there are {', '.join(sorted(Ending))}")


def _told(wanted: Wanted) -> Mapping[str, Any]:
    names = ("account", "kind", "queue", "state", "reason", "created_from", "created_before", "after")
    told = {name: str(value) for name in names if (value := getattr(wanted, name)) is not None}
    return {**told, "metadata": dict(wanted.metadata)} if wanted.metadata else told


def _check_words(reason: str, actor: str) -> None:
    if not is_line(actor, ACTOR_LENGTH_MAX):
        raise Refused("actor", f"must be 1 to {ACTOR_LENGTH_MAX} printable characters on one line")
    most = NOTE_LENGTH_MAX - len(actor) - len(" ()")
    if not is_line(reason, most) or not reason.strip():
        raise Refused("reason", f"must be 1 to {most} printable characters on one line")
