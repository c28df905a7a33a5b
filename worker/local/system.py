"""The servers that a run on one machine needs: those given by URL, and our own for the rest."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from config.settings import Settings
from worker.local.postgres import EmbeddedPostgres
from worker.local.processes import ProcessError
from worker.local.roles import dsn
from worker.local.valkey import EmbeddedValkey
from worker.local.waiting import finished

#: Where our own servers live when no folder is given.
DATA_DIR = Path(".fermata")


@dataclass(frozen=True, slots=True)
class LocalServers:
    """Where everything is. The URLs hold passwords, so they are never printed along."""

    #: As the app role: what commands and the API use. Workers and schedulers have a role of their own.
    database_url: str = field(repr=False)
    owner_database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    artifacts_url: str
    data_dir: Path
    #: None when the URL was given: then they are not ours to restart.
    postgres: EmbeddedPostgres | None
    valkey: EmbeddedValkey | None


@contextmanager
def local_servers(settings: Settings, *, durable: bool = True) -> Iterator[LocalServers]:
    """PostgreSQL and Valkey, running for as long as the block: by URL where one is given, else our own.

    Call it from the main thread. One run at a time uses a data folder: a second gets a `ProcessError` that says so.
    What a killed run left behind is recovered. Tables are not made: see `migrated`. `durable=False` as in
    `EmbeddedPostgres`.
    """
    data_dir = (settings.data_dir or DATA_DIR).resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(data_dir))
        postgres = valkey = None
        if settings.database_url is None:
            postgres = EmbeddedPostgres(data_dir / "postgres", durable=durable)
            stack.callback(postgres.stop)
            postgres.start()
        if settings.redis_url is None:
            valkey = EmbeddedValkey(data_dir / "valkey")
            stack.callback(valkey.stop)
            valkey.start()
        yield LocalServers(
            **_database_urls(settings, postgres),
            redis_url=valkey.url() if valkey else _secret(settings.redis_url),
            artifacts_url=settings.artifacts_url or (data_dir / "artifacts").as_uri(),
            data_dir=data_dir,
            postgres=postgres,
            valkey=valkey,
        )


def migrated(servers: LocalServers) -> LocalServers:
    """The same servers, with every migration applied as the owner.

    Raises `ProcessError` where a server that was given does not answer: as a rule a shell still has the variables of
    an earlier run.
    """
    from worker.store.migrate import migrate

    try:
        finished(migrate(servers.owner_database_url))
    except OSError as error:
        if servers.postgres is not None:
            raise
        raise ProcessError(
            f"the server that FERMATA_DATABASE_URL of this shell names does not answer ({error}); to start "
            f"one here instead: unset {' '.join(_GIVEN)}"
        ) from error
    return servers


#: What `.fermata/env` puts into a shell of the servers' addresses.
_GIVEN = ("FERMATA_DATABASE_URL", "FERMATA_OWNER_DATABASE_URL", "FERMATA_REDIS_URL")


def environment_for(servers: LocalServers) -> dict[str, str]:
    """The settings that bring a child process to these servers. The owner's URL is not among them."""
    return {
        "FERMATA_DATABASE_URL": dsn(servers.database_url),
        "FERMATA_REDIS_URL": servers.redis_url,
        "FERMATA_ARTIFACTS_URL": servers.artifacts_url,
        "FERMATA_DATA_DIR": str(servers.data_dir),
    }


def _database_urls(settings: Settings, postgres: EmbeddedPostgres | None) -> dict[str, str]:
    if postgres is not None:
        return {"database_url": postgres.app_url, "owner_database_url": postgres.owner_url}
    return {
        "database_url": _secret(settings.database_url),
        "owner_database_url": _secret(settings.owner_database_url or settings.database_url),
    }


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock. The kernel lets go of it when we end, however we end."""
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise ProcessError(
                f"{data_dir} is in use by another run (pid {owner}): "
                "stop that one, or give FERMATA_DATA_DIR another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _secret(url: SecretStr | None) -> str:
    assert url is not None
    return url.get_secret_value()
