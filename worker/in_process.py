"""The calls of `fermata_client.client.AsyncFermata` without HTTP: for a pipeline that runs beside us.

The same names, answers and errors, so that a pipeline moves from one to the other by its first line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from fermata_client import answers, errors
from fermata_client.calls import JobRequest as Asked
from fermata_client.calls import asked as asked_of
from fermata_client.requests import Request
from worker.client import Client, JobRequest
from worker.credits.operations import AlreadyEnded, CancelAsked
from worker.store.reads_artifacts import ArtifactPlace, ArtifactReads
from worker.store.submits import Submitted
from worker.web.problems import document, said


@dataclass(frozen=True, slots=True)
class InProcess:
    """Asks our own `Client`, as this actor."""

    client: Client
    artifact_reads: ArtifactReads
    actor: str

    async def submit(self, job: Asked) -> answers.Submitted:
        """As `AsyncFermata.submit`."""
        async with _in_their_words():
            return _submitted(await self.client.submit(_ours(job), self.actor), job.key)

    async def submit_many(self, jobs: Iterable[Asked]) -> list[answers.Submitted | errors.FermataError]:
        """As `AsyncFermata.submit_many`."""
        asked = list(jobs)
        done = await self.client.submit_many([_ours(job) for job in asked], self.actor)
        return [
            _problem_of(one) if isinstance(one, Exception) else _submitted(one, job.key)
            for job, one in zip(asked, done, strict=True)
        ]

    async def job(self, job_id: UUID | str) -> answers.Job:
        """As `AsyncFermata.job`."""
        async with _in_their_words():
            return answers.Job.model_validate(_plain(await self.client.reads.job(UUID(str(job_id)))))

    async def wait(self, job_id: UUID | str, timeout: float | None = None) -> answers.Job:  # noqa: ASYNC109  theirs
        """As `AsyncFermata.wait`."""
        try:
            async with asyncio.timeout(timeout), _in_their_words():
                return answers.Job.model_validate(_plain(await self.client.wait(UUID(str(job_id)))))
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
            found = await self.client.quote(JobRequest(account or "", name, params, named))
        return answers.Quote.model_validate(_plain(found) | {"book": found.book_id})

    async def balance(self, account: str) -> answers.Balance:
        """As `AsyncFermata.balance`."""
        async with _in_their_words():
            return answers.Balance.model_validate(_plain(await self.client.reads.balance(account)))

    async def upload(self, account: str, path: Path | str, name: str | None = None) -> answers.Artifact:
        """As `AsyncFermata.upload`."""
        async with _in_their_words():
            facts = await self.client.put(account, Path(path), self.actor, name)
        return await self.artifact(facts.artifact_id)

    async def artifact(self, artifact_id: UUID | str) -> answers.Artifact:
        """As `AsyncFermata.artifact`."""
        return answers.Artifact.model_validate(_plain((await self._place(artifact_id)).shown))

    async def download(self, artifact_id: UUID | str, path: Path | str) -> Path:
        """As `AsyncFermata.download`."""
        place = await self._place(artifact_id)
        async with _in_their_words():
            await self.client.artifacts.fetch(place.storage_key, bytes.fromhex(place.shown.sha256), Path(path))
        return Path(path)

    async def _place(self, artifact_id: UUID | str) -> ArtifactPlace:
        async with _in_their_words():
            return await self.artifact_reads.place(UUID(str(artifact_id)))


@asynccontextmanager
async def _in_their_words() -> AsyncIterator[None]:
    """Errors of our layers become those that the HTTP client raises. A cancelled caller stays cancelled."""
    try:
        yield
    except TimeoutError:
        raise
    except Exception as error:
        raise _problem_of(error) from error


def _problem_of(error: Exception) -> errors.Problem:
    told = said(error)
    return errors.problem_of(told.status, document(told, ""))


def _ours(job: Asked) -> JobRequest:
    kind, params = asked_of(job.request, job.kind)
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
    )


def _submitted(done: Submitted, key: str) -> answers.Submitted:
    return answers.Submitted.model_validate(_plain(done.shown(key)))


def _plain(value: object) -> dict[str, Any]:
    """As it would come over the wire."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return plain
