"""How a verb gets at its settings and services: those of the environment, or of the `fermata up` that runs here."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.boot import Store
    from worker.client import Client
    from worker.store.reads import Reads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Books:
    """For verbs that need PostgreSQL alone."""

    settings: Settings
    store: Store
    reads: Reads


@dataclass(frozen=True, slots=True)
class Desk:
    """For verbs that also need the kinds of jobs and the artifact store."""

    settings: Settings
    store: Store
    reads: Reads
    client: Client


def settings_for(*needed: str) -> Settings:
    """The settings of this process, with the servers of a running `fermata up` where none are given.

    Raises `SettingsError` that names each of the `needed` ones that is missing, and what to do.
    """
    from config.settings import PREFIX, SettingsError, load

    settings = load()
    if settings.database_url is None and settings.redis_url is None:
        settings = with_running_up(settings)
    missing = [f"{PREFIX}{name.upper()}" for name in needed if getattr(settings, name) is None]
    if missing:
        raise SettingsError(f"{', '.join(missing)}: not given; set it, or start `fermata up` in this folder")
    return settings


def with_running_up(settings: Settings) -> Settings:
    """The same settings, with what the file of a running `fermata up` adds to them, if there is one."""
    from config.settings import PREFIX, load

    told = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in _read_env_file(env_file_of(settings)).items()
        if name.startswith(PREFIX)
    }
    given = settings.model_fields_set
    more: dict[str, Any] = {name: value for name, value in told.items() if name not in given}
    return load(**more) if more else settings


def env_file_of(settings: Settings) -> Path:
    """Where a running `fermata up` says how it is reached."""
    from worker.local.system import DATA_DIR

    return (settings.data_dir or DATA_DIR) / "env"


def with_books(work: Callable[[Books], Awaitable[T]]) -> T:
    """Run `work` over the books."""
    settings = settings_for("database_url")

    async def opened() -> T:
        from worker.boot import opened_store

        async with opened_store(settings, f"fermata-cli:{os.getpid()}") as store:
            return await work(Books(settings, store, reads_of(settings, store)))

    return _run(settings, opened)


def with_desk(work: Callable[[Desk], Awaitable[T]]) -> T:
    """Run `work` with all that submitting takes."""
    settings = settings_for("database_url", "artifacts_url")

    async def opened() -> T:
        from worker.boot import opened_client

        async with opened_client(settings) as (client, store):
            return await work(Desk(settings, store, client.reads, client))

    return _run(settings, opened)


def reads_of(settings: Settings, store: Store) -> Reads:
    """Reads that know what the kinds of jobs can use, so that a receipt has its quote's lines."""
    from tasks.registry import registry
    from worker.pricing import quoted_usage_of
    from worker.store.reads import Reads

    usage = quoted_usage_of(registry(settings.extra_kinds, settings.engines))
    return Reads(store.engine, usage, settings.frozen_life)


def configure_logs(settings: Settings) -> None:
    """A verb logs to stderr what goes wrong, and more only if that was asked for."""
    from worker.logs import configure

    configure(settings if settings.log_level != "info" else settings.model_copy(update={"log_level": "warning"}))


def _run(settings: Settings, work: Callable[[], Awaitable[T]]) -> T:
    from worker import tracing

    configure_logs(settings)
    tracing.configure(settings, "command")

    async def awaited() -> T:
        return await work()

    try:
        return asyncio.run(awaited())
    finally:
        tracing.close()


def _read_env_file(path: Path) -> dict[str, str]:
    """The variables that an `up` of ours wrote down. Another's file could send us to another's servers."""
    from config.settings import SettingsError

    try:
        facts = path.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise SettingsError(f"{path}: not used: it must be ours, and readable by us alone")
        words = [shlex.split(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: can't be read ({type(error).__name__})") from None
    return dict(word.split("=", 1) for line in words for word in line if "=" in word)
