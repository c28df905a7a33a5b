"""Where audio lies: a local folder, shared by all machines that run or serve jobs.

    inputs/<account digest>/<artifact id>     what customers put in, copied once, never changed
    outputs/<job id>/<token>/<output name>    readable only once the settle of that token registered it
    work/<token>/                             an attempt's private folder, swept afterwards

No name that a customer chose ever becomes a path. Everything written is fsynced before it is named.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from uuid import UUID

#: Bytes copied and hashed at a time.
_BLOCK = 1024 * 1024


class ArtifactError(Exception):
    """The store can't do what was asked: it is not writable, or a file is not as it was."""


class DamagedArtifact(ArtifactError):
    """A stored file is gone or no longer has its checksum."""


class StoreUnwritable(ArtifactError):
    """The store took no more: its disk is full, read-only or broken. Ours to repair; then the same may be asked."""


class UnreadableSource(OSError):
    """A file that was to be copied can't be read: nothing is wrong with the place it was to go to."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder of one attempt that lies in the store."""

    token: UUID
    job_id: UUID | None
    path: Path
    age_seconds: float


class ArtifactStore:
    """Artifacts in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def at(cls, url: str) -> ArtifactStore:
        """The store at a file URL or a plain path. Raises `ArtifactError` for any other kind of URL."""
        parts = urlsplit(url)
        if parts.scheme not in {"", "file"} or (parts.scheme == "file" and parts.netloc not in {"", "localhost"}):
            raise ArtifactError("FERMATA_ARTIFACTS_URL: must be a folder, as file:///folder or /folder")
        return cls(Path(unquote(parts.path)).absolute())

    def prepare(self) -> None:
        """Make the folders; raises `ArtifactError` where they can't be written."""
        try:
            for name in ("inputs", "outputs", "work"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o750)
            probe = self.root / "work" / f".probe-{os.getpid()}"
            probe.write_bytes(b"1")
            probe.unlink()
        except OSError as error:
            raise ArtifactError(f"the artifact store {self.root} is not writable: {error.strerror}") from error

    async def put_input(self, source: Path, account_id: str, artifact_id: UUID) -> tuple[str, str]:
        """Copy a file in; returns its storage key and the sha256 (hex) of what was copied.

        The copy is what is probed and used: a file that changes meanwhile can't be something else later.
        Raises `UnreadableSource`, or `StoreUnwritable` where that is not the file's fault.
        """
        folder = hashlib.sha256(account_id.encode()).hexdigest()[:24]
        key = f"inputs/{folder}/{artifact_id}"
        try:
            return key, await asyncio.to_thread(_copy, source, self.path(key))
        except UnreadableSource:
            raise
        except OSError as error:
            problem = (error.strerror or type(error).__name__).lower()
            raise StoreUnwritable(f"the artifact store can't be written: {problem}") from error

    async def put_output(self, source: Path, job_id: UUID, token: UUID, name: str) -> tuple[str, str]:
        """Keep a finished output durably under its attempt's token; returns its storage key and sha256 (hex)."""
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
            raise ArtifactError("an output's name has letters, digits, - and _ only")
        key = f"outputs/{job_id}/{token}/{name}"
        return key, await asyncio.to_thread(_copy, source, self.path(key))

    async def fetch(self, key: str, sha256: bytes, target: Path) -> None:
        """Copy an artifact to `target`. Raises `DamagedArtifact` where it is gone or its hash does not fit.

        Any other `OSError`, of a full disk say, tells nothing of the artifact: another attempt may help.
        """
        source = self.path(key)
        if not await asyncio.to_thread(_is_plain, source):
            raise DamagedArtifact("a stored input is gone")
        await asyncio.to_thread(_copy, source, target, sha256)

    async def remove(self, key: str) -> None:
        """Delete one file; no error if it is gone."""
        await asyncio.to_thread(self.path(key).unlink, missing_ok=True)

    def path(self, key: str) -> Path:
        """The file of a storage key. Raises `ArtifactError` for anything that leads out of the store."""
        path = self.root / key
        if not key or Path(key).is_absolute() or ".." in Path(key).parts:
            raise ArtifactError("a storage key leads out of the store")
        return path

    def workdir(self, token: UUID) -> Path:
        """An attempt's private folder. Not made yet."""
        return self.root / "work" / str(token)

    def leftovers(self, now: float) -> Iterator[Leftover]:
        """Every folder of an attempt: of running ones too. `now` in seconds, as of the file system's clock."""
        for path in self.root.glob("work/*"):
            yield from _leftover(path, None, now)
        for path in self.root.glob("outputs/*/*"):
            yield from _leftover(path, path.parent.name, now)

    async def discard(self, path: Path) -> None:
        """Delete a folder of an attempt, and its job's folder once that is empty."""
        await asyncio.to_thread(shutil.rmtree, path, True)
        if path.parent.parent.name == "outputs":
            try:
                await asyncio.to_thread(path.parent.rmdir)
            except OSError:
                return  # another attempt's folder is there


def _leftover(path: Path, job: str | None, now: float) -> Iterator[Leftover]:
    try:
        age = now - path.stat().st_mtime
        yield Leftover(UUID(path.name), None if job is None else UUID(job), path, age)
    except (ValueError, OSError):
        return  # not ours, or gone meanwhile


def _is_plain(path: Path) -> bool:
    """Whether a plain file is there. Raises `OSError` where the store itself can't be asked."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _copy(source: Path, target: Path, sha256: bytes | None = None) -> str:
    """Copy, fsync, then name it; returns the sha256 in hex. Only plain files, never through a link.

    With `sha256` nothing gets the name that has another one: raises `DamagedArtifact`.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    part = target.with_name(f"{target.name}.part")
    try:
        found = _copied(source, part)
        if sha256 is not None and bytes.fromhex(found) != sha256:
            raise DamagedArtifact("a stored input no longer has its checksum")
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    # The folder that names the file, and the one that names the folder: both may be new.
    for folder in (target.parent, target.parent.parent):
        _sync_folder(folder)
    return found


def _copied(source: Path, part: Path) -> str:
    digest = hashlib.sha256()
    with _opened(source) as reader, part.open("wb") as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise ArtifactError("not a plain file")
        while block := _block_of(reader):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _opened(source: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise UnreadableSource(error.errno, error.strerror) from error


def _block_of(reader: BinaryIO) -> bytes:
    try:
        return reader.read(_BLOCK)
    except OSError as error:
        raise UnreadableSource(error.errno, error.strerror) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
