"""Submitting from our own processes: the CLI, the API, a pipeline that runs beside us.

A submit writes PostgreSQL only; Redis may be down. Every call ends as an answer, a refusal that names the field, or
`LedgerUnavailable` / `OutcomeUnknown`: after those the same key asks again without doing anything twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec
import structlog
import uuid_utils.compat as uuids

from config.settings import Settings
from tasks.audio import ProbeLimits, probe
from tasks.kind import AudioInfo, Kind, RefusedRequest, Request, field_of
from tasks.validation import check_inputs, parse
from tasks.voices import voice_of
from worker import tracing
from worker.artifacts.store import ArtifactError, ArtifactStore, Draft, StoreUnwritable
from worker.credits.lots import CREDITS_MAX
from worker.credits.operations import Cancel
from worker.credits.prices import Line, Priced, PriceTooHigh, UnknownPrice, Usage, price
from worker.credits.states import ENDED
from worker.failpoints import failpoint
from worker.store.artifacts import Artifacts
from worker.store.errors import LedgerUnavailable, NoPrice, NotInPlan, OutcomeUnknown, Refused, StoreError
from worker.store.group_commit import GroupCommit
from worker.store.ids import new_id
from worker.store.instants import problem_of_instant
from worker.store.json_values import problem_of_json
from worker.store.reads import Reads
from worker.store.reads_jobs import JobShown
from worker.store.references import check_account_id
from worker.store.retries import Retries
from worker.store.submits import ArtifactFacts, NewJob, Submits, Submitted, SubmitView
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX, is_line
from worker.voices import check_voice

log = structlog.get_logger(__name__)

#: The whole of one job's request, inputs and metadata, as JSON.
BODY_BYTES_MAX = 65_536
#: Names that metadata may have, and its bytes of JSON: labels to find a job by, no place to keep things.
METADATA_NAMES_MAX, METADATA_BYTES_MAX = 100, 8_192
KEY_LENGTH_MAX = 255
#: Of a new idempotency key that other senders would write in other bytes.
NOT_ASCII = f"must be 1 to {KEY_LENGTH_MAX} printable ASCII characters: others are sent differently by each client"
#: Seconds between looks at a job that is waited for: at first short jobs count, later the database does.
_FIRST_SECONDS, _LATER_SECONDS, _SOON_SECONDS = 0.1, 0.5, 5.0


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job as a caller asks for it. `inputs` name artifacts of the account."""

    account_id: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    on_insufficient: str = "refuse"
    max_credits: int | None = None
    run_at: datetime | None = None
    ends_by: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retry_of: UUID | None = None
    #: Raise `InsufficientCredits` at once if the account could not pay it now. What we do ourselves leaves that to
    #: the claim, which decides in any case.
    check_credits: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job would cost at most, and why."""

    kind: str
    total: int
    book_id: int
    lines: tuple[Line, ...]


@dataclass(slots=True)
class Client:
    """The door to the queue in our own processes."""

    kinds: Mapping[str, Kind]
    submits: GroupCommit[Any]
    views: Submits
    operations: GroupCommit[Any]
    stored: Artifacts
    reads: Reads
    retries: Retries
    artifacts: ArtifactStore
    settings: Settings
    #: Told of each submit: the kind that was asked for, and its answer.
    counts: Callable[[object, Submitted | Exception], None] = lambda kind, answer: None

    async def submit(self, asked: JobRequest, actor: str) -> Submitted:
        """Store the job, quoted and pinned; the same key and body give the first answer again.

        Raises `RefusedRequest`, `Refused` (`NotInPlan` among them), `UnknownAccount` or `Conflict`: then nothing was
        stored.
        """
        try:
            answer = await self._submitted(asked, actor)
        except Exception as error:
            self.counts(asked.kind, error)
            raise
        self.counts(asked.kind, answer)
        return answer

    async def _submitted(self, asked: JobRequest, actor: str) -> Submitted:
        with tracing.span("submit", tracing.arrived()) as span:
            submission = self._submission(asked, actor, span.traceparent)
            span.say(account_id=submission.account_id, kind=submission.kind.name)
            answer: Submitted = await self.submits.do(submission)
            span.say(job_id=str(answer.job_id), quoted=answer.quoted, replayed=answer.replayed)
        failpoint("submit.after")
        if not answer.replayed:
            _log_submitted(answer, submission.traceparent)
        return answer

    def check(self, asked: JobRequest) -> None:
        """Raise what is wrong with a request as far as it can be told without its inputs and without the database."""
        self._submission(asked, "check")

    async def submit_many(self, asked: Sequence[JobRequest], actor: str) -> list[Submitted | Exception]:
        """Many at once, one answer each; a bad one harms no other."""
        # Started together they travel together: one statement for up to `batch_max` of them.
        answers = await asyncio.gather(*(self.submit(one, actor) for one in asked), return_exceptions=True)
        for answer in answers:
            if not isinstance(answer, Submitted | Exception):
                raise answer
        return [answer for answer in answers if isinstance(answer, Submitted | Exception)]

    async def wait(self, job_id: UUID, watch: Callable[[JobShown], None] | None = None) -> JobShown:
        """Look until the job has ended, telling `watch` of every look; returns how it ended.

        Waits for as long as it takes: bound it with `asyncio.timeout`. Goes on through outages of the books that
        are not too long, then raises `LedgerUnavailable`; the job doesn't need us. Raises `UnknownJob`.
        """
        _check_job_id("job", job_id)
        started = answered = monotonic()
        while True:
            try:
                job = await self.reads.job(job_id)
            except LedgerUnavailable:
                if monotonic() - answered > self.settings.outage_max_seconds:
                    raise
            else:
                answered = monotonic()
                if watch is not None:
                    watch(job)
                if job.state in ENDED:
                    return job
            await asyncio.sleep(_FIRST_SECONDS if monotonic() - started < _SOON_SECONDS else _LATER_SECONDS)

    async def cancel(self, account_id: str, job_id: UUID, reason: str, actor: str | None = None) -> Any:
        """End a queued or waiting job, or ask a running one's worker to stop it (within 2 s). With an `actor` the log
        has it from the same COMMIT on.

        Raises `RefusedRequest` for a reason that can't be shown on one line.
        """
        check_account_id(account_id)
        _check_job_id("job", job_id)
        _check_line("reason", reason, NOTE_LENGTH_MAX)
        return await self.operations.do(Cancel(account_id, job_id, reason, actor))

    async def retry(
        self, job_id: UUID, actor: str, key: str | None = None, *, check_credits: bool = False
    ) -> Submitted:
        """A new job with the ended one's request, freshly quoted. Once per key; by default `retry:JOB`.

        Raises `UnknownJob`, or `Refused` for a job that has not ended.
        """
        _check_job_id("job", job_id)
        asked = await self.retries.asked(job_id)
        if not asked.ended:
            raise Refused("job", f"{job_id} is {asked.state}: only an ended job can be tried again")
        return await self.submit(
            JobRequest(
                account_id=asked.account_id,
                kind=asked.kind,
                params=asked.params,
                inputs=asked.inputs,
                key=key or f"retry:{job_id}",
                on_insufficient=asked.on_insufficient,
                max_credits=asked.max_credits,
                metadata=asked.metadata,
                retry_of=job_id,
                check_credits=check_credits,
            ),
            actor,
        )

    async def quote(self, asked: JobRequest) -> Quote:
        """What the job would cost at most, by the book in force now. Stores nothing.

        Without an account in `asked` (an empty id) no plan applies and inputs can't be named.
        """
        submission = self._submission(asked, "quote")
        view = await self.views.view(asked.account_id or None, submission.artifact_ids, submission.voice)
        if asked.account_id:
            check_voice(asked.account_id, submission.request, submission.inputs, view)
        infos = inputs_of(submission.kind, submission.inputs, view.artifacts)
        priced = quote_of(submission.kind, submission.request, infos, view)
        return Quote(submission.kind.name, priced.total, view.book_id, priced.lines)

    async def put(self, account_id: str, path: Path, actor: str, name: str | None = None) -> ArtifactFacts:
        """Copy a file into the store, decode the copy once, register what was found.

        Raises `RefusedRequest` for a file we don't take, `StoreUnwritable` where our disk takes no more; then nothing
        is left of it. Where nobody can say whether it was registered, the file stays: one too many harms nobody.
        """
        check_account_id(account_id)
        _check_line("actor", actor, ACTOR_LENGTH_MAX)
        artifact_id = uuids.uuid7()
        check_source(path, self.settings.upload_bytes_max)
        try:
            draft = await self.artifacts.draft(path, artifact_id)
        except StoreUnwritable:
            raise
        except (OSError, ArtifactError) as error:
            raise RefusedRequest("file", _why_unreadable(error)) from None
        try:
            facts = await self._kept(draft, account_id, _shown_name(name or path.name))
        finally:
            await self.artifacts.drop(draft)
        # From here on a row may name the file, also if we are cancelled or the answer of its COMMIT is lost.
        try:
            await self.stored.add(account_id, facts, actor)
        except OutcomeUnknown:
            raise
        except StoreError:
            await self._remove(facts.storage_key)
            raise
        return facts

    async def _kept(self, draft: Draft, account_id: str, name: str) -> ArtifactFacts:
        """Measure a draft, then keep it: nobody ever sees a file that we don't take."""
        probed = await probe(draft.path, limits=ProbeLimits(bytes_max=self.settings.upload_bytes_max))
        return ArtifactFacts(
            artifact_id=draft.artifact_id,
            name=name,
            media_type=probed.media_type,
            storage_key=await self.artifacts.keep(draft, account_id),
            sha256=bytes.fromhex(draft.sha256),
            frames=probed.info.frames,
            sample_rate=probed.info.sample_rate,
            channels=probed.info.channels,
            bytes=probed.bytes,
        )

    async def _remove(self, key: str) -> None:
        with suppress(OSError, ArtifactError):  # what went wrong before is what the caller must hear of
            await self.artifacts.remove(key)

    def _submission(self, asked: JobRequest, actor: str, traceparent: str | None = None) -> _Submission:
        kind = self.kinds.get(asked.kind) if isinstance(asked.kind, str) else None
        if kind is None:
            raise RefusedRequest("kind", f"no such kind (known: {', '.join(sorted(self.kinds))})")
        if asked.account_id != "":
            check_account_id(asked.account_id)
        _check_line("actor", actor, ACTOR_LENGTH_MAX)
        request = parse(kind, asked.params)
        _check_options(asked)
        artifact_ids = {name: _artifact_id(name, value) for name, value in asked.inputs.items()}
        key = asked.key if asked.key is not None else f"auto:{uuids.uuid7()}"
        _check_line("key", key, KEY_LENGTH_MAX)
        return _Submission(asked, kind, request, artifact_ids, key, self.settings, actor, traceparent)


