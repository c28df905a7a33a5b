"""The composition root: settings in, pools, broker and services out. Nothing else wires, nothing wires at import."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uuid_utils.compat as uuids
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import Settings, SettingsError
from tasks.engines.child import close_children
from tasks.engines.contract import Link
from tasks.kind import Kind
from tasks.registry import close_engines, lacking, prepared, registry
from worker import failpoints
from worker.artifacts.places import store_at
from worker.artifacts.store import ArtifactStore
from worker.calling_off import CallingOff
from worker.client import Client
from worker.duties.cycles import Cycles
from worker.duties.deliver import Deliver
from worker.duties.expire import Expire
from worker.duties.notify import Notify
from worker.duties.prune import Prune
from worker.duties.reap import Reap
from worker.duties.sweep import Sweep
from worker.duties.wake import Wake
from worker.fitting import Fitting
from worker.hold_off import HoldOff
from worker.keeper import Keeper
from worker.links import links_of
from worker.logs import leave_to_host
from worker.outside import Outside
from worker.plan_desk import PlanDesk
from worker.price_desk import PriceDesk
from worker.pricing import models_of, quoted_usage_of
from worker.pruning import Pruner
from worker.runner import Runner
from worker.scheduler import Scheduler
from worker.sign_of_life import SignOfLife
from worker.steering import Steering
from worker.store.accounts import Accounts
from worker.store.api_keys import ApiKeys
from worker.store.artifacts import Artifacts
from worker.store.audit_log import AuditLog
from worker.store.book_shelf import plan_shelf, price_shelf
from worker.store.books import Books
from worker.store.compensations import Compensations
from worker.store.creations import Creations
from worker.store.database import make_engine, patient
from worker.store.dispatching import Dispatching
from worker.store.errors import StoreError
from worker.store.given_up import CHANNEL as GIVEN_UP
from worker.store.given_up import GivenUp
from worker.store.group_commit import GroupCommit
from worker.store.leases import Leases, clock_is_ours
from worker.store.limits import Limits
from worker.store.listening import listen
from worker.store.notices import Notices
from worker.store.nudges import CHANNEL, Nudges
from worker.store.ops import Controls
from worker.store.past_jobs import PastJobs
from worker.store.plan_books import PlanBooks
from worker.store.price_report import PriceReports
from worker.store.prices import PriceBooks
from worker.store.pruning import PATIENCE_SECONDS, Pruning
from worker.store.reads import Reads
from worker.store.reads_artifacts import ArtifactReads
from worker.store.reads_figures import FigureReads
from worker.store.reads_following import FollowingReads
from worker.store.rehearsals import Rehearsals
from worker.store.retries import Retries
from worker.store.submits import Submits, Submitted
from worker.store.tiers import Tiers
from worker.store.turns import Turns
from worker.store.upkeep import Upkeep
from worker.store.voices import Voices
from worker.store.webhooks import Webhooks
from worker.store.workers import WorkerCard, Workers
from worker.transitions import Transitions
from worker.watchdog import watched
from worker.webhooks.desk import WebhookDesk
from worker.webhooks.sender import Sender

if TYPE_CHECKING:
    from worker.in_process import InProcess

    # Whoever only reads or submits never meets Redis: dramatiq would double the start of every `fermata` verb.
    from worker.metrics import Metrics
    from worker.queue.broker import HintBroker
    from worker.queue.hints import Pair
    from worker.slots import Slots
    from worker.web.dashboard.board import Board
    from worker.web.services import Services

log = structlog.get_logger(__name__)


def arm_failpoints(settings: Settings) -> None:
    """Let tests end this process at a named point. Refused anywhere but in the test environment."""
    wanted = os.environ.get("FERMATA_FAILPOINTS", "")
    if wanted and settings.environment != "test":
        raise SettingsError("FERMATA_FAILPOINTS: for tests only, where FERMATA_ENVIRONMENT is test")
    failpoints.arm(wanted)


def our_version() -> str:
    """The version that is installed."""
    try:
        return version("fermata-worker")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Store:
    """PostgreSQL, as one process uses it."""

    engine: AsyncEngine
    price_books: PriceBooks
    plan_books: PlanBooks
    books: Books
    operations: GroupCommit[Any]
    accounts: Accounts
    transitions: Transitions


@asynccontextmanager
async def opened_store(settings: Settings, name: str, *, runs_jobs: bool = False) -> AsyncIterator[Store]:
    """A pool and what works on it, on the running loop. Connects on first use. `runs_jobs`: for a worker."""
    engine = make_engine(settings, name=name)
    price_books, plan_books = PriceBooks(), PlanBooks(settings.frozen_life)
    transitions = Transitions(runs_jobs)
    books = Books(engine, price_books, plan_books, transitions.tell, settings.lock_timeout_seconds)
    operations: GroupCommit[Any] = GroupCommit(
        books.apply,
        batch_max=settings.batch_max,
        busy_alone_seconds=settings.busy_alone_seconds,
        key=lambda operation: operation.job_id,
    )
    try:
        yield Store(engine, price_books, plan_books, books, operations, Accounts(engine, books), transitions)
    finally:
        await operations.close()
        await engine.dispose()


async def refuse_other_clocks(store: Store, settings: Settings) -> None:
    """In production nothing starts on a database whose clock can be set. Waits until the database answers."""
    while settings.environment == "production":
        try:
            if not await clock_is_ours(store.engine):
                raise SettingsError(
                    "FERMATA_DATABASE_URL: its fermata_now() is not the migration's own; is it a test database?"
                )
            return
        except StoreError as error:
            log.warning("waiting for the database", error=str(error))
            await asyncio.sleep(1)


@asynccontextmanager
async def opened_artifacts(settings: Settings, *, prepared: bool = True) -> AsyncIterator[ArtifactStore]:
    """Where audio lies, by the settings. Prepared, it was seen to take, give back and delete something."""
    artifacts = store_at(settings)
    try:
        if prepared:
            await artifacts.prepare()
        yield artifacts
    finally:
        await artifacts.close()


@asynccontextmanager
async def opened_client(settings: Settings) -> AsyncIterator[tuple[Client, Store]]:
    """What the CLI and the API submit through, and programs of others."""
    leave_to_host()
    arm_failpoints(settings)
    async with (
        opened_artifacts(settings, prepared=False) as artifacts,
        opened_store(settings, f"fermata-client:{os.getpid()}") as store,
    ):
        views = Submits(store.engine, store.price_books, store.plan_books)
        submits: GroupCommit[Any] = GroupCommit(views.apply, batch_max=settings.batch_max)
        kinds = registry(settings.extra_kinds, settings.engines)
        try:
            yield (
                Client(
                    kinds=kinds,
                    submits=submits,
                    views=views,
                    operations=store.operations,
                    stored=Artifacts(store.engine),
                    reads=Reads(store.engine, quoted_usage_of(kinds), settings.frozen_life),
                    retries=Retries(store.engine),
                    artifacts=artifacts,
                    settings=settings,
                ),
                store,
            )
        finally:
            await submits.close()
            await close_children()


def steering_over(client: Client, store: Store) -> Steering:
    """What ops do to jobs and workers, over an opened client."""
    compensations = Compensations(store.engine, store.books)
    return Steering(client, Workers(store.engine), AuditLog(store.engine), compensations)


def price_desk(settings: Settings, engine: AsyncEngine, books: Books) -> PriceDesk:
    """What product people do with prices, over one database."""
    kinds = registry(settings.extra_kinds, settings.engines)
    return PriceDesk(
        shelf=price_shelf(engine),
        plans=plan_shelf(engine),
        past=PastJobs(engine, quoted_usage_of(kinds)),
        rehearsals=Rehearsals(engine),
        compensations=Compensations(engine, books),
        reports=PriceReports(engine),
        kinds=kinds,
        settings=settings,
    )


def plan_desk(settings: Settings, engine: AsyncEngine) -> PlanDesk:
    """What product people do with plans and packs, over one database."""
    models = models_of(registry(settings.extra_kinds, settings.engines))
    return PlanDesk(plan_shelf(engine), models, settings.price_change_percent_max)


@asynccontextmanager
async def opened_api(settings: Settings) -> AsyncIterator[Services]:
    """What the routes of an API process work with, and its note-keeping beside them."""
    from worker.metrics import Metrics
    from worker.queue.rate_limits import RateLimits
    from worker.web.depths import Depths
    from worker.web.housekeeping import keep_house
    from worker.web.keyring import Keyring
    from worker.web.pace import Rates, Strangers
    from worker.web.services import Services
    from worker.web.watching import Watcher

    limits = RateLimits(settings.redis_url.get_secret_value() if settings.redis_url else None, settings.namespace)
    async with opened_client(settings) as (client, store):
        await refuse_other_clocks(store, settings)
        keys, figures = ApiKeys(store.engine), FigureReads(store.engine)
        keyring, metrics, sign = Keyring(keys), Metrics("api"), sign_of_life(settings, "api", figures)
        metrics.watch_batches(store.operations, client.submits)
        store.transitions.counts = metrics.committed
        client.counts = _submits_counted(client.kinds, metrics)
        metrics.watch_space(lambda: _free_bytes(client.artifacts.work))
        watch = metrics.watch_books(figures)
        stop_metrics = metrics_on_their_port(settings, metrics)
        following = FollowingReads(store.engine)
        watcher = Watcher(following, settings.api_followers_per_key, settings.api_followers_per_token)
        services = Services(
            settings=settings,
            client=client,
            reads=client.reads,
            accounts=store.accounts,
            artifacts=ArtifactReads(store.engine),
            compensations=Compensations(store.engine, store.books),
            controls=Controls(store.engine, client.kinds),
            limits=Limits(store.engine),
            voices=Voices(store.engine),
            steering=steering_over(client, store),
            prices=price_desk(settings, store.engine, store.books),
            keys=keys,
            creations=Creations(store.engine),
            log=AuditLog(store.engine),
            webhooks=webhook_desk(settings, store.engine),
            keyring=keyring,
            rates=Rates(limits, settings.api_requests_per_minute, settings.api_token_requests_per_minute),
            strangers=Strangers(keyring),
            depths=Depths(client.reads),
            following=following,
            watcher=watcher,
            links=links_of(settings),
            nudges=Nudges(store.engine),
            uploads=asyncio.Semaphore(settings.api_uploads_at_a_time),
            engine=store.engine,
            metrics=metrics,
        )
        # Uploads that a killed process left half way.
        async for _ in client.artifacts.work_leftovers():
            pass
        try:
            async with background(
                *(keyring.note_use(), watcher.run(), sign.run(), watch.run(), metrics.watch_loop()),
                keep_house(keys, services.creations),
            ):
                yield services
        finally:
            await asyncio.to_thread(stop_metrics)
            await keyring.write_used()
            await limits.close()


def _free_bytes(folder: Path) -> int:
    """Room where a folder is, or will be once it is needed."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _submits_counted(kinds: Mapping[str, Kind], metrics: Metrics) -> Callable[[object, Submitted | Exception], None]:
    """What counts each submit by its kind and its answer, in the words that HTTP answers with."""
    from worker.web.problems import said

    def count(kind: object, answer: Submitted | Exception) -> None:
        stored = "replayed" if isinstance(answer, Submitted) and answer.replayed else "stored"
        word = said(answer).code if isinstance(answer, Exception) else stored
        metrics.submitted(kind if isinstance(kind, str) and kind in kinds else "", word)

    return count


