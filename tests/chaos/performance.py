"""One run: boot, load, the adversary's plan, then heal; all must drain, and every question must be answered."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2

from fermata_client.client import AsyncFermata
from tests.chaos.adversary import MONEY, Act, Profile
from tests.chaos.clients import ACTOR, Client, HttpDoor, OurDoor, Wishes, tally
from tests.chaos.faults import FAULTS, LONG_FAULTS, SUBSCRIBED, end_cycles, end_lives, kill_a_worker_of
from tests.chaos.journal import Books, JobInBooks, Journal, Told, disagreements
from tests.chaos.prefixes import Entry, Ledger, LotFacts, unexplained
from tests.chaos.theatre import APIS, SCHEDULERS, WORKERS, Theatre, opened_theatre
from tests.endpoints import an_endpoint
from tests.servers import own_servers, scratch_folder
from worker.failpoints import PATH
from worker.local.system import LocalServers
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.webhooks import Webhooks
from worker.webhooks.message import secret_of

#: Beyond it clients ask for no further jobs.
UNFINISHED_MAX = 40
CREDITED = ("hot", "ada", "bob", "cyd")
#: Seconds that a step gets to be passed by one of those who are armed for it, and after which an API is armed too.
STEP_SECONDS, STEP_BY_API_SECONDS = 60.0, 2.0
#: After which there are cycles to turn again: others than the armed may have been quicker.
STEP_AGAIN_SECONDS = 10.0


@dataclass(slots=True)
class Outcome:
    """What a run came to. `failures` empty: every promise held."""

    seed: int
    profile: str
    failures: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    latest: list[str] = field(default_factory=list)


def perform(seed: int, profile: Profile, acts: Sequence[Act], logs: Path | None = None) -> Outcome:
    """Play it. Starts its own servers, and ends all that it started. `logs`: where what was said is to be kept."""
    with scratch_folder() as folder, own_servers() as local:
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_perform(seed, profile, acts, local, logs or folder))


async def _perform(seed: int, profile: Profile, acts: Sequence[Act], local: LocalServers, folder: Path) -> Outcome:
    outcome = Outcome(seed, profile.name)
    async with opened_theatre(local, folder) as theatre:
        chronicle = theatre.chronicle
        async with an_endpoint() as endpoint, _clients(theatre, seed, folder) as clients:
            await Webhooks(theatre.stage.store.engine).create(endpoint.url, secret_of, None, [], ACTOR)
            for name in (*WORKERS, *SCHEDULERS, *APIS):
                theatre.enter(name)
            await theatre.until("SELECT count(*) >= $1 FROM workers", len(WORKERS))
            keeping = asyncio.create_task(theatre.keep_the_cast())
            looking = asyncio.create_task(theatre.look_for_violations())
            asking = [asyncio.create_task(client.run()) for client in clients]
            try:
                await _act(theatre, clients, acts, random.Random(f"acts {seed}"))
            except Exception as error:
                chronicle.violated(f"the run itself: {error!r}")
            for task in asking:
                task.cancel()
            for ended in await asyncio.gather(*asking, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    chronicle.violated(f"a client stopped asking: {ended!r}")
            await _heal(theatre)
            drained = await _drain(theatre, profile.drain_seconds)
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            if not chronicle.violations:
                await _judge(theatre, clients)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            for client in clients:
                outcome.failures += client.wrong
        outcome.failures = chronicle.violations + outcome.failures
        outcome.figures = await _figures(theatre, clients, drained)
        outcome.failures += not_none(outcome.figures)
        outcome.latest = list(chronicle.latest)
        if outcome.failures:
            outcome.latest += ["", *await _unfinished(theatre)]
    return outcome


@asynccontextmanager
async def _clients(theatre: Theatre, seed: int, folder: Path) -> AsyncIterator[list[Client]]:
    """Accounts of all sorts, and four clients of two doors."""
    store = theatre.stage.store
    for account in CREDITED:
        if account != "ada":  # the stage's own
            await store.accounts.create(account, ACTOR)
        await store.accounts.grant(account, 50_000, "chaos", ACTOR)
    for account in SUBSCRIBED:
        await store.accounts.create(account, ACTOR)
        await store.accounts.subscribe(account, account, "begin", ACTOR)
    gate = theatre.stage.gate("open")
    gate.touch()
    key = (await ApiKeys(store.engine).create(NewKey(Role.ADMIN, "chaos", None), ACTOR)).key
    clients = []
    async with AsyncExitStack() as stack:
        for number, name in enumerate(("direct-1", "direct-2", "http-1", "http-2")):
            wishes = Wishes(random.Random(f"{name} {seed}"), (*CREDITED, *SUBSCRIBED), CREDITED[0], str(gate))
            door: OurDoor | HttpDoor = OurDoor(theatre.stage.client, store)
            if name.startswith("http"):
                url = f"http://127.0.0.1:{theatre.ports[APIS[number % len(APIS)]]}"
                fermata = await stack.enter_async_context(AsyncFermata(url, key))
                headers = {"Authorization": f"Bearer {key}"}
                http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, headers=headers))
                door = HttpDoor(fermata, http)
            journal = Journal(folder / f"{name}.jsonl", theatre.clock)
            clients.append(
                Client(name, door, journal, wishes, 0.25, crowded=lambda: theatre.unfinished > UNFINISHED_MAX)
            )
        yield clients


# --- the plan


async def _act(theatre: Theatre, clients: Sequence[Client], acts: Sequence[Act], dice: random.Random) -> None:
    """Do one after the other; at random they may overlap. A violation ends it early."""
    under_way: set[asyncio.Task[None]] = set()
    for act in acts:
        if theatre.chronicle.violations:
            break
        fault = FAULTS[act.what][0] if act.what in FAULTS else LONG_FAULTS.get(act.what)
        match act.kind:
            case "crash":
                for client in clients:
                    client.fickle = act.what.startswith("cancel")
                await _crash_at(theatre, act.what, dice)
            case "alone":
                assert fault is not None
                await fault(theatre, dice)
                await asyncio.sleep(0.3)
            case _:
                assert fault is not None
                under_way.add(asyncio.create_task(fault(theatre, dice)))
                await asyncio.sleep(act.gap_seconds)
    done, _ = await asyncio.wait(under_way, timeout=150) if under_way else (set(), set())
    for task in done:
        if (error := task.exception()) is not None:
            theatre.chronicle.violated(f"a fault could not be done: {error!r}")


async def _crash_at(theatre: Theatre, step: str, dice: random.Random) -> None:
    """Arm a worker and a scheduler, later an API and all schedulers, with the step until one dies there."""
    armed = [theatre.enter(name, failpoints=f"{step}:kill") for name in (WORKERS[0], SCHEDULERS[0])]
    theatre.doomed |= {process.pid for process in armed}
    await _give_cause(theatre, step, dice)
    started, helped, again = monotonic(), False, STEP_AGAIN_SECONDS
    while not any(died_at_a_step(process.alive, process.pid, theatre.killed) for process in armed):
        await asyncio.sleep(0.02)
        waited = monotonic() - started
        if waited > STEP_BY_API_SECONDS and not helped:
            helped = True
            # Every scheduler: whoever is not armed might do what there is to do each time.
            armed += [theatre.enter(name, failpoints=f"{step}:kill") for name in (APIS[0], *SCHEDULERS[1:])]
            theatre.doomed |= {process.pid for process in armed}
            await kill_a_worker_of(theatre, WORKERS[1:])  # there may be nothing to reap otherwise
        if waited > again:
            again += STEP_AGAIN_SECONDS
            await _give_cause(theatre, step, dice)
            if helped:
                await kill_a_worker_of(theatre, WORKERS[1:])
        if waited > STEP_SECONDS:
            if step in PATH or step.partition(".")[0] in MONEY:
                theatre.chronicle.violated(f"nobody passed the step {step} within {STEP_SECONDS:g} s")
            theatre.chronicle.left_undone(f"a crash at {step}", f"nobody came by within {STEP_SECONDS:g} s")
            break
    else:
        theatre.chronicle.fault("crash at a named step", step)
    for process in armed:  # whoever is still armed would die of it later
        if process.alive:
            theatre.tell_to_go(process)


def died_at_a_step(alive: bool, pid: int, killed: Collection[int]) -> bool:
    """Whether who was armed is dead, and not of the adversary's own kill: that is no crash at the step."""
    return not alive and pid not in killed


