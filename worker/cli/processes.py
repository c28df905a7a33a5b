"""The processes of a deployment, and the whole system on one machine."""

from __future__ import annotations

import cyclopts

from worker.cli import opening, values
from worker.cli.options import Json


def add_to(app: cyclopts.App) -> None:
    """Make these verbs of `app`."""
    for verb in (demo, up, api, scheduler, worker):
        app.command(verb)


def demo(*, json: Json = False) -> int:
    """Play the whole system through: real jobs, paid, refused, cancelled and refunded; then a report."""
    from config.settings import load
    from worker.local.demo import run_demo

    settings = load()
    opening.configure_logs(settings)  # stdout is the report's
    return run_demo(settings, as_json=json)


def up() -> int:
    """Run the whole system on this machine for development, until Ctrl-C."""
    from config.settings import load
    from worker.local.up import main as run_up

    return run_up(load())


def api() -> int:
    """Serve HTTP."""
    from worker.processes import run_api

    return run_api(opening.settings_for("database_url"))


def scheduler() -> int:
    """Run the clock: dispatch, reap, expire, wake, sweep and prune. Any number may run."""
    from worker.processes import run_scheduler

    return run_scheduler(opening.settings_for("database_url", "redis_url", "artifacts_url"))


def worker(*queues: str) -> int:
    """Run a worker process for these queues.

    Parameters
    ----------
    queues: str
        Kinds of jobs, or none for all of them.
    """
    from worker.processes import run_worker

    settings = opening.settings_for("database_url", "redis_url", "artifacts_url")
    for queue in queues:
        known_queue(settings.extra_kinds, queue)
    return run_worker(settings, queues)


def known_queue(extra_kinds: str, queue: str) -> str:
    """The name of a queue. A misspelt one would wait for jobs that never come."""
    from tasks.registry import registry
    from worker.credits.documents import nearest

    known = registry(extra_kinds)
    if queue not in known:
        raise values.Misused("queue", f"no queue {queue[:40]!r}{nearest(queue, known)}")
    return queue
