"""Audio in a bucket of an S3-compatible server. API, workers and scheduler need no common disk.

Each file is one streamed PUT that carries its sha256: the server takes it whole and sound, or not at all, so no
half upload is ever left behind. Attempts work in a folder of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid4

from worker.artifacts import files
from worker.artifacts.s3 import BucketPlace, S3Wire, in_our_words
from worker.artifacts.store import (
    BLOCK_BYTES,
    ArtifactError,
    ArtifactStore,
    DamagedArtifact,
    Draft,
    KeptInput,
    Leftover,
    StoreUnavailable,
    checked_key,
    input_key,
    output_key,
)

#: Objects in one answer, and answers in one round of the sweep: 20,000 objects, then on from there the next time.
_PAGE, _PAGES_MAX = 1000, 20
#: Times that a broken download is taken up again where it broke, without a byte between.
_BREAKS_MAX = 3


class BucketStore(ArtifactStore):
    """Artifacts in a bucket, below a prefix."""

    work_is_shared = False

    def __init__(self, place: BucketPlace, work: Path) -> None:
        self.place = place
        self.work = work
        self.described = place.described
        self._wire = S3Wire(place)
        self._swept_to = ""

    async def prepare(self) -> None:
        await asyncio.to_thread(self._prepare_work)
        key, content = f".probe-{uuid4()}", os.urandom(64)
        async with self._wire.asking(writing=True) as client:
            await client.put_object(**self._at(key), Body=content, ChecksumSHA256=_checksum(content))
            try:
                found = b"".join([block async for block in self.read(key)])
                await client.list_objects_v2(Bucket=self.place.bucket, Prefix=self._named("outputs/"), MaxKeys=1)
            finally:
                await client.delete_object(**self._at(key))
        if found != content:
            raise StoreUnavailable(f"{self.described}: gave back something else than was put there")

    def _prepare_work(self) -> None:
        try:
            self.work.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.work.stat().st_uid != os.geteuid():
                raise ArtifactError(
                    f"{self.work} belongs to somebody else: set FERMATA_SCRATCH_DIR to a folder of ours"
                )
            probe = self.work / f".probe-{os.getpid()}"
            probe.write_bytes(b"1")
            probe.unlink()
        except OSError as error:
            problem = f"the folder for work, {self.work}, is not writable: {error.strerror}"
            raise ArtifactError(f"{problem}; FERMATA_SCRATCH_DIR names another") from error

    async def close(self) -> None:
        await self._wire.close()

    async def draft(self, source: Path, artifact_id: UUID) -> Draft:
        await asyncio.to_thread(self._prepare_work)
        return await files.draft_in(self.work, source, artifact_id)

    async def drop(self, draft: Draft) -> None:
        await asyncio.to_thread(draft.path.unlink, missing_ok=True)

    async def keep(self, draft: Draft, account_id: str) -> str:
        key = input_key(account_id, draft.artifact_id)
        with files.opened(draft.path) as reader:
            await self._put(reader, key, bytes.fromhex(draft.sha256))
        return key

    async def put_output(self, source: Path, job_id: UUID, token: UUID, name: str) -> tuple[str, str]:
        key = output_key(job_id, token, name)
        with await asyncio.to_thread(files.opened, source) as reader:
            digest = await asyncio.to_thread(_digest_of, reader)
            await self._put(reader, key, digest)
        return key, digest.hex()

    async def _put(self, reader: BinaryIO, key: str, sha256: bytes) -> None:
        """Stream a file there. The server refuses what does not have this hash: a file that changed under our hands."""
        reader.seek(0)
        checksum = base64.b64encode(sha256).decode()
        async with self._wire.asking(writing=True) as client:
            await client.put_object(**self._at(key), Body=reader, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)

    async def fetch(self, key: str, sha256: bytes, target: Path) -> None:
        part = target.with_name(f"{target.name}.part")
        digest = hashlib.sha256()
        try:
            with await asyncio.to_thread(part.open, "wb") as writer:
                async for block in self.read(key):
                    digest.update(block)
                    await asyncio.to_thread(writer.write, block)
                await asyncio.to_thread(_synced, writer)
            if digest.digest() != sha256:
                raise DamagedArtifact("a stored input no longer has its checksum")
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        if stop is not None and stop <= start:
            return
        position, breaks = start, 0
        version: dict[str, str] = {}
        while True:
            range_ = f"bytes={position}-{'' if stop is None else stop - 1}"
            async with self._wire.asking() as client:
                answer = await client.get_object(**self._at(key), Range=range_, **version)
            version = {"IfMatch": answer["ETag"]}  # what is taken up again is the same file, or none
            try:
                with in_our_words(self.described, StoreUnavailable):
                    async for block in _blocks(answer["Body"]):
                        position += len(block)
                        breaks = 0
                        yield block
                return
            except StoreUnavailable:
                breaks += 1
                if breaks > _BREAKS_MAX:
                    raise

    async def link(self, key: str, seconds: float) -> str | None:
        async with self._wire.asking() as client:
            url: str = await client.generate_presigned_url("get_object", Params=self._at(key), ExpiresIn=ceil(seconds))
            return url

    async def remove(self, key: str) -> None:
        async with self._wire.asking(writing=True) as client:
            await client.delete_object(**self._at(key))

    async def has(self, key: str) -> bool:
        # A HEAD's refusal names no reason: a listing says the same of what is there and of what is not.
        page = await self._page(self._named(checked_key(key)), "", most=1)
        return any(listed["Key"] == self._named(key) for listed in page.get("Contents", []))

    async def inputs(self) -> AsyncIterator[KeptInput]:
        after, more = "", True
        while more:
            page = await self._page(self._named("inputs/"), after)
            now = _server_time(page)
            for listed in page.get("Contents", []):
                after = listed["Key"]
                key = after.removeprefix(self._named(""))
                try:
                    artifact_id = UUID(key.rpartition("/")[2])
                except ValueError:
                    continue  # not ours
                age = (now - listed["LastModified"]).total_seconds()
                yield KeptInput(artifact_id, key, int(listed["Size"]), age)
            more = page["IsTruncated"]

    async def leftovers(self) -> AsyncIterator[Leftover]:
        async for one in self.work_leftovers():
            yield one
        for _ in range(_PAGES_MAX):
            page = await self._page(self._named("outputs/"), self._swept_to)
            for one in self._attempts_of(page):
                yield one
            found = page.get("Contents", [])
            self._swept_to = found[-1]["Key"] if page["IsTruncated"] else ""
            if not page["IsTruncated"]:
                return

    async def work_leftovers(self) -> AsyncIterator[Leftover]:
        for one in await asyncio.to_thread(lambda: list(files.leftovers_in(self.work))):
            yield one

    def _attempts_of(self, page: Any) -> list[Leftover]:
        """The attempts whose outputs are on this page, each with the age of its newest. Both times are the server's."""
        now = _server_time(page)
        found: dict[str, Leftover] = {}
        for listed in page.get("Contents", []):
            parts = listed["Key"].removeprefix(self._named("")).split("/")
            try:
                job_id, token = UUID(parts[1]), UUID(parts[2])
            except (ValueError, IndexError):
                continue  # not ours
            place = f"outputs/{job_id}/{token}/"
            age = (now - listed["LastModified"]).total_seconds()
            before = found.get(place)
            found[place] = Leftover(token, job_id, place, min(age, before.age_seconds) if before else age)
        return list(found.values())

    async def discard(self, leftover: Leftover) -> None:
        if leftover.job_id is None:
            await files.discard_folder(Path(leftover.place))
            return
        page = await self._page(self._named(leftover.place), "")
        async with self._wire.asking(writing=True) as client:
            for listed in page.get("Contents", []):
                await client.delete_object(Bucket=self.place.bucket, Key=listed["Key"])

    async def _page(self, prefix: str, after: str, most: int | None = None) -> Any:
        async with self._wire.asking() as client:
            return await client.list_objects_v2(
                Bucket=self.place.bucket, Prefix=prefix, StartAfter=after, MaxKeys=most or _PAGE
            )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self._named(checked_key(key))}

    def _named(self, key: str) -> str:
        return f"{self.place.prefix}/{key}" if self.place.prefix else key


def _server_time(page: Any) -> datetime:
    return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])


async def _blocks(body: Any) -> AsyncIterator[bytes]:
    """The body in blocks of about `BLOCK_BYTES`: what arrives comes in far smaller pieces."""
    async with body:
        pending: list[bytes] = []
        size = 0
        async for piece in body.iter_chunks(BLOCK_BYTES):
            pending.append(piece)
            size += len(piece)
            if size >= BLOCK_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
        if pending:
            yield b"".join(pending)


def _digest_of(reader: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    for block in files.blocks_of(reader):
        digest.update(block)
    return digest.digest()


def _checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _synced(writer: BinaryIO) -> None:
    writer.flush()
    os.fsync(writer.fileno())
