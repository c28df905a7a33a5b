"""`fermata jobs …`: submit a job, look at it, stop it, try it again, see what it cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from worker.cli import jobs_shown, opening, values
from worker.cli.failures import NO
from worker.cli.options import Actor, Inputs, Json, Params
from worker.cli.output import facts, present, say
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX

if TYPE_CHECKING:
    from worker.cli.opening import Books, Desk
    from worker.client import JobRequest
    from worker.steering import ManyDone, Steering, Wanted
    from worker.store.compensations import Compensated
    from worker.store.ops import Pause
    from worker.store.reads_jobs import JobShown
    from worker.store.submits import Submitted

app = cyclopts.App(name="jobs", help="Jobs: what a customer asked for, and what became of it.")

#: Who cancelled is written behind the reason, as ` (actor)`, and both together are a note.
_REASON_MAX = NOTE_LENGTH_MAX - ACTOR_LENGTH_MAX - len(" ()")

Wait = Annotated[
    bool, Parameter(name="--wait", negative="", show_default=False, help="Follow it to its end; 1 unless it succeeded.")
]

OfAccount = Annotated[str | None, Parameter(name="--account", help="Of this account only.")]
OfKind = Annotated[str | None, Parameter(name="--kind", help="Of this kind only.")]
OfQueue = Annotated[str | None, Parameter(name="--queue", help="Of this queue only.")]
AtMost = Annotated[str, Parameter(name="--limit", help="1 to 10,000 jobs at once.")]
Behind = Annotated[str | None, Parameter(name="--after", help="Go on behind this place: `next` of the portion before.")]
Everything = Annotated[
    bool,
    Parameter(name="--all", negative="", show_default=False, help="However many: in portions of --limit."),
]
Since = Annotated[str | None, Parameter(name="--since", help="Submitted at this time or later, with its zone.")]
Until = Annotated[str | None, Parameter(name="--until", help="Submitted before this time, with its zone.")]
OfMetadata = Annotated[
    tuple[str, ...],
    Parameter(
        name="--metadata", negative="", show_default=False, help="With this name=value, of one account; repeat it."
    ),
]
DryRun = Annotated[bool, Parameter(name="--dry-run", negative="", show_default=False, help="Only show what would be.")]


@app.command
def submit(
    kind: str,
    /,
    *,
    account: Annotated[str, Parameter(help="Who pays.")],
    params: Params = (),
    inputs: Inputs = (),
    key: Annotated[
        str | None, Parameter(help="Idempotency key: asked twice, it is one job. Default: a new one.")
    ] = None,
    max_credits: Annotated[str | None, Parameter(help="Turn it down if the quote is above this.")] = None,
    on_insufficient: Annotated[str, Parameter(help="refuse, or wait for credits.")] = "refuse",
    run_at: Annotated[str | None, Parameter(help="Not before this time, with its zone.")] = None,
    ends_by: Annotated[str | None, Parameter(help="Ended by this time at the latest, with its zone.")] = None,
    metadata: Annotated[
        tuple[str, ...],
        Parameter(name="--metadata", negative="", show_default=False, help="Kept with the job: name=value; repeat it."),
    ] = (),
    wait: Wait = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Ask for a job. Nothing is reserved before it runs, and it never costs more than the quote.

    Parameters
    ----------
    kind: str
        What sort of job: generation, vocal_conversion, stem_split, …
    """
    who, own_key = values.actor_of(actor), key if key is not None else _new_key()

    def asked(desk: Desk) -> JobRequest:
        from worker.cli.asking import kind_named, split_inputs, typed_metadata, typed_params
        from worker.client import JobRequest

        return JobRequest(
            account_id=values.account_id(account),
            kind=kind,
            params=typed_params(kind_named(desk, kind), params),
            inputs={name: str(artifact) for name, artifact in split_inputs(inputs).artifacts.items()},
            key=own_key,
            on_insufficient=on_insufficient,
            max_credits=None if max_credits is None else values.whole("max_credits", max_credits, 0),
            run_at=None if run_at is None else values.moment("run_at", run_at),
            ends_by=None if ends_by is None else values.moment("ends_by", ends_by),
            metadata=typed_metadata(metadata),
        )

    async def work(desk: Desk) -> tuple[Submitted, JobShown | None]:
        from worker.cli.asking import split_inputs, with_files_put

        request = await with_files_put(desk, asked(desk), split_inputs(inputs).files, who)
        if key is None:
            say(f"key {own_key}")  # known before anything is stored: the same key asks again
        return await _submitted(desk, await desk.client.submit(request, who), wait=wait)

    return _present_submitted(*opening.with_desk(work), key=own_key, json=json)