async def _give_cause(theatre: Theatre, step: str, dice: random.Random) -> None:
    """Let there be what brings somebody to the step that the clients' load alone does not bring."""
    await end_cycles(theatre, dice)
    if step.startswith("end_overdue."):
        await end_lives(theatre, dice)


async def _heal(theatre: Theatre) -> None:
    """Take back whatever is still done to anybody."""
    theatre.chronicle.note("heal")
    theatre.to_postgres.fault, theatre.to_postgres.delay_seconds, theatre.to_redis.delay_seconds = None, 0.0, 0.0
    theatre.to_postgres.lit.set()
    theatre.to_redis.lit.set()
    for process in theatre.cast.values():
        process.thaw()
    for name in WORKERS:  # a wrong clock is a fault too
        theatre.tell_to_go(theatre.cast[name])


async def _drain(theatre: Theatre, seconds: float) -> float:
    """Give everybody what their waiting jobs could cost, and wait until every job has ended."""
    await theatre.stage.reconnect()
    for account in (*CREDITED, *SUBSCRIBED):
        await theatre.stage.store.accounts.grant(account, 50_000, "drain", ACTOR)
    try:
        return await theatre.until(
            "SELECT count(*) = 0 FROM jobs WHERE ended_at IS NULL", seconds=seconds, look_seconds=0.1
        )
    except TimeoutError:
        left = await theatre.value("SELECT count(*) FROM jobs WHERE ended_at IS NULL")
        theatre.chronicle.violated(f"{left} jobs have not ended {seconds:g} s after everything was healed")
        return seconds