@dataclass(frozen=True, slots=True)
class _Submission:
    """A submit on its way through a batch."""

    asked: JobRequest
    kind: Kind
    request: Request
    inputs: Mapping[str, UUID]
    idempotency_key: str
    settings: Settings
    actor: str
    traceparent: str | None

    @property
    def account_id(self) -> str:
        return self.asked.account_id

    @property
    def artifact_ids(self) -> Sequence[UUID]:
        return list(self.inputs.values())

    @property
    def voice(self) -> str | None:
        return voice_of(self.request)

    @property
    def body_hash(self) -> bytes:
        """Of what was asked, in canonical form: order, spaces, zones and spelled-out defaults make no difference."""
        asked = self.asked
        body = [
            "1",
            asked.kind,
            self.request.model_dump(mode="json", exclude_defaults=True),
            {name: str(artifact_id) for name, artifact_id in self.inputs.items()},
            asked.on_insufficient,
            asked.max_credits,
            asked.run_at and asked.run_at.astimezone(UTC).isoformat(),
            asked.ends_by and asked.ends_by.astimezone(UTC).isoformat(),
            dict(asked.metadata),
        ]
        return hashlib.sha256(msgspec.json.encode(body, order="sorted")).digest()

    def decide(self, view: SubmitView) -> NewJob:
        """Quote the job and pin the quote. Raises what is wrong with it."""
        # A new key only: what was stored under any other before is answered again. A header's bytes are read one by
        # one, a body's as UTF-8: the same "ü" was two keys, and two jobs were paid.
        if not self.idempotency_key.isascii():
            raise RefusedRequest("key", NOT_ASCII)
        if self.asked.ends_by is not None and self.asked.ends_by <= view.now:
            raise RefusedRequest("ends_by", "must be in the future")
        check_plan(self.kind, self.request, view)
        check_voice(self.account_id, self.request, self.inputs, view)
        infos = inputs_of(self.kind, self.inputs, view.artifacts)
        quoted = quote_of(self.kind, self.request, infos, view).total
        asked = self.asked
        if asked.max_credits is not None and quoted > asked.max_credits:
            raise Refused("max_credits", f"the quote is {quoted} credits, above the {asked.max_credits} allowed")
        return NewJob(
            job_id=new_id(),
            kind=self.kind.name,
            queue=self.kind.name,
            request=self.request.model_dump(mode="json"),
            inputs={name: str(artifact_id) for name, artifact_id in self.inputs.items()},
            metadata=dict(asked.metadata),
            quoted=quoted,
            book_id=view.book_id,
            plan=view.plan,
            priority=view.priority,
            on_insufficient=asked.on_insufficient,
            max_credits=asked.max_credits,
            run_at=asked.run_at,
            ends_by=asked.ends_by,
            job_seconds=self.settings.job_seconds,
            failures_max=self.settings.failures_max,
            actor=self.actor,
            retry_of=asked.retry_of,
            traceparent=self.traceparent,
            check_credits=asked.check_credits and asked.on_insufficient == "refuse",
        )