@app.command
def show(job: str, /, *, json: Json = False) -> int:
    """One job as it stands: its state, what it waits for, what it made and what it cost."""
    import msgspec

    job_id = values.identifier("job", job)

    async def work(books: Books) -> tuple[JobShown, tuple[Pause, ...]]:
        from worker.store.ops import Controls
        from worker.store.reads_jobs import WaitingFor

        shown = await books.reads.job(job_id)
        if shown.waiting_for is not WaitingFor.PAUSED:
            return shown, ()
        return shown, await Controls(books.store.engine).pauses_of(shown.queue, shown.kind, shown.account)

    shown, pauses = opening.with_books(work)
    document = {**msgspec.to_builtins(shown), "pauses": pauses} if pauses else shown
    return present(document, json, jobs_shown.job(shown, pauses))


@app.command(name="list")
def list_(
    *,
    account: Annotated[str | None, Parameter(help="Of this account only.")] = None,
    state: Annotated[
        str | None, Parameter(help="queued, running, waiting, succeeded, failed, cancelled, refused")
    ] = None,
    kind: Annotated[str | None, Parameter(help="Of this kind only.")] = None,
    limit: Annotated[str, Parameter(help="1 to 1000.")] = "50",
    after: Annotated[str | None, Parameter(help="Go on after this job.")] = None,
    json: Json = False,
) -> int:
    """Jobs, the newest first."""
    whose = None if account is None else values.account_id(account)
    sort = None if kind is None else values.line("kind", kind, 64)
    most, place = values.whole("limit", limit, 1, 1000), None if after is None else values.identifier("after", after)
    page = opening.with_books(lambda books: books.reads.jobs(whose, state, sort, most, place))
    return present(page, json, jobs_shown.page(page))


@app.command
def tail(
    *,
    account: OfAccount = None,
    kind: OfKind = None,
    seconds: Annotated[str | None, Parameter(help="Stop after so many. Default: Ctrl-C.")] = None,
    json: Annotated[bool, Parameter(negative="", help="One JSON document a line.")] = False,
) -> int:
    """Follow what happens to jobs, all of them or some: each that starts and each that ends, a line each."""
    whose = None if account is None else values.account_id(account)
    sort = None if kind is None else values.line("kind", kind, 64)
    lasts = None if seconds is None else values.whole("seconds", seconds, 1, 86_400)

    async def work(books: Books) -> None:
        from worker.cli.following import follow
        from worker.store.reads_tail import Tail

        await follow(Tail(books.store.engine, whose, sort), lasts, as_json=json)

    opening.with_books(work)
    return 0


@app.command
def cancel(
    job: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the customer and the books.")] = "cancelled by request",
    json: Json = False,
    actor: Actor = None,
) -> int:
    """End a queued or waiting job, or ask a running one to stop. 1 if it had ended before."""
    job_id, why, who = values.identifier("job", job), values.line("reason", reason, _REASON_MAX), values.actor_of(actor)

    async def work(desk: Desk) -> dict[str, Any]:
        from worker.credits.operations import AlreadyEnded, CancelAsked

        before = await desk.reads.job(job_id)
        answer = await desk.client.cancel(before.account, job_id, why, who)
        state = "running" if isinstance(answer, CancelAsked) else str(getattr(answer, "state", before.state))
        return {
            "id": job_id,
            "account": before.account,
            "state": state,
            "cancel_asked": isinstance(answer, CancelAsked),
            "already_ended": isinstance(answer, AlreadyEnded),
        }

    done = opening.with_desk(work)
    line = "its worker was asked to stop it" if done["cancel_asked"] else str(done["state"])
    line = f"had ended before: {line}" if done["already_ended"] else line
    return present(done, json, [f"job {job_id}: {line}"], code=1 if done["already_ended"] else 0)