# --- the questions afterwards

#: What must be 0 of a run, and in words what it counts.
NONE: Mapping[str, str] = {
    "lost": "jobs have not ended",
    "charged_twice": "jobs were charged twice",
    "charged_without_result": "jobs were charged and have no output",
    "results_without_charge": "jobs of a price have outputs and no charge",
    "credits_unaccounted": "credits are in no bucket",
}


def not_none(figures: Mapping[str, Any]) -> list[str]:
    """Which figures are not 0 that every promise wants to be."""
    return [f"{figures[name]} {what}" for name, what in NONE.items() if figures[name] != 0]


async def _judge(theatre: Theatre, clients: Sequence[Client]) -> None:
    """Ask everything once more; then ask every key again, and see that nothing came of it."""
    await theatre.audit()
    await _outputs_are_there(theatre)
    calls = [call for client in clients for call in client.journal.calls]
    for disagreement in disagreements(calls, await _books(theatre)):
        theatre.chronicle.violated(disagreement)
    ledgers = await _ledgers(theatre)
    # In a thread: the wires of the whole deployment go through this loop.
    for complaint in await asyncio.to_thread(lambda: list(unexplained(calls, ledgers))):
        theatre.chronicle.violated(complaint)
    before = await _counts(theatre)
    for found in await asyncio.gather(*(client.ask_all_again() for client in clients)):
        for line in found:
            theatre.chronicle.violated(line)
    after = await _counts(theatre)
    if before != after:
        theatre.chronicle.violated(f"asking every key again left something behind: {before} became {after}")
    theatre.chronicle.note("judged")


async def _books(theatre: Theatre) -> Books:
    jobs = [
        JobInBooks(**{**dict(row), "job_id": str(row["job_id"]), "params": json.loads(row["params"])})
        for row in await theatre.ask(_JOBS)
    ]
    purchases = {
        (row["account_id"], row["reference"]): (row["credits"], row["lots"]) for row in await theatre.ask(_PURCHASES)
    }
    return Books(jobs, purchases)


async def _ledgers(theatre: Theatre) -> Mapping[str, Ledger]:
    entries: dict[str, list[Entry]] = defaultdict(list)
    for account, *entry in await theatre.ask(_ENTRIES):
        entries[account].append(Entry(*entry))
    lots: dict[str, dict[int, LotFacts]] = defaultdict(dict)
    for account, lot, *facts in await theatre.ask(_LOTS):
        lots[account][lot] = LotFacts(*facts)
    return {account: Ledger(entries[account], lots[account]) for account in (*CREDITED, *SUBSCRIBED)}


async def _outputs_are_there(theatre: Theatre) -> None:
    """No charge without a file that can be read; that no other job has outputs is among the rules."""
    root = theatre.stage.artifacts
    sold = await theatre.ask("SELECT job_id, storage_key, bytes FROM artifacts WHERE job_id IS NOT NULL")
    for row in sold:
        path = root / row["storage_key"]
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            theatre.chronicle.violated(f"sold, and not there: {dict(row)}")
    for (job_id,) in await theatre.ask(
        "SELECT job_id FROM jobs AS j WHERE state = 'succeeded' "
        "AND jsonb_array_length(outputs) <> (SELECT count(*) FROM artifacts AS a WHERE a.job_id = j.job_id)"
    ):
        theatre.chronicle.violated(f"job {job_id} was sold with outputs that are not there")


async def _counts(theatre: Theatre) -> Mapping[str, int]:
    tables = ("jobs", "journal", "lots", "reservations", "purchases", "cycles")
    return {table: await theatre.value(f"SELECT count(*) FROM {table}") for table in tables}


