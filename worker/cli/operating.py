"""What ops do: look at the queues, pause and limit them, audit the books, examine and migrate a deployment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from worker.cli import opening, queues_shown, values
from worker.cli.failures import AWAY, BAD, NO
from worker.cli.options import Actor, Json
from worker.cli.output import facts, present, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Books, Desk
    from worker.doctor import Diagnosis
    from worker.store.audit import Audit
    from worker.store.ops import Controls, Pause, Scope, Switched
    from worker.web.dashboard.live import Look

Kind = Annotated[str | None, Parameter(name="--kind", help="All jobs of this kind.")]
Account = Annotated[str | None, Parameter(name="--account", help="All jobs of this account.")]


def add_to(app: cyclopts.App) -> None:
    """Make these verbs of `app`."""
    for verb in (queues, pause, resume, limit, drain, audit, prune, doctor, migrate):
        app.command(verb)


def queues(
    *,
    watch: Annotated[bool, Parameter(negative="", help="Look again every second, until Ctrl-C.")] = False,
    json: Json = False,
) -> int:
    """Every queue with its depth, age, pace and workers; what is worth a word; and every worker process."""
    if watch and json:
        raise values.Misused("watch", "goes with no --json, which is one document")

    async def work(books: Books) -> tuple[Look, tuple[Pause, ...]]:
        if watch:
            await queues_shown.watch(books)
        return await queues_shown.live_over(books).latest(), await _controls(books).pauses()

    look, pauses = opening.with_books(work)
    document = queues_shown.document(look, pauses) if json else None
    return present(document, json, queues_shown.shown(look, pauses))


def pause(
    queue: Annotated[str | None, Parameter(help="A queue; or name a kind or an account.")] = None,
    /,
    *,
    kind: Kind = None,
    account: Account = None,
    reason: Annotated[str | None, Parameter(help="Why; shown beside the queue.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Start no more jobs of a queue, a kind or an account. Those that run go on, and submits are taken."""
    why, who = "" if reason is None else values.line("reason", reason), values.actor_of(actor)

    async def work(books: Books) -> Switched:
        return await _controls(books).pause(*_switch(queue, kind, account), why, who)

    done = opening.with_books(work)
    return present(done, json, [f"{done.scope} {done.name} is paused{'' if done.changed else ', as it was'}"])