@asynccontextmanager
async def opened_board(services: Services) -> AsyncIterator[Board]:
    """What the dashboard's pages stand on, beside the services of the API's routes."""
    from tasks.pictures import picture
    from worker.store.reads_account_lists import AccountListReads
    from worker.store.reads_events import EventReads
    from worker.store.reads_overview import OverviewReads
    from worker.store.sessions import Sessions
    from worker.web.dashboard.board import Board
    from worker.web.dashboard.guests import Guests
    from worker.web.dashboard.live import Live
    from worker.web.dashboard.pictures import Pictures

    overview = OverviewReads(services.engine)
    sessions = Sessions(services.engine)
    live, guests = Live(overview), Guests(sessions)
    try:
        yield Board(
            services=services,
            lists=AccountListReads(services.engine),
            overview=overview,
            sessions=sessions,
            upkeep=Upkeep(services.engine),
            events=EventReads(services.engine),
            webhooks=webhook_desk(services.settings, services.engine),
            live=live,
            guests=guests,
            pictures=Pictures(picture, services.client.artifacts),
        )
    finally:
        await live.close()
        await guests.close()


@asynccontextmanager
async def opened_in_process(settings: Settings, actor: str) -> AsyncIterator[InProcess]:
    """The calls of `fermata_client` for a pipeline that runs beside us, without HTTP. `actor`: as the books name it."""
    from worker.in_process import InProcess

    async with opened_client(settings) as (client, store):
        yield InProcess(client, ArtifactReads(store.engine), FollowingReads(store.engine), actor)


