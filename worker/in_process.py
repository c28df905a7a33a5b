"""The calls of `fermata_client.client.AsyncFermata` without HTTP: for a pipeline that runs beside us.

The same names, answers and errors, so that a pipeline moves from one to the other by its first line.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from errno import ENOENT
from os import strerror
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec

from fermata_client import answers, errors
from fermata_client.calls import JobRequest as Asked
from fermata_client.calls import asked as asked_of
from fermata_client.requests import Request
from worker.client import Client, JobRequest, check_source
from worker.credits.operations import AlreadyEnded, CancelAsked
from worker.store.errors import Refused
from worker.store.reads_artifacts import ArtifactPlace, ArtifactReads
from worker.store.reads_following import FollowingReads
from worker.store.references import check_account_id
from worker.store.submits import Submitted
from worker.web.problems import BY_STATUS, Problem, document, said
from worker.web.watching import TICK_SECONDS


@dataclass(frozen=True, slots=True)
class InProcess:
    """Asks our own `Client`, as this actor."""

    client: Client
    artifact_reads: ArtifactReads
    following: FollowingReads
    actor: str

    async def submit(self, job: Asked) -> answers.Submitted:
        """As `AsyncFermata.submit`."""
        async with _in_their_words():
            return _submitted(await self.client.submit(_ours(job), self.actor), job.key)

    async def submit_many(self, jobs: Iterable[Asked]) -> list[answers.Submitted | errors.FermataError]:
        """As `AsyncFermata.submit_many`."""
        asked = list(jobs)
        ours = [_ours_or_why_not(job) for job in asked]
        done = iter(await self.client.submit_many([one for one in ours if not isinstance(one, Exception)], self.actor))
        told = [one if isinstance(one, Exception) else next(done) for one in ours]
        return [
            _theirs(one) if isinstance(one, Exception) else _submitted(one, job.key)
            for job, one in zip(asked, told, strict=True)
        ]

    async def job(self, job_id: UUID | str) -> answers.Job:
        """As `AsyncFermata.job`."""
        async with _in_their_words():
            return answers.Job.model_validate(_plain(await self.client.reads.job(_id(job_id))))

    async def wait(self, job_id: UUID | str, timeout: float | None = None) -> answers.Job:  # noqa: ASYNC109  theirs
        """As `AsyncFermata.wait`."""
        try:
            async with asyncio.timeout(timeout), _in_their_words():
                return answers.Job.model_validate(_plain(await self.client.wait(_id(job_id))))
        except TimeoutError:
            raise errors.TimedOut(f"job {job_id} had not ended after {timeout:g} s") from None

    async def cancel(self, job_id: UUID | str, reason: str = "cancelled by request") -> answers.Cancelled:
        """As `AsyncFermata.cancel`."""
        found = await self.job(job_id)
        async with _in_their_words():
            done = await self.client.cancel(found.account, found.id, reason)
        if isinstance(done, AlreadyEnded) and done.state != "cancelled":
            raise errors.problem_of(409, {"code": "already_ended", "detail": f"it had ended before: {done.state}"})
        after = await self.job(job_id)
        asked = isinstance(done, CancelAsked)
        return answers.Cancelled(id=found.id, account=found.account, state=after.state, cancel_asked=asked)

    async def retry(self, job_id: UUID | str, key: str | None = None) -> answers.Submitted:
        """As `AsyncFermata.retry`."""
        async with _in_their_words():
            done = await self.client.retry(_id(job_id), self.actor, key, check_credits=True)
        return _submitted(done, key or f"retry:{job_id}")

    async def receipt(self, job_id: UUID | str) -> answers.Receipt:
        """As `AsyncFermata.receipt`."""
        async with _in_their_words():
            return answers.Receipt.model_validate(_plain(await self.client.reads.receipt(_id(job_id))))

    async def jobs(
        self,
        account: str | None = None,
        *,
        state: answers.State | None = None,
        kind: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 50,
        after: UUID | None = None,
    ) -> answers.JobsPage:
        """As `AsyncFermata.jobs`."""
        async with _in_their_words():
            page = await self.client.reads.jobs(
                account,
                state,
                kind,
                limit,
                after,
                created_from=created_from,
                created_before=created_before,
                metadata=metadata or {},
            )
        return answers.JobsPage.model_validate(_plain(page))

    async def events(self, job_id: UUID | str, after: int | None = None) -> AsyncIterator[answers.Event]:
        """As `AsyncFermata.events`."""
        seen, progress = -1 if after is None else after, None
        answered = monotonic()
        while True:
            try:
                async with _in_their_words():
                    story = await self.following.story(_id(job_id))
            except errors.Unavailable:
                if monotonic() - answered > self.client.settings.outage_max_seconds:
                    raise
                await asyncio.sleep(TICK_SECONDS)
                continue
            answered = monotonic()
            for event in story.events:
                if event.id > seen:
                    seen = event.id
                    told = {"event": event.event, "id": event.id, "at": event.at, **event.details}
                    yield answers.Event.model_validate(_plain(told))
            if story.ended:
                return
            if story.progress is not None and (story.progress, story.stage) != progress:
                progress = (story.progress, story.stage)
                yield answers.Event(event="progress", progress=story.progress, stage=story.stage)
            await asyncio.sleep(TICK_SECONDS)

    async def quote(
        self,
        request: Request | Mapping[str, Any],
        *,
        kind: str | None = None,
        account: str | None = None,
        inputs: Mapping[str, UUID | str] | None = None,
    ) -> answers.Quote:
        """As `AsyncFermata.quote`."""
        name, params = asked_of(request, kind)
        named = {input_name: str(artifact) for input_name, artifact in (inputs or {}).items()}
        async with _in_their_words():
            if account is not None:
                check_account_id(account)
            found = await self.client.quote(JobRequest(account or "", name, params, named))
        return answers.Quote.model_validate(_plain(found) | {"book": found.book_id})

    async def balance(self, account: str) -> answers.Balance:
        """As `AsyncFermata.balance`."""
        async with _in_their_words():
            return answers.Balance.model_validate(_plain(await self.client.reads.balance(account)))

    async def upload(self, account: str, path: Path | str, name: str | None = None) -> answers.Artifact:
        """As `AsyncFermata.upload`."""
        path = Path(path)
        async with _in_their_words():
            check_account_id(account)
            check_source(path, self.client.settings.upload_bytes_max)
            with _naming("file"):
                digest = await asyncio.to_thread(_sha256, path)
            known = await self.artifact_reads.same_input(account, digest)
            if known is None:
                known = (await self.client.put(account, path, self.actor, name)).artifact_id
        return await self.artifact(known)

    async def artifact(self, artifact_id: UUID | str) -> answers.Artifact:
        """As `AsyncFermata.artifact`."""
        return answers.Artifact.model_validate(_plain((await self._place(artifact_id)).shown))

    async def download(self, artifact_id: UUID | str, path: Path | str) -> Path:
        """As `AsyncFermata.download`."""
        place = await self._place(artifact_id)
        async with _in_their_words():
            with _naming("path"):
                _check_folder(Path(path))
                await self.client.artifacts.fetch(place.storage_key, bytes.fromhex(place.shown.sha256), Path(path))
        return Path(path)

    async def _place(self, artifact_id: UUID | str) -> ArtifactPlace:
        async with _in_their_words():
            return await self.artifact_reads.place(_id(artifact_id))


@asynccontextmanager
async def _in_their_words() -> AsyncIterator[None]:
    """Errors of our layers become those that the HTTP client raises. A cancelled caller stays cancelled."""
    try:
        yield
    except (TimeoutError, errors.FermataError):
        raise
    except Exception as error:
        raise _theirs(error) from error


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """What can't be read or written at the caller's own path is that field's fault."""
    try:
        yield
    except OSError as error:
        raise errors.invalid(field, (error.strerror or "can't be used").lower()) from error


