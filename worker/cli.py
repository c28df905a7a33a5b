"""`fermata`: one function a verb, a caption each: parse, call one function, present. Heavy imports inside.

Exit codes: 0 done · 1 the answer is no · 2 bad usage, input or settings · 3 a server can't be reached.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import cyclopts

if TYPE_CHECKING:
    from config.settings import Settings

app = cyclopts.App(name="fermata", help="Metering for paid AI-music jobs.", result_action="return_value")


def settings_of_process() -> Settings:
    """The settings, with the servers of a running `fermata up` where none are given."""
    from config.settings import load

    return load()


@app.command
def up() -> int:
    """Run the whole system on this machine for development, until Ctrl-C."""
    from worker.local.up import main as run_up

    return run_up(settings_of_process())


@app.command
def migrate() -> int:
    """Bring the database to the newest schema."""
    import asyncio

    from worker.store.migrate import migrate as run_migrations

    settings = settings_of_process()
    url = settings.owner_database_url or settings.database_url
    assert url is not None
    print(asyncio.run(run_migrations(url.get_secret_value())))  # noqa: T201
    return 0


@app.command
def scheduler() -> int:
    """Run the clock: dispatch, reap, expire, wake, sweep and prune."""
    from worker.processes import run_scheduler

    return run_scheduler(settings_of_process())


@app.command
def worker(*queues: str) -> int:
    """Run a worker process for these queues (all, if none are named)."""
    from worker.processes import run_worker

    return run_worker(settings_of_process(), queues)


@app.command
def api() -> int:
    """Serve HTTP: health only, so far."""
    from worker.processes import run_api

    return run_api(settings_of_process())


def main() -> None:
    """The entry point: runs a verb and turns what it raises into one line and an exit code."""
    sys.exit(app())


if __name__ == "__main__":
    main()