@dataclass(frozen=True, slots=True)
class WorkerServices:
    """What the actor of a worker process is given."""

    slots: Slots
    runner: Runner
    dispatching: Dispatching
    fits: Fitting

    async def fitting(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The jobs that this process can run; the others are left to those who can."""
        return await self.fits.fitting(pairs)

    async def unhint(self, pairs: Sequence[Pair]) -> None:
        """Clear the marks of jobs that found no slot here. If that fails, their hints are repeated later."""
        try:
            await self.dispatching.unhint(pairs)
        except StoreError as error:
            log.warning("hint marks not cleared", jobs=len(pairs), error=str(error))


def kinds_of_worker(settings: Settings, queues: Sequence[str]) -> Mapping[str, Kind]:
    """The kinds as a worker for these queues runs them. Says which tiers it can't start; `RegistryError` if all."""
    links = {Link.COMPLETION, Link.INPUT} if links_of(settings) is not None else set()
    if (settings.artifacts_url or "").startswith("s3://"):
        links.add(Link.INPUT)
    kinds, not_started = prepared(registry(settings.extra_kinds, settings.engines), queues, links)
    for one in not_started:
        log.error("tier not started", kind=one.kind, tier=one.tier, problem=one.problem)
    return kinds


@asynccontextmanager
async def opened_worker(
    settings: Settings, queues: Sequence[str], slots: Slots, kinds: Mapping[str, Kind]
) -> AsyncIterator[WorkerServices]:
    """A worker process's services, with its keeper and its listener running."""
    arm_failpoints(settings)
    worker_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuids.uuid7().hex[-8:]}"
    async with (
        opened_artifacts(settings) as artifacts,
        opened_store(settings, f"fermata-worker:{worker_id}", runs_jobs=True) as store,
    ):
        await refuse_other_clocks(store, settings)
        leases, workers = Leases(store.engine), Workers(store.engine)
        lacks = lacking(kinds, queues)
        host, pid = socket.gethostname(), os.getpid()
        card = WorkerCard(worker_id, host, pid, our_version(), queues, slots.count, sorted(lacks))
        keeper = Keeper(leases, workers, card, settings, lambda: slots.closed)
        dispatching = Dispatching(store.engine)
        metrics = served_metrics(settings, "worker", store)
        outside = Outside(artifacts, links_of(settings), settings.run_seconds)
        runner = Runner(
            worker_id=worker_id,
            settings=settings,
            kinds=kinds,
            operations=store.operations,
            leases=leases,
            hold_off=HoldOff(dispatching),
            keeper=keeper,
            stored=Artifacts(store.engine),
            voices=Voices(store.engine),
            artifacts=artifacts,
            outside=outside,
            price_books=store.price_books,
            metrics=metrics,
        )
        calling_off = CallingOff(kinds, GivenUp(store.engine))
        heard = {"fermata_cancel": lambda _: keeper.look_now(), CHANNEL: outside.heard, GIVEN_UP: calling_off.heard}
        listening = listen(database_url(settings), heard)
        loop = asyncio.get_running_loop()
        # What a killed worker left on a disk of this machine alone, nobody else can see.
        sweep = Sweep(artifacts, Artifacts(store.engine), settings, artifacts.work_leftovers)
        sweeping = [] if artifacts.work_is_shared else [Scheduler([sweep]).run()]
        measuring = [] if metrics is None else [metrics.watch_loop()]
        async with background(keeper.run(), keeper.report_progress(), listening, *sweeping, *measuring):
            try:
                with watched(loop, settings.lease_seconds):
                    yield WorkerServices(slots, runner, dispatching, Fitting(Tiers(store.engine), dispatching, lacks))
            finally:
                await _say_gone(workers, worker_id)
                await calling_off.close()
                await close_engines(kinds)
                await close_children()