@app.command
def retry(
    job: str,
    /,
    *,
    key: Annotated[str | None, Parameter(help="Idempotency key. Default: retry:JOB, so that twice is once.")] = None,
    wait: Wait = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Ask for an ended job's request again: a new job with a fresh quote."""
    job_id, who = values.identifier("job", job), values.actor_of(actor)

    async def work(desk: Desk) -> tuple[Submitted, JobShown | None]:
        return await _submitted(desk, await desk.client.retry(job_id, who, key), wait=wait)

    return _present_submitted(*opening.with_desk(work), key=key or f"retry:{job_id}", json=json)


@app.command
def receipt(job: str, /, *, json: Json = False) -> int:
    """Why a job cost what it did: lots, price rules, what was measured, why the rest came back."""
    job_id = values.identifier("job", job)
    shown = opening.with_books(lambda books: books.reads.receipt(job_id))
    return present(shown, json, jobs_shown.receipt(shown))


@app.command
def compensate(
    job: str,
    /,
    *,
    amount: Annotated[str, Parameter(help="Credits: in total at most what the job was charged.")],
    reason: Annotated[str, Parameter(help="Why, for the customer and the books.")],
    reference: Annotated[
        str | None, Parameter(help="The same reference twice is one compensation. Default: a new one.")
    ] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Give credits for an ended job. They last until the cycle ends, and a day at least."""
    job_id, credits_ = values.identifier("job", job), values.whole("amount", amount)
    why, who = values.line("reason", reason), values.actor_of(actor)
    own = reference if reference is not None else _new_key()

    async def work(books: Books) -> Compensated:
        from worker.store.compensations import Compensations

        account = (await books.reads.job(job_id)).account
        return await Compensations(books.store.engine, books.store.books).compensate(
            account, job_id, credits_, own, why, who
        )

    if reference is None:
        say(f"reference {own}")  # known before anything is given: the same one asks again
    done = opening.with_books(work)
    return present(
        done,
        json,
        [facts([*((name, getattr(done, name)) for name in ("job", "account", "credits", "expires_at", "reference"))])],
    )


@app.command(name="force-end")
def force_end(
    job: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the customer and the books.")],
    json: Json = False,
    actor: Actor = None,
) -> int:
    """End a running job that is stuck: it fails, what it holds goes back, and its worker can't settle it any more."""
    job_id, why, who = values.identifier("job", job), values.line("reason", reason, _REASON_MAX), values.actor_of(actor)
    done = opening.with_desk(lambda desk: _steering(desk).force_end(job_id, why, who))
    return present(done, json, [f"job {job_id}: {done.state}, {done.refunded:,} credits went back"])


@app.command(name="cancel-many")
def cancel_many(
    *,
    account: OfAccount = None,
    kind: OfKind = None,
    queue: OfQueue = None,
    state: Annotated[str | None, Parameter(help="queued, waiting or running. Default: all three.")] = None,
    since: Since = None,
    until: Until = None,
    metadata: OfMetadata = (),
    limit: AtMost = "1000",
    after: Behind = None,
    everything: Everything = False,
    reason: Annotated[str, Parameter(help="Why, for the customers and the books.")],
    dry_run: DryRun = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Cancel all unfinished jobs that match. `--dry-run` shows first which those are."""
    why, who = values.line("reason", reason, _REASON_MAX), values.actor_of(actor)
    wanted = _wanted(account, kind, queue, state, None, limit, since, until, metadata, after)

    def act(steering: Steering, wanted: Wanted) -> Awaitable[ManyDone]:
        return steering.cancel_many(wanted, why, who, dry_run=dry_run)

    return _present_many(act, wanted, everything=everything, json=json)


@app.command(name="retry-many")
def retry_many(
    *,
    account: OfAccount = None,
    kind: OfKind = None,
    queue: OfQueue = None,
    state: Annotated[str | None, Parameter(help="failed, cancelled or refused. Default: failed.")] = "failed",
    reason: Annotated[str | None, Parameter(help="That ended for this reason only.")] = None,
    since: Since = None,
    until: Until = None,
    metadata: OfMetadata = (),
    limit: AtMost = "1000",
    after: Behind = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Ask again for all jobs that match, each once. `--dry-run` shows first which those are, and what they cost."""
    who = values.actor_of(actor)
    wanted = _wanted(account, kind, queue, state, reason, limit, since, until, metadata, after, "reason")

    def act(steering: Steering, wanted: Wanted) -> Awaitable[ManyDone]:
        return steering.retry_many(wanted, who, dry_run=dry_run)

    return _present_many(act, wanted, everything=everything, json=json)


@app.command(name="compensate-many")
def compensate_many(
    *,
    percent: Annotated[str, Parameter(help="Of what each was charged, 1 to 100; rounded up.")],
    reason: Annotated[str, Parameter(help="Why, for the customers and the books.")],
    reference: Annotated[str, Parameter(help="A name for this act: each job is compensated once under it.")],
    account: OfAccount = None,
    kind: OfKind = None,
    queue: OfQueue = None,
    state: Annotated[str | None, Parameter(help="succeeded, failed or cancelled. Default: all three.")] = None,
    ended_for: Annotated[str | None, Parameter(help="That ended for this reason only.")] = None,
    since: Since = None,
    until: Until = None,
    metadata: OfMetadata = (),
    limit: AtMost = "1000",
    after: Behind = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Give credits for all charged jobs that match, in total at most what each cost. `--dry-run` shows first what."""
    part, name = values.whole("percent", percent, 1, 100), values.line("reference", reference, 100)
    why, who = values.line("reason", reason, _REASON_MAX), values.actor_of(actor)
    wanted = _wanted(account, kind, queue, state, ended_for, limit, since, until, metadata, after)

    def act(steering: Steering, wanted: Wanted) -> Awaitable[ManyDone]:
        return steering.compensate_many(wanted, part, name, why, who, dry_run=dry_run)

    return _present_many(act, wanted, everything=everything, json=json)


def _present_many(
    act: Callable[[Steering, Wanted], Awaitable[ManyDone]],
    wanted: Callable[[], Wanted],
    *,
    everything: bool,
    json: bool,
) -> int:
    """Do it to a portion, or to everything in portions, and show what was done. 1 if all were turned down."""

    async def work(desk: Desk) -> ManyDone:
        from worker.steering import in_portions

        steering = _steering(desk)
        return await (in_portions(partial(act, steering), wanted()) if everything else act(steering, wanted()))

    done = opening.with_desk(work)
    all_turned_down = done.turned_down and not done.changed and not done.credits
    return present(done, json, jobs_shown.many(done), code=NO if all_turned_down else 0)


def _wanted(
    account: str | None,
    kind: str | None,
    queue: str | None,
    state: str | None,
    reason: str | None,
    limit: str,
    since: str | None,
    until: str | None,
    metadata: tuple[str, ...],
    after: str | None,
    ended_for: str = "ended_for",  # what the verb calls the reason
) -> Callable[[], Wanted]:
    """Checked now, made when the database is needed anyway."""
    whose = None if account is None else values.account_id(account)
    sort, where = (None if name is None else values.line("kind", name, 64) for name in (kind, queue))
    most = values.whole("limit", limit, 1, 10_000)
    begin, end = (
        None if given is None else values.moment(name, given) for name, given in (("since", since), ("until", until))
    )
    pairs = values.pairs("metadata", metadata)

    def made() -> Wanted:
        from worker.credits.states import JobState
        from worker.steering import Wanted, check_ending
        from worker.store.errors import Refused

        if state is not None and state not in list(JobState):
            raise Refused("state", f"no state {state!r}; there are {', '.join(sorted(JobState))}")
        if reason is not None:
            check_ending(ended_for, reason)
        chosen = None if state is None else JobState(state)
        return Wanted(whose, sort, where, chosen, reason, most, begin, end, pairs, after)

    return made


def _steering(desk: Desk) -> Steering:
    from worker.boot import steering_over

    return steering_over(desk.client, desk.store)


async def _submitted(desk: Desk, done: Submitted, *, wait: bool) -> tuple[Submitted, JobShown | None]:
    from worker.cli.following import progress

    if not wait:
        return done, None
    say(f"job {done.job_id}")  # whoever stops waiting can look again later
    with progress() as watch:
        return done, await desk.client.wait(done.job_id, watch)


def _present_submitted(done: Submitted, ended: JobShown | None, *, key: str, json: bool) -> int:
    import msgspec

    if ended is not None:
        document = {**msgspec.to_builtins(ended), "replayed": done.replayed, "key": key}
        return present(document, json, jobs_shown.job(ended), code=0 if ended.state == "succeeded" else 1)
    document = done.shown(key)
    return present(document, json, [facts((name, value) for name, value in document.items() if value is not False)])


def _new_key() -> str:
    import uuid_utils.compat as uuids

    return f"cli-{uuids.uuid7()}"
