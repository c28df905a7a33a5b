"""A real S3-compatible server for tests, and a wire to it that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex

import boto3
from moto.server import ThreadedMotoServer

KEY_ID, SECRET = "test-key", "CANARY-secret-of-the-bucket"


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket of a running server."""

    name: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """What FERMATA_ARTIFACTS_URL holds."""
        return self.url_by(self.port)

    def url_by(self, port: int) -> str:
        """The same, by a wire to it."""
        return url_of(port, self.name)

    @property
    def settings(self) -> dict[str, str]:
        """The settings that lead there."""
        return {"artifacts_url": self.url, "artifacts_key_id": KEY_ID, "artifacts_secret": SECRET}

    def client(self) -> boto3.client:
        """Amazon's own client, to look behind the store's back."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.host}:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )

    def listed(self) -> list[str]:
        """The keys of what lies in it."""
        return [found["Key"] for found in self.client().list_objects_v2(Bucket=self.name).get("Contents", [])]


def url_of(port: int, bucket: str) -> str:
    """A bucket at that port of this machine."""
    return f"s3://{bucket}/audio?endpoint=http://127.0.0.1:{port}"


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """A server for as long as the block, with a bucket of its own: its servers in one process share what they hold."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        running = Bucket(f"songs-{token_hex(4)}", *server.get_host_and_port())
        running.client().create_bucket(Bucket=running.name)
        yield running
    finally:
        server.stop()


@dataclass(slots=True)
class Wire:
    """A way to a server that is cut once so many bytes went by, `cuts` times; then it is a plain wire."""

    to: int
    cuts: int = 0
    after_bytes: int = 0
    #: Count the bytes that come back, not those that go there.
    answers: bool = False
    port: int = 0
    cut: int = 0
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it or it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        back, forth = await asyncio.open_connection("127.0.0.1", self.to)
        with suppress(ConnectionError):
            await asyncio.wait(
                [
                    asyncio.create_task(self._carry(reader, forth, counted=not self.answers)),
                    asyncio.create_task(self._carry(back, writer, counted=self.answers)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        for one in (writer, forth):
            one.transport.abort()
        self._talks.discard(task)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, counted: bool) -> None:
        carried = 0
        with suppress(ConnectionError):
            while chunk := await source.read(65_536):
                carried += len(chunk)
                if counted and self.cuts > 0 and carried > self.after_bytes:
                    self.cuts -= 1
                    self.cut += 1
                    return
                target.write(chunk)
                await target.drain()


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    """A wire to that port."""
    wire = Wire(port)
    server = await asyncio.start_server(wire.talk, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for talk in wire._talks:
            talk.cancel()