def _log_submitted(job: Submitted, traceparent: str | None) -> None:
    traced = tracing.trace_id_of(traceparent)
    log.info(
        "submitted",
        job_id=str(job.job_id),
        account_id=job.account_id,
        kind=job.kind,
        quoted=job.quoted,
        **({"trace_id": traced} if traced is not None else {}),
    )


def check_plan(kind: Kind, request: Request, view: SubmitView) -> None:
    """Raises `NotInPlan` unless the account's plan allows the kind and the model; without a plan nothing restricts."""
    plan = view.terms
    model: str | None = field_of(request, "model")
    if plan is None or plan.allows(kind.name, model):
        return
    if kind.name not in plan.kinds:
        raise NotInPlan("kind", f"{kind.name} is not in the plan {plan.name}, which has {', '.join(plan.kinds)}")
    models = ", ".join(plan.models[kind.name])
    raise NotInPlan("model", f"{model} is not in the plan {plan.name}, which has {models} for {kind.name}")


def inputs_of(kind: Kind, inputs: Mapping[str, UUID], artifacts: Mapping[UUID, ArtifactFacts]) -> dict[str, AudioInfo]:
    """What was measured of the inputs, within the kind's limits. Raises `RefusedRequest`."""
    infos = {}
    for name, artifact_id in inputs.items():
        if artifact_id not in artifacts:
            raise RefusedRequest(f"inputs.{name}", f"the account has no artifact {artifact_id}")
        facts = artifacts[artifact_id]
        if not facts.media_type.startswith("audio/"):
            raise RefusedRequest(f"inputs.{name}", f"is no audio ({facts.media_type})")
        infos[name] = AudioInfo(facts.frames, facts.sample_rate, facts.channels)
    check_inputs(kind, infos)
    return infos