async def _say_gone(workers: Workers, worker_id: str) -> None:
    try:
        await workers.gone(worker_id)
    except StoreError as error:
        log.warning("could not say goodbye", error=str(error))


@asynccontextmanager
async def opened_pruner(engine: AsyncEngine, artifacts: ArtifactStore, settings: Settings) -> AsyncIterator[Pruner]:
    """A pruner with connections of its own, whose statements may take long."""
    async with patient(engine, "fermata prune", PATIENCE_SECONDS, work_mem="64MB") as own:
        yield Pruner(Pruning(own, settings), artifacts)


@asynccontextmanager
async def opened_scheduler(settings: Settings) -> AsyncIterator[Scheduler]:
    """A scheduler with all its duties, listening for wake-ups."""
    from worker.duties.alive import Alive
    from worker.duties.dispatch import Dispatch
    from worker.queue.hints import HintSender

    arm_failpoints(settings)
    assert settings.redis_url is not None
    async with (
        opened_artifacts(settings) as artifacts,
        opened_store(settings, f"fermata-scheduler:{os.getpid()}") as store,
        opened_pruner(store.engine, artifacts, settings) as pruner,
    ):
        await refuse_other_clocks(store, settings)
        sender = HintSender(settings.redis_url.get_secret_value(), settings.namespace)
        telling = webhook_sender(settings)
        dispatching, upkeep = Dispatching(store.engine), Upkeep(store.engine)
        dispatch = Dispatch(dispatching, sender, settings)
        deliver = Deliver(Webhooks(store.engine), telling, settings)
        figures = FigureReads(store.engine)
        reap = Reap(Leases(store.engine), store.operations, settings)
        metrics = served_metrics(settings, "scheduler", store)
        measuring: list[Coroutine[Any, Any, None]] = []
        if metrics is not None:
            metrics.watch_count("fermata_leases_expired", "Leases of running jobs that lapsed", lambda: reap.reaped)
            metrics.watch_count("fermata_hinted_jobs", "Jobs that were hinted", lambda: dispatch.hinted)
            metrics.watch_count("fermata_hints", "Messages that told of them", lambda: dispatch.hints)
            dispatch.counts = metrics.hint
            measuring = [metrics.watch_loop(), metrics.watch_books(figures).run()]
        scheduler = Scheduler(
            [
                dispatch,
                reap,
                Cycles(upkeep, store.operations, settings),
                Expire(upkeep, store.operations, settings),
                Wake(upkeep, dispatching, store.operations, settings),
                Sweep(artifacts, Artifacts(store.engine), settings, artifacts.leftovers),
                Notify(Notices(store.engine), store.operations, settings),
                Prune(upkeep, Workers(store.engine), Turns(store.engine), Webhooks(store.engine), pruner, settings),
                deliver,
                Alive(upkeep, dispatch, sign_of_life(settings, "scheduler", figures), settings),
            ],
            *([metrics.duty] if metrics is not None else []),
        )
        listening = listen(database_url(settings), {"fermata_due": lambda _: scheduler.wake("dispatch")})
        async with background(listening, *measuring):
            try:
                yield scheduler
            finally:
                await sender.close()
                await deliver.close()
                await telling.close()