def _theirs(error: Exception) -> errors.FermataError:
    if isinstance(error, errors.FermataError):
        return error
    told = said(error)
    return errors.problem_of(told.status, document(told, ""))


def _id(given: UUID | str) -> UUID:
    """As in an address: what is no id is one where nothing is."""
    try:
        return UUID(str(given))
    except ValueError:
        raise _theirs(Problem(404, BY_STATUS[404].meaning)) from None


def _check_folder(path: Path) -> None:
    # The store would make it, as it does its own.
    if not path.parent.is_dir():
        raise FileNotFoundError(ENOENT, strerror(ENOENT))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _ours_or_why_not(job: Asked) -> JobRequest | Exception:
    try:
        return _ours(job)
    except (errors.FermataError, Refused) as error:
        return error


def _ours(job: Asked) -> JobRequest:
    kind, params = asked_of(job.request, job.kind)
    job.check()
    check_account_id(job.account)
    return JobRequest(
        account_id=job.account,
        kind=kind,
        params=params,
        inputs={name: str(artifact) for name, artifact in job.inputs.items()},
        key=job.key,
        on_insufficient=job.on_insufficient,
        max_credits=job.max_credits,
        run_at=job.run_at,
        ends_by=job.ends_by,
        metadata=job.metadata,
        check_credits=True,
    )


def _submitted(done: Submitted, key: str) -> answers.Submitted:
    return answers.Submitted.model_validate(_plain(done.shown(key)))


def _plain(value: object) -> dict[str, Any]:
    """As it would come over the wire."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return plain
