"""Audio in a folder, shared by all machines that run or serve jobs.

work/<token>/ is an attempt's private folder, swept afterwards; drafts/ holds files on their way in.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from uuid import UUID

from worker.artifacts import files
from worker.artifacts.store import (
    BLOCK_BYTES,
    ArtifactError,
    ArtifactStore,
    DamagedArtifact,
    Draft,
    KeptInput,
    Leftover,
    StoreUnavailable,
    UnreadableSource,
    checked_key,
    input_key,
    output_key,
)


class FolderStore(ArtifactStore):
    """Artifacts in a local or mounted folder."""

    work_is_shared = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.described = f"the folder {root}"

    async def prepare(self) -> None:
        try:
            await asyncio.to_thread(self._prepare)
        except OSError as error:
            raise ArtifactError(f"the artifact store {self.root} is not writable: {error.strerror}") from error

    def _prepare(self) -> None:
        for name in ("inputs", "outputs", "work"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o750)
        probe = self.work / f".probe-{os.getpid()}"
        probe.write_bytes(b"1")
        probe.unlink()

    async def draft(self, source: Path, artifact_id: UUID) -> Draft:
        return await files.draft_in(self.work, source, artifact_id)

    async def drop(self, draft: Draft) -> None:
        await asyncio.to_thread(draft.path.unlink, missing_ok=True)

    async def keep(self, draft: Draft, account_id: str) -> str:
        key = input_key(account_id, draft.artifact_id)
        try:
            await asyncio.to_thread(files.move, draft.path, self.path(key))
        except OSError as error:
            raise files.unwritable(error) from error
        return key

    async def put_output(self, source: Path, job_id: UUID, token: UUID, name: str) -> tuple[str, str]:
        key = output_key(job_id, token, name)
        return key, await asyncio.to_thread(files.copy, source, self.path(key))

    async def fetch(self, key: str, sha256: bytes, target: Path) -> None:
        source = self.path(key)
        if not await asyncio.to_thread(_is_plain, source):
            raise DamagedArtifact("a stored input is gone")
        await asyncio.to_thread(files.copy, source, target, sha256)

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        try:
            reader = await asyncio.to_thread(files.opened, self.path(key))
        except (UnreadableSource, ArtifactError) as error:
            raise DamagedArtifact("a stored file is gone") from error
        with reader:
            reader.seek(start)
            left = None if stop is None else stop - start
            while left is None or left > 0:
                size = BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)
                block = await asyncio.to_thread(files.block_of, reader, size)
                if not block:
                    return
                left = None if left is None else left - len(block)
                yield block

    async def remove(self, key: str) -> None:
        await asyncio.to_thread(self.path(key).unlink, missing_ok=True)

    def path(self, key: str) -> Path:
        """The file of a storage key. Raises `ArtifactError` for anything that leads out of the store."""
        return self.root / checked_key(key)

    async def has(self, key: str) -> bool:
        try:
            return await asyncio.to_thread(_is_plain, self.path(key))
        except OSError as error:
            raise StoreUnavailable(f"{self.described}: {error.strerror}") from error

    async def inputs(self) -> AsyncIterator[KeptInput]:
        accounts = await asyncio.to_thread(lambda: sorted(self.root.glob("inputs/*")))
        for account in accounts:
            for one in await asyncio.to_thread(files.inputs_in, account):
                yield one

    async def leftovers(self) -> AsyncIterator[Leftover]:
        async for one in self.work_leftovers():
            yield one
        for one in await asyncio.to_thread(self._unsold_or_not):
            yield one

    async def work_leftovers(self) -> AsyncIterator[Leftover]:
        for one in await asyncio.to_thread(lambda: list(files.leftovers_in(self.work))):
            yield one

    def _unsold_or_not(self) -> list[Leftover]:
        now = time()
        paths = self.root.glob("outputs/*/*")
        return [one for path in paths for one in files.leftover_at(path, path.parent.name, now)]

    async def discard(self, leftover: Leftover) -> None:
        await files.discard_folder(Path(leftover.place))


def _is_plain(path: Path) -> bool:
    """Whether a plain file is there. Raises `OSError` where the store itself can't be asked."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
