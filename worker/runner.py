"""The story of one job: claim it, run it, settle it.

Claiming reserves its credits; settling commits or refunds them together with the result. Between the two no
connection is held: the lease, renewed by the process's keeper, says that the job is ours, and the token says who
may settle it. PostgreSQL being away is not a failure: what runs goes on and settles when the books are back.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import random
from time import monotonic, time_ns
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from config.settings import Settings
from tasks.kind import AudioInfo, Context, EngineError, InputFile, Kind, Output, QualityGate, RunLimits
from tasks.voices import REFERENCE, voice_of
from worker import tracing
from worker.artifacts.store import ArtifactError, ArtifactStore, DamagedArtifact
from worker.credits.lots import BrokenInvariant
from worker.credits.operations import Claim, Claimed, Dropped, Ended, Fenced, Parked, Requeued, Settle
from worker.credits.outcomes import Ending
from worker.credits.page import REJECTED, Artifact
from worker.credits.prices import Usage, price
from worker.credits.states import JobState
from worker.failpoints import failpoint
from worker.hold_off import HoldOff
from worker.keeper import Keeper, Loss, Lost
from worker.outside import Outside, Stored
from worker.store.artifacts import Artifacts
from worker.store.errors import LedgerUnavailable, LedgerUnfit, OutcomeUnknown, RefusedByDatabase, UnknownAccount
from worker.store.group_commit import GroupCommit
from worker.store.ids import as_ours, new_id
from worker.store.leases import Held, Leases, Standing
from worker.store.prices import PriceBooks
from worker.store.submits import ArtifactFacts
from worker.store.voices import Voices

log = structlog.get_logger(__name__)

#: Seconds between tries to reach the books.
_RETRY_SECONDS = 0.25
_RETRY_SECONDS_MAX = 5.0
#: What the keeper's verdict on a run means for its job.
_ENDING_OF_LOSS = {
    Loss.LEASE: Ending.LOST_WORKER,
    Loss.CANCEL: Ending.CANCELLED_RUNNING,
    Loss.OUTAGE: Ending.OUTAGE,
}
#: Errors that an engine may call its own and that another attempt may help.
_RETRYABLE = frozenset(
    {
        Ending.ENGINE_FAILURE,
        Ending.ENGINE_CRASHED,
        Ending.ENGINE_UNAVAILABLE,
        Ending.OUT_OF_MEMORY,
        Ending.QUALITY_GATE,
    }
)
#: Seconds that an engine gets to stop when it is told to: killing and reaping a child takes a few milliseconds.
_STOP_SECONDS = 5.0
#: What a customer may be told of an error, at most.
_MESSAGE_LENGTH_MAX = 500


@dataclass(slots=True)
class Attempt:
    """What one run has come to so far; also the `Context` that its engine sees."""

    held: Held
    engine_state: Mapping[str, Any]
    keeper: Keeper
    artifacts: ArtifactStore
    outside: Outside
    #: The span that claimed it.
    traceparent: str | None = None
    inputs: dict[str, Stored] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    kept: list[Artifact] = field(default_factory=list)
    #: Whether the request asks for outputs at all.
    outputs_due: bool = True
    #: Set before a run is stopped whose job ends with it.
    abandoned: bool = False
    #: By the monotonic clock.
    started: float = field(default_factory=monotonic)
    _workdir: Path | None = None

    @property
    def job_id(self) -> UUID:
        return self.held.job_id

    @property
    def workdir(self) -> Path:
        """A private folder, made when it is first asked for."""
        if self._workdir is None:
            self._workdir = self.artifacts.workdir(self.held.token)
            self._workdir.mkdir(mode=0o700, parents=True)
        return self._workdir

    def __post_init__(self) -> None:
        self.outside.listen(self.held.token, self.held.job_id)

    async def clean(self) -> None:
        """Delete the folder. What a killed process leaves is swept later."""
        self.outside.stop_listening(self.held.token)
        if self._workdir is not None:
            await asyncio.to_thread(shutil.rmtree, self._workdir, True)

    def progress(self, fraction: float, stage: str) -> None:
        self.keeper.report(self.held, min(max(fraction, 0.0), 1.0), stage)

    async def remember(self, state: Mapping[str, Any]) -> None:
        await self.keeper.remember(self.held, state)

    async def pause(self, seconds: float) -> None:
        await self.outside.pause(self.held.token, seconds)

    def completion_url(self) -> str | None:
        return self.outside.completion_url(self.held.job_id)

    async def input_url(self, name: str) -> str | None:
        return await self.outside.input_url(self.inputs[name])

    async def finished(self, output: Output) -> None:
        """Keep the output durably under this attempt's token. It counts once this returns."""
        if any(output.name == other.name for other in self.outputs):
            raise EngineError(f"two outputs are called {output.name}")
        key, kept = await self.artifacts.put_output(output.path, self.held.job_id, self.held.token, output.name)
        if kept != output.sha256:
            raise ArtifactError(f"the output {output.name} is not what its engine said it was")
        failpoint("run.kept")
        info = output.info
        self.outputs.append(output)
        self.kept.append(
            Artifact(
                artifact_id=new_id(),
                name=output.name,
                media_type=output.media_type,
                storage_key=key,
                sha256=bytes.fromhex(kept),
                frames=info.frames,
                sample_rate=info.sample_rate,
                channels=info.channels,
                bytes=output.bytes,
            )
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    ending: Ending
    message: str | None = None
    #: What a quality gate has turned down, as it was measured.
    rejected: Mapping[str, str] | None = None


class Tally(Protocol):
    """Who counts what becomes of jobs."""

    def claimed(self, answer: Any) -> None: ...

    def settled(self, claim: Claimed, answer: Any, seconds: float) -> None: ...


@dataclass(slots=True)
class Runner:
    """Runs jobs of one process."""

    worker_id: str
    settings: Settings
    kinds: Mapping[str, Kind]
    operations: GroupCommit[Any]
    leases: Leases
    hold_off: HoldOff
    keeper: Keeper
    stored: Artifacts
    voices: Voices
    artifacts: ArtifactStore
    outside: Outside
    price_books: PriceBooks
    metrics: Tally | None = None

    async def run(self, account_id: str, job_id: UUID, claimed: Callable[[], None]) -> None:
        """Run the job to its settled end. Calls `claimed` once it is ours; returns early when the claim is dropped.

        Cancelled with `HAND_BACK` it puts the job back in the queue, uncounted.
        """
        # Made before the claim: whoever holds it can always find out what became of the claim.
        held = Held(account_id, as_ours(job_id), new_id())
        failpoint("claim.before")
        began = time_ns()
        claim = await self._claim(held)
        if not isinstance(claim, Claimed):
            return
        failpoint("claim.after")
        with tracing.span("claim", claim.job.traceparent, _facts(claim, held), began) as claimed_span:
            pass  # whose trace it belongs to is known only now
        self.keeper.hold(held)
        claimed()
        attempt = Attempt(
            held,
            claim.order.engine_state or {},
            self.keeper,
            self.artifacts,
            self.outside,
            claimed_span.traceparent,
        )
        try:
            with tracing.span("run", attempt.traceparent, _facts(claim, held)) as span:
                outcome = await self._run(claim, attempt)
                span.say(ending=outcome.ending.value)
                if outcome.ending is not Ending.SUCCEEDED:
                    span.failed(outcome.ending.value)
            failpoint("settle.before")
            await self._settle(claim, attempt, outcome)
            failpoint("settle.after")
        finally:
            self.keeper.let_go(held)
            await attempt.clean()

    # --- claim

    async def _claim(self, held: Held) -> Any:
        if self.hold_off.is_busy(held.account_id):
            await self.hold_off.busy(held.account_id, held.job_id)
            return None
        operation = Claim(held.account_id, held.job_id, held.token, self.worker_id, self.settings.lease_seconds)
        claiming = self.operations.start(operation)
        try:
            answer = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # The process is leaving: what was claimed meanwhile goes straight back.
            await self._give_back(held, claiming)
            raise
        except OutcomeUnknown:
            return await self._claim_after_lost_answer(held)
        except LedgerUnfit as error:
            log.error("claim failed", error=str(error), **_names(held))
            await self.hold_off.broken(held.account_id, held.job_id)
            return None
        except LedgerUnavailable as error:
            log.warning("claim dropped", error=str(error), **_names(held))
            await self.hold_off.busy(held.account_id, held.job_id)
            return None
        except UnknownAccount:
            answer = Dropped.UNKNOWN  # a hint that somebody made up
        except Exception:
            log.exception("claim failed", **_names(held))
            await self.hold_off.broken(held.account_id, held.job_id)
            return None
        if not isinstance(answer, Claimed | Ended | Parked):  # those are told by the books
            log.debug("claim", answer=str(answer), **_names(held))
        if self.metrics is not None:
            self.metrics.claimed(answer)
        return answer

    async def _claim_after_lost_answer(self, held: Held) -> Any:
        """A claim that may have been committed is handed back: its order was in the answer that got lost.

        Its COMMIT may still be under way. The settle waits for the account behind it, so "fenced" is the truth.
        """
        await self._settle_until_known(held, Settle(held.account_id, held.job_id, held.token, Ending.OUTAGE))

    async def _give_back(self, held: Held, claiming: asyncio.Future[Any]) -> None:
        try:
            answer = await claiming
        except OutcomeUnknown:
            await self._claim_after_lost_answer(held)
            return
        except Exception:
            return  # nothing was claimed
        if isinstance(answer, Claimed):
            await self._settle_until_known(held, Settle(held.account_id, held.job_id, held.token, Ending.HANDED_BACK))

    # --- run

    async def _run(self, claim: Claimed, attempt: Attempt) -> Outcome:
        watched = self.keeper.watch(attempt.held)  # done when the run must stop
        work: asyncio.Future[Any] = asyncio.ensure_future(self._work(claim, attempt))
        try:
            both: set[asyncio.Future[Any]] = {work, watched}
            await asyncio.wait(both, timeout=self._seconds_for(claim), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Only a process that is leaving cancels us. What is finished is settled, the rest goes back.
            _stay()
            if not work.done():
                await _stopped(work)
                return Outcome(Ending.HANDED_BACK)
        if work.done():
            return _outcome_of(work)
        if watched.done() and not watched.cancelled():
            attempt.abandoned = watched.result() is Loss.CANCEL
            await _stopped(work)
            return Outcome(_ENDING_OF_LOSS[watched.result()])
        past_ends_by = claim.seconds_left <= self.settings.run_seconds
        attempt.abandoned = past_ends_by
        await _stopped(work)
        if past_ends_by:
            # A deadline that the customer chose is no failure of ours, so it makes nothing good either.
            return Outcome(Ending.PAST_ENDS_BY_STARTED, "the deadline came first" if attempt.outputs else None)
        return Outcome(Ending.TIME_LIMIT, "the run took longer than its limit")

    def _seconds_for(self, claim: Claimed) -> float:
        return max(0.0, min(self.settings.run_seconds, claim.seconds_left))

    async def _work(self, claim: Claimed, attempt: Attempt) -> None:
        kind = self.kinds[claim.job.kind]
        request = kind.request_model.model_validate_json(claim.order.request)
        inputs = await self._fetch_inputs(attempt, msgspec.json.decode(claim.order.inputs))
        if (voice := voice_of(request)) is not None:
            inputs[REFERENCE] = await self._fetch_voice(attempt, voice)
        infos = {name: file.info for name, file in inputs.items()}
        attempt.outputs_due = bool(kind.usage(request, infos))
        limits = RunLimits(self.settings.run_seconds, self.settings.run_memory_bytes)
        failpoint("run.before")
        context: Context = attempt
        try:
            await kind.run(request, inputs, context, limits)
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio would let it end the event loop, and with it every other job of this process.
            raise RuntimeError("the engine tried to end the process") from error
        failpoint("run.after")

    async def _fetch_inputs(self, attempt: Attempt, wanted: Mapping[str, str]) -> dict[str, InputFile]:
        facts = await self._facts(attempt.held.account_id, wanted) if wanted else {}
        inputs = {}
        for name in wanted:
            fact = facts[name]
            attempt.inputs[name] = Stored(UUID(wanted[name]), fact.storage_key)
            target = attempt.workdir / f"input-{name}"
            await self.artifacts.fetch(fact.storage_key, fact.sha256, target)
            inputs[name] = InputFile(target, AudioInfo(fact.frames, fact.sample_rate, fact.channels))
        return inputs

    async def _fetch_voice(self, attempt: Attempt, name: str) -> InputFile:
        """The clip of a voice, as the input that it stands for. Who may use it was asked when the job was taken."""
        while True:
            try:
                voice = await self.voices.show(name)
                break
            except (LedgerUnavailable, OutcomeUnknown):
                await asyncio.sleep(_RETRY_SECONDS)
        fact = (await self._facts(voice.owner, {REFERENCE: str(voice.clip)}))[REFERENCE]
        attempt.inputs[REFERENCE] = Stored(voice.clip, fact.storage_key)
        target = attempt.workdir / "input-voice"
        await self.artifacts.fetch(fact.storage_key, fact.sha256, target)
        return InputFile(target, AudioInfo(fact.frames, fact.sample_rate, fact.channels))

    async def _facts(self, account_id: str, wanted: Mapping[str, str]) -> dict[str, ArtifactFacts]:
        """What was measured of the inputs. Waits for the books, as long as the lease's keeper lets it."""
        while True:
            try:
                found = await self.stored.read(account_id, [UUID(artifact_id) for artifact_id in wanted.values()])
            except (LedgerUnavailable, OutcomeUnknown):
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                return {name: found[UUID(artifact_id)] for name, artifact_id in wanted.items()}
            except KeyError:
                raise DamagedArtifact("a stored input is gone") from None

    # --- settle

    async def _settle(self, claim: Claimed, attempt: Attempt, outcome: Outcome) -> None:
        if outcome.ending is Ending.LOST_WORKER:
            log.warning("lease lost, output thrown away", **_names(attempt.held))
            return
        sold_by_use = [output for output in attempt.outputs if output.billable]
        usage = [Usage(output.usage.seconds_in, output.usage.seconds_out) for output in sold_by_use]
        measured = 0
        if usage or not attempt.outputs_due:
            book, request = self.price_books.parsed(claim.job.book_id), msgspec.json.decode(claim.order.request)
            measured = price(book, claim.job.kind, usage, request, claim.order.plan).total
        operation = Settle(
            attempt.held.account_id,
            attempt.held.job_id,
            attempt.held.token,
            outcome.ending,
            measured=measured,
            outputs=tuple(attempt.kept),
            outputs_due=attempt.outputs_due,
            usage=[*(output.told for output in sold_by_use), *_turned_down(outcome)],
            message=outcome.message,
            backoff_first_seconds=self.settings.backoff_first_seconds,
            backoff_max_seconds=self.settings.backoff_max_seconds,
            jitter=random(),  # noqa: S311  spreads retries, guards nothing
            claimed=claim,
        )
        with tracing.span("settle", attempt.traceparent, _facts(claim, attempt.held)) as span:
            answer = await self._settle_until_known(attempt.held, operation)
            _say_settled(span, answer)
        if self.metrics is not None:
            self.metrics.settled(claim, answer, monotonic() - attempt.started)
        if answer in (Fenced.FENCED, Standing.NOT_OURS):
            log.warning("fenced, output thrown away", **_names(attempt.held))

    async def _settle_until_known(self, held: Held, operation: Settle) -> Any:
        """Settle, however long the books are away; a lost answer is looked up by the token.

        Once a run has ended, nothing but the end of the process keeps its outcome from being written: whoever
        cancels us meanwhile is not obeyed.
        """
        settling = asyncio.ensure_future(self._settle_loop(held, operation))
        while not settling.done():
            try:
                await asyncio.wait({settling})
            except asyncio.CancelledError:
                _stay()
        return settling.result()

    async def _settle_loop(self, held: Held, operation: Settle) -> Any:
        wait, unknown, told = _RETRY_SECONDS, False, ""
        while True:
            try:
                answer = await self.operations.do(operation)
                # The settle whose answer was lost may have been committed only after we looked.
                return await self._standing(held) if unknown and answer is Fenced.FENCED else answer
            except OutcomeUnknown:
                unknown = True
                standing = await self._standing(held)
                if standing is not Standing.RUNNING:
                    return standing
            except LedgerUnfit as error:
                # An operator's to mend: the result waits for that, as it does while the books are away.
                if told != str(error):
                    told = str(error)
                    log.error("settle waits", error=told, ending=operation.ending.value, **_names(held))
            except LedgerUnavailable:
                pass
            except (RefusedByDatabase, BrokenInvariant) as error:
                # A bug of ours. The customer gets the credits back now, not when the lease has lapsed.
                log.error("settle refused", error=str(error), ending=operation.ending.value, **_names(held))
                if operation.ending is Ending.INTERNAL_ERROR:
                    return None
                operation = Settle(held.account_id, held.job_id, held.token, Ending.INTERNAL_ERROR)
                continue
            await asyncio.sleep(wait)
            wait = min(wait * 2, _RETRY_SECONDS_MAX)

    async def _standing(self, held: Held) -> Standing:
        wait = _RETRY_SECONDS
        while True:
            try:
                return await self.leases.standing(held)
            except (LedgerUnavailable, OutcomeUnknown):
                await asyncio.sleep(wait)
                wait = min(wait * 2, _RETRY_SECONDS_MAX)


def _outcome_of(work: asyncio.Future[None]) -> Outcome:
    """How the work ended, as the table of endings knows it."""
    if work.cancelled():
        return Outcome(Ending.INTERNAL_ERROR, "the run was interrupted")
    error = work.exception()
    match error:
        case None:
            return Outcome(Ending.SUCCEEDED)
        case QualityGate():
            return Outcome(Ending.QUALITY_GATE, error.message[:_MESSAGE_LENGTH_MAX], error.measures)
        case EngineError():
            return Outcome(_ending_of(error), error.message[:_MESSAGE_LENGTH_MAX])
        case DamagedArtifact():
            return Outcome(Ending.INPUT_DAMAGED, str(error))
        case ArtifactError() | OSError():
            log.error("storage failed", error=str(error))
            return Outcome(Ending.STORAGE_FAILURE, "the artifact store could not be used")
        case Lost():
            return Outcome(Ending.LOST_WORKER)
        case _:
            log.error("run raised", exc_info=error)
            return Outcome(Ending.INTERNAL_ERROR, "something went wrong on our side")


def _turned_down(outcome: Outcome) -> list[Mapping[str, str]]:
    """What a gate has turned down, beside what was sold: named so, for it is no use of the job and costs nothing."""
    if outcome.rejected is None:
        return []
    return [{"seconds_in": "0", "seconds_out": "0", **outcome.rejected, REJECTED: outcome.message or ""}]


def _ending_of(error: EngineError) -> Ending:
    """Engines bring errors of their own: what is not in the table counts by whether another attempt may help."""
    if not error.retryable:
        return Ending.INVALID_INPUT if error.code == Ending.INVALID_INPUT else Ending.ENGINE_ERROR
    return Ending(error.code) if error.code in _RETRYABLE else Ending.ENGINE_FAILURE


def _stay() -> None:
    """Go on although we were cancelled."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def _stopped(work: asyncio.Future[None]) -> None:
    """Cancel the work and wait until its child process is gone. An engine that won't stop is left to itself."""
    work.cancel()
    _, still_running = await asyncio.wait({work}, timeout=_STOP_SECONDS)
    if still_running:
        log.error("an engine does not stop, its job goes on without it", task=str(work)[:200])


def _facts(claim: Claimed, held: Held) -> dict[str, tracing.Fact]:
    """What a span of this attempt is known by."""
    return {"attempt": claim.attempt, "kind": claim.job.kind, "quoted": claim.job.quoted, **_names(held)}


def _say_settled(span: tracing.Span, answer: Any) -> None:
    match answer:
        case Ended():
            span.say(state=answer.state.value, reason=answer.reason.value, charged=answer.charged)
            if answer.state is JobState.FAILED:
                span.failed(answer.reason.value)
        case Requeued():
            span.say(state=JobState.QUEUED.value, reason=answer.reason.value)
        case _:
            span.failed(str(answer))


def _names(held: Held) -> dict[str, str]:
    return {"job_id": str(held.job_id), "account_id": held.account_id}