def quote_of(kind: Kind, request: Request, infos: Mapping[str, AudioInfo], view: SubmitView) -> Priced:
    """The price of the most that the request can use. Raises `Refused` where there is none."""
    usages = [Usage(most.seconds_in, most.seconds_out) for most in kind.usage(request, infos)]
    try:
        return price(view.book, kind.name, usages, request.model_dump(mode="json"), view.plan)
    except UnknownPrice:
        raise NoPrice("kind", f"{kind.name} has no price in book {view.book_id}") from None
    except PriceTooHigh as error:
        raise Refused("kind", f"it would cost {error.total} credits; the most is {CREDITS_MAX}") from None


def check_source(path: Path, bytes_max: int) -> None:
    """Raises `RefusedRequest` for what can't be read as a plain file, before anything is copied."""
    try:
        facts = path.lstat()
    except (OSError, ValueError) as error:
        raise RefusedRequest("file", _why_unreadable(error)) from None
    if not path.is_file() or path.is_symlink():
        raise RefusedRequest("file", "must be a plain file: no folder, link, pipe or device")
    if facts.st_size == 0:
        raise RefusedRequest("file", "is empty")
    if facts.st_size > bytes_max:
        raise RefusedRequest("file", f"has {facts.st_size:,} bytes; at most {bytes_max:,} are taken")


