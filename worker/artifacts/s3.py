"""The wire to an S3-compatible server: one client a process, and its errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from worker.artifacts.store import ArtifactError, DamagedArtifact, StoreUnavailable, StoreUnwritable

#: Seconds for a connection, and for the server to go on with what it has begun.
_CONNECT_SECONDS, _READ_SECONDS = 5, 30
#: Tries of one request in all, with the library's growing, jittered waits between them.
_TRIES = 4
#: Requests at a time from one process.
_CONNECTIONS = 32

#: What the server says when it does not know us, or won't have us: people must mend it.
_REFUSALS = {
    "AccessDenied": "this key may not do that: it needs to read, write, delete and list below the prefix",
    "403": "this key may not do that: it needs to read, write, delete and list below the prefix",
    "InvalidAccessKeyId": "the server does not know this key id",
    "SignatureDoesNotMatch": "the secret does not fit the key id, or the region is wrong",
    "NoSuchBucket": "there is no such bucket: make it, or correct FERMATA_ARTIFACTS_URL",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "PermanentRedirect": "the bucket is in another region: add ?region=… to FERMATA_ARTIFACTS_URL",
    "AuthorizationHeaderMalformed": "the region is wrong: add ?region=… to FERMATA_ARTIFACTS_URL",
}
_GONE = frozenset({"NoSuchKey", "404"})


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Which bucket, where, and whose key opens it. Without a key: as AWS's own tools find one."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    key_id: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)

    @property
    def described(self) -> str:
        """For people: no secret."""
        path = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{path} at {self.endpoint}" if self.endpoint else path


class S3Wire:
    """One client, opened on first use in the running event loop."""

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def client(self) -> Any:
        """The client. Raises `ArtifactError` where its library is missing."""
        async with self._opening:
            if self._client is None:
                self._client = await self._stack.enter_async_context(_made(self._place))
        return self._client

    async def close(self) -> None:
        """Close its connections."""
        await self._stack.aclose()
        self._client = None

    @asynccontextmanager
    async def asking(self, *, writing: bool = False) -> AsyncIterator[Any]:
        """The client, for a block whose errors become ours: the tree of `ArtifactError`."""
        client = await self.client()
        with in_our_words(self._place.described, StoreUnwritable if writing else StoreUnavailable):
            yield client


@contextmanager
def in_our_words(described: str, otherwise: type[StoreUnavailable]) -> Iterator[None]:
    """Turn the library's errors into ours. None of them shows a secret or a signed request."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in _GONE:
            raise DamagedArtifact("a stored file is gone") from None
        raise otherwise(f"{described}: {_REFUSALS.get(code, f'the server answered {code}')}") from None
    except NoCredentialsError:
        raise otherwise(
            f"{described}: no key: set FERMATA_ARTIFACTS_KEY_ID and FERMATA_ARTIFACTS_SECRET, "
            "or what AWS's own tools read"
        ) from None
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise otherwise(f"{described}: does not answer ({type(error).__name__})") from None


@asynccontextmanager
async def _made(place: BucketPlace) -> AsyncIterator[Any]:
    try:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session
    except ImportError:
        raise ArtifactError(
            "FERMATA_ARTIFACTS_URL names a bucket: install the extra for it, fermata-worker[s3]"
        ) from None
    config = AioConfig(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        # Else links would be signed as no newer server takes it.
        signature_version="s3v4",
        # Servers of one's own are reached by one name, whatever the bucket.
        s3={"addressing_style": "path" if place.endpoint else "auto"},
        # We send and check a sha256 of our own; older compatible servers refuse the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    async with get_session().create_client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region or ("us-east-1" if place.endpoint else None),
        aws_access_key_id=place.key_id,
        aws_secret_access_key=place.secret,
        config=config,
    ) as client:
        yield client
