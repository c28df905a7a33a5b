"""What a store of audio promises, wherever it lies.

    inputs/<account digest>/<artifact id>     what customers put in, copied once, never changed
    outputs/<job id>/<token>/<output name>    readable only once the settle of that token registered it

No name that a customer chose ever becomes a path or a key. Nothing is there before it is there whole, durably.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

#: Bytes read, hashed and handed on at a time.
BLOCK_BYTES = 1024 * 1024
#: Beside the folder of attempts: files on their way in.
DRAFTS = "drafts"


class ArtifactError(Exception):
    """The store can't do what was asked: it is not usable, or a file is not as it was.

    ├── DamagedArtifact    gone or changed: no other attempt helps
    └── StoreUnavailable   does not answer, or refuses us: the same may be asked again
        └── StoreUnwritable    takes no more
    """


class DamagedArtifact(ArtifactError):
    """A stored file is gone or no longer has its checksum."""


class StoreUnavailable(ArtifactError):
    """The store does not answer, or refuses us. It tells nothing of the file: ours to repair, then ask again."""


class StoreUnwritable(StoreUnavailable):
    """The store took no more: its disk is full, read-only or broken. Ours to repair; then the same may be asked."""


class UnreadableSource(OSError):
    """A file that was to be copied can't be read: nothing is wrong with the place it was to go to."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What one attempt left behind: its outputs (`job_id` given) or its private folder. `place` is the store's own."""

    token: UUID
    job_id: UUID | None
    place: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class KeptInput:
    """A file that a customer put in, whether its row is there or not."""

    artifact_id: UUID
    key: str
    bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Draft:
    """A private copy of a file on its way in: what is measured is what will be kept."""

    artifact_id: UUID
    path: Path
    sha256: str


class ArtifactStore(ABC):
    """A store of audio. `described` is for people and holds no secret; attempts work in the folder `work`."""

    described: str
    work: Path
    #: Whether `work` is seen by the scheduler too, which then sweeps it. Else each worker process sweeps its own.
    work_is_shared: bool

    @abstractmethod
    async def prepare(self) -> None:
        """Make what is missing, then write, read and delete something. Raises `ArtifactError` that says what to do."""

    async def close(self) -> None:  # noqa: B027  most stores hold nothing open
        """Let go of connections."""

    @abstractmethod
    async def draft(self, source: Path, artifact_id: UUID) -> Draft:
        """Copy a file to where it can be measured before anybody else sees it.

        Raises `UnreadableSource`, or `StoreUnwritable` where that is not the file's fault.
        """

    @abstractmethod
    async def drop(self, draft: Draft) -> None:
        """Forget a draft, kept or not."""

    @abstractmethod
    async def keep(self, draft: Draft, account_id: str) -> str:
        """Keep a draft durably as an account's input; returns its storage key. Raises `StoreUnwritable`."""

    @abstractmethod
    async def put_output(self, source: Path, job_id: UUID, token: UUID, name: str) -> tuple[str, str]:
        """Keep a finished output durably under its attempt's token; returns its storage key and sha256 (hex)."""

    @abstractmethod
    async def fetch(self, key: str, sha256: bytes, target: Path) -> None:
        """Copy an artifact to `target`. Raises `DamagedArtifact` where it is gone or its hash does not fit.

        Any other error, of a full disk or a store that is away, tells nothing of the artifact: try again.
        """

    @abstractmethod
    def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of an artifact from `start` to before `stop`, a block at a time.

        Raises `DamagedArtifact` where it is gone, `StoreUnavailable` where the store does not answer.
        """

    async def link(self, key: str, seconds: float) -> str | None:
        """A URL by which anybody can fetch this artifact, and only it, for so long; None where there is no such."""
        del key, seconds
        return None

    @abstractmethod
    async def remove(self, key: str) -> None:
        """Delete one file; no error if it is gone."""

    @abstractmethod
    async def has(self, key: str) -> bool:
        """Whether the file is there. Raises `StoreUnavailable`."""

    @abstractmethod
    def inputs(self) -> AsyncIterator[KeptInput]:
        """Every input that lies here, in no order that counts."""

    @abstractmethod
    def leftovers(self) -> AsyncIterator[Leftover]:
        """What attempts left, of running ones too. Large stores are gone round a part at a time, call by call."""

    @abstractmethod
    def work_leftovers(self) -> AsyncIterator[Leftover]:
        """Of these, the private folders in `work` only. Forgets drafts that nobody finishes any more."""

    @abstractmethod
    async def discard(self, leftover: Leftover) -> None:
        """Delete it."""

    def upload_path(self, upload_id: UUID) -> Path:
        """Where a file that comes over the network may lie until it is put. Forgotten with the drafts."""
        return self.work.with_name(DRAFTS) / f"upload-{upload_id}"

    def workdir(self, token: UUID) -> Path:
        """An attempt's private folder. Not made yet."""
        return self.work / str(token)


def input_key(account_id: str, artifact_id: UUID) -> str:
    """Where an account's input lies."""
    return f"inputs/{hashlib.sha256(account_id.encode()).hexdigest()[:24]}/{artifact_id}"


def output_key(job_id: UUID, token: UUID, name: str) -> str:
    """Where an attempt's output lies. Raises `ArtifactError` for a name that is none."""
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
        raise ArtifactError("an output's name has letters, digits, - and _ only")
    return f"outputs/{job_id}/{token}/{name}"


def checked_key(key: str) -> str:
    """The same key. Raises `ArtifactError` for one that leads out of the store."""
    if not key or Path(key).is_absolute() or ".." in Path(key).parts:
        raise ArtifactError("a storage key leads out of the store")
    return key