def webhook_desk(settings: Settings, engine: AsyncEngine) -> WebhookDesk:
    """What people do with endpoints, over an opened store."""
    return WebhookDesk(Webhooks(engine), lambda: webhook_sender(settings), settings.webhook_private_targets)


def served_metrics(settings: Settings, process: str, store: Store) -> Metrics | None:
    """The metrics of this process, on their own port; None where none was given."""
    if settings.metrics_port is None:
        return None
    from worker.metrics import Metrics

    metrics = Metrics(process)
    metrics.watch_batches(store.operations)
    store.transitions.counts = metrics.committed
    metrics_on_their_port(settings, metrics)
    return metrics


def metrics_on_their_port(settings: Settings, metrics: Metrics) -> Callable[[], None]:
    """Serve them where no key is asked for, if such a port was given; returns how to stop that."""
    if settings.metrics_port is None:
        return lambda: None
    from worker.metrics import serve

    return serve(metrics, settings.metrics_host, settings.metrics_port)


def sign_of_life(settings: Settings, process: str, figures: FigureReads) -> SignOfLife:
    """What this process says of itself, as often as a worker does."""
    process_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuids.uuid7().hex[-8:]}"
    return SignOfLife(figures, process_id, process, our_version(), settings.renew_seconds)


def webhook_sender(settings: Settings) -> Sender:
    """What tells endpoints of events, within the bounds of the settings."""
    return Sender(timeout_seconds=settings.webhook_timeout_seconds, private_too=settings.webhook_private_targets)


def worker_broker(settings: Settings) -> HintBroker:
    """The broker of a worker process."""
    from worker.queue.broker import make_broker

    assert settings.redis_url is not None
    return make_broker(settings.redis_url.get_secret_value(), namespace=settings.namespace, worker=True)


def database_url(settings: Settings) -> str:
    """The app role's URL. Never logged."""
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these beside the block and cancel them at its end."""
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(_say_if_it_failed)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _say_if_it_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        # Without its keeper a worker would lose every lease: better to be gone, loudly, and started again.
        log.critical("a background task died, ending the process", exc_info=error)
        os._exit(70)
