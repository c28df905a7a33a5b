"""Files on disk: copied with their hash, fsynced before they are named; and the private folders of attempts."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import BinaryIO
from uuid import UUID

from worker.artifacts.store import (
    BLOCK_BYTES,
    DRAFTS,
    ArtifactError,
    DamagedArtifact,
    Draft,
    KeptInput,
    Leftover,
    StoreUnwritable,
    UnreadableSource,
)

#: A draft this old has been left by a process that was killed: putting a file takes minutes at most.
_DRAFT_SECONDS_MAX = 3600.0


async def draft_in(work: Path, source: Path, artifact_id: UUID) -> Draft:
    """Copy a file into the folder of drafts. Raises `UnreadableSource` or `StoreUnwritable`."""
    path = work.with_name(DRAFTS) / str(artifact_id)
    try:
        return Draft(artifact_id, path, await asyncio.to_thread(copy, source, path))
    except UnreadableSource:
        raise
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> StoreUnwritable:
    """What is wrong with our disk, for people."""
    problem = (error.strerror or type(error).__name__).lower()
    return StoreUnwritable(f"the artifact store can't be written: {problem}")


def leftovers_in(work: Path) -> Iterator[Leftover]:
    """Every attempt's private folder. Deletes drafts that nobody finishes any more."""
    now = time()
    for path in work.with_name(DRAFTS).glob("*"):
        if age_of(path, now) > _DRAFT_SECONDS_MAX:
            path.unlink(missing_ok=True)
    for path in work.glob("*"):
        yield from leftover_at(path, None, now)


def leftover_at(path: Path, job: str | None, now: float) -> Iterator[Leftover]:
    """The attempt's folder there, if it is one. `now` in seconds, as of the file system's clock."""
    try:
        job_id = None if job is None else UUID(job)
        yield Leftover(UUID(path.name), job_id, str(path), now - path.stat().st_mtime)
    except (ValueError, OSError):
        return  # not ours, or gone meanwhile


def inputs_in(account: Path) -> list[KeptInput]:
    """The inputs in one account's folder."""
    now, found = time(), []
    for path in account.glob("*"):
        try:
            facts = path.lstat()
            key = f"inputs/{account.name}/{path.name}"
            found.append(KeptInput(UUID(path.name), key, facts.st_size, now - facts.st_mtime))
        except (ValueError, OSError):
            continue  # not ours, or gone meanwhile
    return found


def age_of(path: Path, now: float) -> float:
    """Seconds since it was last written; 0 where it is gone."""
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0


async def discard_folder(path: Path) -> None:
    """Delete a folder of an attempt, and its job's folder once that is empty."""
    await asyncio.to_thread(shutil.rmtree, path, True)
    if path.parent.parent.name == "outputs":
        try:
            await asyncio.to_thread(path.parent.rmdir)
        except OSError:
            return  # another attempt's folder is there


def copy(source: Path, target: Path, sha256: bytes | None = None) -> str:
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
    sync_folders(target)
    return found


def move(source: Path, target: Path) -> None:
    """Give a file of ours its final name, durably. Both lie in one file system, or it is copied."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    if source.parent.stat().st_dev != target.parent.stat().st_dev:
        copy(source, target)
        return
    source.rename(target)
    sync_folders(target)


def sync_folders(target: Path) -> None:
    """The folder that names the file, and the one that names the folder: both may be new."""
    for folder in (target.parent, target.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def opened(source: Path) -> BinaryIO:
    """A plain file, for reading. Raises `UnreadableSource`, or `ArtifactError` where it is no plain file."""
    try:
        reader = os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise UnreadableSource(error.errno, error.strerror) from error
    if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
        reader.close()
        raise ArtifactError("not a plain file")
    return reader


def blocks_of(reader: BinaryIO) -> Iterator[bytes]:
    """All of it, a block at a time. Raises `UnreadableSource`."""
    while block := block_of(reader, BLOCK_BYTES):
        yield block


def block_of(reader: BinaryIO, size: int) -> bytes:
    """The next block. Raises `UnreadableSource`."""
    try:
        return reader.read(size)
    except OSError as error:
        raise UnreadableSource(error.errno, error.strerror) from error


def _copied(source: Path, part: Path) -> str:
    digest = hashlib.sha256()
    with opened(source) as reader, part.open("wb") as writer:
        for block in blocks_of(reader):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()