def resume(
    queue: Annotated[str | None, Parameter(help="A queue; or name a kind or an account.")] = None,
    /,
    *,
    kind: Kind = None,
    account: Account = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Start jobs of a queue, a kind or an account again, at once."""
    who = values.actor_of(actor)

    async def work(books: Books) -> Switched:
        return await _controls(books).resume(*_switch(queue, kind, account), who)

    done = opening.with_books(work)
    return present(done, json, [f"{done.scope} {done.name} is not paused{'' if done.changed else ', as it was'}"])


def limit(
    queue: str,
    running_max: Annotated[str | None, Parameter(help="1 to 1,000,000. Default: no limit.")] = None,
    /,
    *,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Run at most so many jobs of a queue at a time."""
    most, who = (
        None if running_max is None else values.whole("running_max", running_max, 1, 10**6),
        values.actor_of(actor),
    )
    opening.with_books(lambda books: _controls(books).limit(queue, most, who))
    line = f"queue {queue} runs {'any number of jobs' if most is None else f'at most {most:,}'} at a time"
    return present({"queue": queue, "running_max": most}, json, [line])


def drain(worker: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """Let a worker take no more jobs, finish those it has, and end.

    Parameters
    ----------
    worker: str
        Its name in `fermata queues`. It hears of it with its next sign of life, within seconds.
    """
    name, who = values.line("worker", worker, 128), values.actor_of(actor)

    async def work(desk: Desk) -> None:
        from worker.boot import steering_over

        await steering_over(desk.client, desk.store).drain_worker(name, who)

    opening.with_desk(work)
    return present({"worker": name, "drain_asked": True}, json, [f"worker {name} was asked to drain"])


def audit(
    *,
    since_checkpoints: Annotated[
        bool,
        Parameter(negative="", help="Take the word of closed months' checkpoints: reads a month's entries at most."),
    ] = False,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Re-derive the promises from the database: 0 if every credit is where it should be, 1 if not.

    The verdict is kept: the dashboard and /metrics tell when somebody looked last, and what was found.
    """
    who = values.actor_of(actor)

    async def work(books: Books) -> Audit:
        from worker.store.auditing import audited

        usage = books.reads.quoted_usage
        return await audited(books.store.engine, who, since_checkpoints=since_checkpoints, quoted_usage=usage)

    found = opening.with_books(work)
    return present(found, json, _audit(found), code=0 if found.ok else NO)


def prune(
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would go, and how much.")] = False,
    check_files: Annotated[
        bool, Parameter(negative="", help="Also ask the store for the file of every artifact: 1 if any is gone.")
    ] = False,
    json: Json = False,
) -> int:
    """Forget what the settings FERMATA_…_KEPT_DAYS no longer keep. The scheduler does so by itself every hour.

    Jobs with all that is theirs but the journal, inputs that no job names, files without a row, events, deliveries,
    rehearsals, customers' tokens, the log of changes; months of the journal get checkpoints and are detached.
    """

    async def work(desk: Desk) -> tuple[dict[str, object], list[str]]:
        from dataclasses import asdict

        from worker.boot import opened_pruner

        async with opened_pruner(desk.store.engine, desk.client.artifacts, desk.settings) as pruner:
            if dry_run:
                old, orphans = await pruner.old()
                bytes_ = old.bytes + sum(one.bytes for one in orphans)
                found: dict[str, object] = {**asdict(old), "orphans": len(orphans), "bytes": bytes_}
            else:
                found = asdict(await pruner.run())
            return found, [key async for key in pruner.without_files()] if check_files else []

    found, gone = opening.with_desk(work)
    document = {"dry_run": dry_run, **found, **({"without_files": gone} if check_files else {})}
    return present(document, json, _pruned(document, gone), code=NO if gone else 0)


def doctor(*, json: Json = False) -> int:
    """Examine this deployment: versions, durability, clocks, rights, queues, storage. 1 if anything is bad."""
    import asyncio

    from config.settings import SettingsError
    from worker.doctor import Check, Status, diagnosis_of, examine

    try:
        settings = opening.settings_for()
    except SettingsError as error:
        found = diagnosis_of([Check("settings", Status.BAD, row, "correct it") for row in str(error).splitlines()])
        return present(found, json, _diagnosis(found), code=BAD)
    opening.configure_logs(settings)
    found = asyncio.run(examine(settings))
    return present(found, json, _diagnosis(found), code=AWAY if found.away else 0 if found.ok else NO)


def migrate(
    *,
    roles: Annotated[
        bool,
        Parameter(
            negative="",
            help="First make the database and the roles fermata_owner, fermata_app, fermata_worker, fermata_product; "
            "FERMATA_OWNER_DATABASE_URL must be of a role that may do that.",
        ),
    ] = False,
    passwords: Annotated[
        str | None,
        Parameter(help="With --roles: a file that keeps their passwords, made with new ones if it isn't there (0600)."),
    ] = None,
    database: Annotated[str, Parameter(help="With --roles: the database's name.")] = "fermata",
    json: Json = False,
) -> int:
    """Bring the database to the newest schema. Safe to run again, and by several at once."""
    from worker.cli.migrating import made_roles, migrated

    if passwords is not None and not roles:
        raise values.Misused("passwords", "goes with --roles only")
    settings = opening.settings_for("database_url" if not roles else "owner_database_url")
    url = settings.owner_database_url or settings.database_url
    assert url is not None
    opening.configure_logs(settings)
    owner_url = made_roles(url.get_secret_value(), passwords, database) if roles else url.get_secret_value()
    revision = migrated(owner_url)
    return present({"revision": revision, "roles": roles}, json, [f"the schema is at revision {revision}"])


def _controls(books: Books) -> Controls:
    from tasks.registry import registry
    from worker.store.ops import Controls

    return Controls(books.store.engine, registry(books.settings.extra_kinds, books.settings.engines))


def _switch(queue: str | None, kind: str | None, account: str | None) -> tuple[Scope, str]:
    """The one thing that was named."""
    from worker.store.ops import Scope

    named = [(scope, name) for scope, name in zip(Scope, (queue, kind, account), strict=True) if name is not None]
    if len(named) != 1:
        raise values.Misused("queue", "give a queue, --kind or --account, and only one of them")
    scope, name = named[0]
    return scope, values.account_id(name) if scope is Scope.ACCOUNT else values.line(scope, name, 64)


def _audit(found: Audit) -> Iterator[RenderableType]:
    if found.violations:
        yield table(["rule", "what"], [(violation.rule, violation.what) for violation in found.violations])
    verdict = "the books are exact" if found.ok else f"{len(found.violations):,} violation(s)"
    since = "" if found.since is None else f"; of those before {found.since:%Y-%m-%d} their checkpoints"
    yield f"{verdict}: {found.lots:,} lots, {found.entries:,} journal entries{since}"


def _pruned(document: dict[str, object], gone: list[str]) -> Iterator[RenderableType]:
    counted = {name: what for name, what in document.items() if name not in {"dry_run", "without_files"}}
    yield "would go:" if document["dry_run"] else "gone:"
    yield facts(
        (name.replace("_", " "), (", ".join(map(str, what)) or "none") if isinstance(what, list) else what)
        for name, what in counted.items()
    )
    if gone:
        yield table(["artifact whose file is gone"], [(key,) for key in gone])


def _diagnosis(found: Diagnosis) -> Iterator[RenderableType]:
    yield table(["check", "status", "found", "to do"], [(c.name, c.status, c.what, c.todo) for c in found.checks])