async def _unfinished(theatre: Theatre) -> list[str]:
    """Jobs that have not ended, for people."""
    with suppress(Exception):
        return [str(dict(row)) for row in await theatre.ask(_UNFINISHED, seconds=5)]
    return []


async def _figures(theatre: Theatre, clients: Sequence[Client], drained: float) -> dict[str, Any]:
    chronicle = theatre.chronicle

    async def counted(sql: str) -> dict[str, int]:
        return {str(row[0]): row[1] for row in await theatre.ask(sql)}

    jobs = await theatre.value("SELECT count(*) FROM jobs")
    attempts = await theatre.value("SELECT count(*) FROM attempts")
    return {
        "seconds": round(monotonic() - chronicle.started, 1),
        "jobs": jobs,
        "ended": await counted("SELECT state, count(*) FROM jobs WHERE ended_at IS NOT NULL GROUP BY 1 ORDER BY 1"),
        "lost": await theatre.value("SELECT count(*) FROM jobs WHERE ended_at IS NULL"),
        "attempts": await counted("SELECT ending, count(*) FROM attempts GROUP BY 1 ORDER BY 1"),
        "attempts_a_job": round(attempts / max(jobs, 1), 3),
        "charged_twice": await theatre.value(
            "SELECT count(*) FROM (SELECT 1 FROM journal WHERE move = 'commit' "
            "GROUP BY account_id, job_id HAVING count(DISTINCT at) > 1) AS twice"
        ),
        "charged_without_result": await theatre.value(
            f"SELECT count(*) FROM jobs AS j WHERE charged > 0 AND NOT {_HAS_OUTPUT}"
        ),
        "results_without_charge": await theatre.value(
            f"SELECT count(*) FROM jobs AS j WHERE COALESCE(charged, 0) = 0 AND quoted > 0 AND {_HAS_OUTPUT}"
        ),
        "credits_unaccounted": int(
            await theatre.value("SELECT sum(granted - available - held - spent - expired - revoked) FROM lots")
        ),
        "calls": tally(clients),
        "fenced": theatre.said("fenced, output thrown away|lease lost, output thrown away"),
        "webhooks": await counted("SELECT state, count(*) FROM deliveries GROUP BY 1 ORDER BY 1"),
        "balances_explained": sum(
            call.what == "balance" and call.told is Told.OK for client in clients for call in client.journal.calls
        ),
        "faults": dict(sorted(chronicle.faults.items())),
        "not_done": dict(sorted(chronicle.not_done.items())),
        "processes_ended": dict(sorted(chronicle.ends.items())),
        "recoveries": {name: sorted(round(s, 3) for s in took) for name, took in sorted(chronicle.recoveries.items())},
        "looks_for_violations": chronicle.looks,
        "drained_seconds": round(drained, 1),
    }


_HAS_OUTPUT = "EXISTS (SELECT FROM artifacts AS a WHERE a.job_id = j.job_id)"

_JOBS = """
    SELECT job_id, account_id AS account, idempotency_key AS key, kind, CAST(request AS text) AS params, state, quoted,
           charged
    FROM jobs
"""

_PURCHASES = """
    SELECT account_id, reference, credits,
           (
               SELECT count(*)
               FROM lots AS l
               WHERE l.account_id = p.account_id
                 AND l.source = 'topup'
                 AND l.reference = p.reference
                 AND l.granted = p.credits
           ) AS lots
    FROM purchases AS p
"""

_ENTRIES = """
    SELECT account_id, CAST(extract(epoch FROM at) AS float8), lot_id, move, amount
    FROM journal
    ORDER BY account_id, seq
"""

_LOTS = """
    SELECT account_id, lot_id, source, CAST(extract(epoch FROM expires_at) AS float8)
    FROM lots
"""

#: With what a waiting job lacks, and what its account could draw on.
_UNFINISHED = """
    SELECT j.job_id, j.account_id, j.kind, j.state, j.attempt, j.failures, d.waits_for, d.hinted_at, d.not_before,
           l.lease_until, l.worker_id, p.parked_at, p.needed, j.ends_by, a.cycle_ends_at, a.active_until,
           (
               SELECT sum(available)
               FROM lots
               WHERE lots.account_id = j.account_id
                 AND (expires_at IS NULL OR expires_at > fermata_now())
           ) AS available,
           fermata_now() AS now
    FROM jobs AS j
    JOIN accounts AS a USING (account_id)
    LEFT JOIN due AS d USING (account_id, job_id)
    LEFT JOIN live AS l USING (account_id, job_id)
    LEFT JOIN parked AS p USING (account_id, job_id)
    WHERE j.ended_at IS NULL
    LIMIT 20
"""