def _check_options(asked: JobRequest) -> None:
    if asked.on_insufficient not in ("refuse", "wait"):
        raise RefusedRequest("on_insufficient", "must be refuse or wait")
    limit = asked.max_credits
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= CREDITS_MAX):
        raise RefusedRequest("max_credits", f"must be a whole number from 0 to {CREDITS_MAX:,}")
    for name, time in (("run_at", asked.run_at), ("ends_by", asked.ends_by)):
        if time is not None and (problem := problem_of_instant(time)) is not None:
            raise RefusedRequest(name, problem)
    if asked.run_at and asked.ends_by and asked.ends_by <= asked.run_at:
        raise RefusedRequest("ends_by", "must be after run_at")
    if asked.retry_of is not None:
        _check_job_id("retry_of", asked.retry_of)
    labels = _size_of("metadata", asked.metadata)
    if labels > METADATA_BYTES_MAX or len(asked.metadata) > METADATA_NAMES_MAX:
        given = f"{len(asked.metadata):,} name{'' if len(asked.metadata) == 1 else 's'} and {labels:,} bytes"
        most = f"at most {METADATA_NAMES_MAX} and {METADATA_BYTES_MAX:,} are taken, as JSON"
        raise RefusedRequest("metadata", f"has {given}; {most}: keep the rest under the job's id on your side")
    size = labels + _size_of("params", asked.params) + _size_of("inputs", asked.inputs)
    if size > BODY_BYTES_MAX:
        raise RefusedRequest("params", f"the request has {size:,} bytes; at most {BODY_BYTES_MAX:,} are taken")


def _size_of(field: str, given: object) -> int:
    """In bytes of JSON. Raises `RefusedRequest` for what could not be stored as it is."""
    if not isinstance(given, Mapping):
        raise RefusedRequest(field, "must be an object of names and values")
    if (problem := problem_of_json(dict(given), BODY_BYTES_MAX)) is not None:
        raise RefusedRequest(field, problem)
    try:
        return len(msgspec.json.encode(dict(given)))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        raise RefusedRequest(field, "must be JSON") from None


def _check_line(field: str, given: object, length_max: int) -> None:
    if not is_line(given, length_max):
        raise RefusedRequest(field, f"must be 1 to {length_max} printable characters on one line")


def _check_job_id(field: str, given: object) -> None:
    if not isinstance(given, UUID):
        raise RefusedRequest(field, "must be the id of a job")


def _artifact_id(name: str, value: str) -> UUID:
    try:
        return UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise RefusedRequest(f"inputs.{name[:32]}", "must be the id of an artifact") from None


def _shown_name(name: str) -> str:
    """What a customer called the file, for people to read only: one line, no control characters."""
    return "".join(character if character.isprintable() else "?" for character in name)[:200] or "audio"


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror.lower()}"
    return "can't be read as a file"
