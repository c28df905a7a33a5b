"""Webhooks on real books and real servers: told at least once, in order, to nobody who must not know."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import standardwebhooks
import trustme

from config.settings import Settings, load
from tests.acceptance.stage import until
from tests.endpoints import Endpoint, an_endpoint, answer
from tests.integration.books import Store, opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.credits.outcomes import Ending
from worker.duties.deliver import Deliver
from worker.scheduler import Scheduler
from worker.store.pruning import Pruning
from worker.store.webhooks import Webhooks, WebhookTarget
from worker.webhooks.message import Message, secret_of
from worker.webhooks.sender import Answer, Sender

SECRET = secret_of(bytes(range(32)))
MESSAGE = Message("evt_1", b"{}")


def short_times(**more: Any) -> Settings:
    """Retries within tenths of a second, to servers of this machine."""
    times = {"deliver_tick_seconds": 0.02, "webhook_backoff_first_seconds": 0.05, "webhook_backoff_max_seconds": 0.2}
    return load(
        {}, environment="test", webhook_private_targets=True, **{**times, "webhook_timeout_seconds": 1.0, **more}
    )


@asynccontextmanager
async def delivering(store: Store, **more: Any) -> AsyncIterator[None]:
    """A scheduler that tells endpoints."""
    settings = short_times(**more)
    sender = Sender(timeout_seconds=settings.webhook_timeout_seconds, private_too=True)
    deliver = Deliver(Webhooks(store.engine), sender, settings)
    running = asyncio.create_task(Scheduler([deliver]).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
        await deliver.close()
        await sender.close()


async def hooked(store: Store, endpoint: Endpoint, *, account: str | None = None, events: Sequence[str] = ()) -> UUID:
    """That server, told of these."""
    return (await Webhooks(store.engine).create(endpoint.url, lambda _: SECRET, account, events, "test"))[0]


async def an_end(store: Store, account: str = "ada", **more: Any) -> UUID:
    """A job that ended."""
    claimed = await store.running(account, quoted=1, **more)
    await store.settle(account, claimed)
    return claimed.job.job_id


async def happened(store: Store, account: str, what: str, job: UUID | None = None) -> int:
    """Any event, as any part of ours may write one."""
    return int(
        await store.value(
            "INSERT INTO events (account_id, at, what, job_id) VALUES ($1, fermata_now(), $2, $3) RETURNING seq",
            account,
            what,
            job,
        )
    )


def told(endpoint: Endpoint) -> list[str]:
    """The ids that arrived, in order."""
    return [one.headers["webhook-id"] for one in endpoint.told]


async def ended(store: Store) -> bool:
    """Whether nothing is still to be told."""
    return bool(await store.value("SELECT count(*) = 0 FROM deliveries WHERE state = 'pending'"))


async def test_the_end_of_a_job_is_told_signed(database: Database) -> None:
    """What arrives says what the books say, and what its owner calls the job by; an independent implementation of the
    standard accepts it.
    """
    async with opened(database) as store, an_endpoint() as endpoint:
        await store.account("ada", 100)
        await hooked(store, endpoint)
        async with delivering(store):
            job_id = await an_end(store, metadata={"song": "42"})
            await until(lambda: endpoint.told, "told")
            await until(lambda: ended(store), "noted")
        document = standardwebhooks.Webhook(SECRET).verify(endpoint.told[0].body, endpoint.told[0].headers)
        assert ("ended", "ada") == (document["type"], document["account"])
        assert {"job": str(job_id), "state": "succeeded", "charged": 1}.items() <= document["data"].items()
        key = await store.value("SELECT idempotency_key FROM jobs")
        of_job = {"key": key, "metadata": {"song": "42"}, "partial": False, "message": None}
        assert of_job.items() <= document["data"].items()
        assert [{"artifact", "name", "seconds"}] == [set(output) for output in document["data"]["outputs"]]
        assert "what" not in document["data"]
        assert [("delivered", 1, 200)] == [
            tuple(row) for row in await store.fetch("SELECT state, attempts, last_status FROM deliveries")
        ]


async def test_an_event_that_commits_late_is_never_skipped(database: Database) -> None:
    """Given an open transaction with an older event, when a younger one was told, then the older is told too."""
    async with opened(database) as store, an_endpoint() as endpoint:
        await hooked(store, endpoint)
        async with delivering(store), database.connection() as slow:
            await slow.execute("BEGIN")
            older = await slow.fetchval(
                "INSERT INTO events (account_id, at, what) VALUES ('late', fermata_now(), 'x') RETURNING seq"
            )
            younger = await happened(store, "early", "x")
            await until(lambda: f"evt_{younger}" in told(endpoint), "the younger is told")
            assert older < younger
            await slow.execute("COMMIT")
            await until(lambda: f"evt_{older}" in told(endpoint), "the older is told")


async def test_what_was_rolled_back_is_never_told(database: Database) -> None:
    """Nobody hears of what did not happen."""
    async with opened(database) as store, an_endpoint() as endpoint:
        await hooked(store, endpoint)
        async with database.connection() as connection:
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO events (account_id, at, what) VALUES ('ada', fermata_now(), 'x')")
            await connection.execute("ROLLBACK")
        assert await ended(store)


async def test_an_endpoint_hears_what_it_asked_for(database: Database) -> None:
    """By event and by account; one that asks for nothing in particular hears all, of any kind."""
    async with (
        opened(database) as store,
        an_endpoint() as everything,
        an_endpoint() as low_of_ada,
        an_endpoint() as ends_of_bob,
    ):
        await store.account("ada", 100)
        await store.account("bob", 100)
        await hooked(store, everything)
        await hooked(store, low_of_ada, account="ada", events=["balance_low"])
        await hooked(store, ends_of_bob, account="bob", events=["ended", "cycle_renewed"])
        await an_end(store, "ada")
        await an_end(store, "bob")
        for account in ("ada", "bob"):
            await happened(store, account, "balance_low")
        async with delivering(store):
            await until(lambda: ended(store), "all told")
        heard = {
            name: sorted((one.document["account"], one.document["type"]) for one in endpoint.told)
            for name, endpoint in {"everything": everything, "low": low_of_ada, "ends": ends_of_bob}.items()
        }
        assert [("ada", "balance_low")] == heard["low"]
        assert [("bob", "ended")] == heard["ends"]
        assert {("ada", "balance_low"), ("ada", "ended"), ("bob", "balance_low"), ("bob", "ended")} <= set(
            heard["everything"]
        )


async def test_a_jobs_events_are_told_in_order_whatever_fails(database: Database) -> None:
    """Given an endpoint that fails two of three times, then no event of a job comes before an earlier one was taken."""
    async with (
        opened(database) as store,
        an_endpoint(lambda number: answer(200 if number % 3 == 2 else 500)) as endpoint,
    ):
        await hooked(store, endpoint)
        jobs = [uuid4() for _ in range(3)]
        wanted = {job: [await happened(store, "ada", "step", job) for _ in range(4)] for job in jobs}
        async with delivering(store, webhook_attempts_max=100):
            await until(lambda: ended(store), "all told")
        for job, seqs in wanted.items():
            heard = [one.document["id"] for one in endpoint.told if one.document["data"]["job"] == str(job)]
            assert [f"evt_{seq}" for seq in seqs] == list(dict.fromkeys(heard))
            assert sorted(heard, key=lambda name: int(name[4:])) == heard


async def test_what_is_never_taken_dies_and_can_be_told_again(database: Database, fermata: Fermata) -> None:
    """After so many tries it is dead, the job's next event goes on, and `redeliver` brings it back."""
    good = asyncio.Event()
    async with opened(database) as store, an_endpoint(lambda _: answer(200 if good.is_set() else 503)) as endpoint:
        hook, job = await hooked(store, endpoint), uuid4()
        for _ in range(2):
            await happened(store, "ada", "step", job)
        async with delivering(store, webhook_attempts_max=3):
            await until(lambda: ended(store), "both are dead")
            assert 6 == len(endpoint.told)
            shown = await asyncio.to_thread(fermata.ok, "webhooks", "show", str(hook))
            assert (2, "answered 503") == (shown["webhook"]["dead"], shown["deliveries"][0]["last_error"])
            said = {check["name"]: check for check in (await asyncio.to_thread(fermata.ok, "doctor"))["checks"]}
            assert "warn" == said["webhooks"]["status"]
            assert "2 events were not taken by 1 endpoint(s), and are given up" == said["webhooks"]["what"]
            good.set()
            again = await asyncio.to_thread(fermata.ok, "webhooks", "redeliver", str(hook))
            assert 2 == again["events"]
            await until(lambda: ended(store), "told")
        assert 8 == len(endpoint.told)
        assert 2 == await store.value("SELECT count(*) FROM deliveries WHERE state = 'delivered'")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer(500), "answered 500"),
        (answer(302, "Location: http://127.0.0.1:1/elsewhere"), "redirects are not followed"),
        (answer(307, "Location: http://169.254.169.254/"), "redirects are not followed"),
        (None, "RemoteProtocolError"),
        (b"not HTTP at all\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000, "RemoteProtocolError"),
    ],
    ids=["error", "redirect", "redirect to metadata", "cut", "no HTTP", "endless headers"],
)
async def test_a_bad_answer_is_a_failed_try(reply: bytes | None, said: str) -> None:
    """It is said in a few words, and nothing else is asked for."""
    async with an_endpoint(lambda _: reply) as endpoint:
        got = await sent(endpoint.url)
        assert not got.taken
        assert said in (got.error or "")
        assert 1 == len(endpoint.told)


async def test_an_answers_body_is_never_read() -> None:
    """A success is one by its status, however much comes after: an endless body costs us nothing."""
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 30_000
    async with an_endpoint(lambda _: endless) as endpoint:
        assert Answer(200) == await sent(endpoint.url)


async def test_a_server_that_says_nothing_is_given_up() -> None:
    """After its time, whatever it does with the connection."""
    async with an_endpoint(shut=True) as endpoint:
        got = await sent(endpoint.url, timeout_seconds=0.3)
    assert "no answer within 0.3 s" == got.error


async def test_retry_after_is_heeded_within_bounds() -> None:
    """What an endpoint asks for is an hour at most."""
    for asked, heeded in (("7", 7.0), ("999999", 3600.0), ("-1", None), ("soon", None)):
        async with an_endpoint(lambda _, asked=asked: answer(429, f"Retry-After: {asked}")) as endpoint:  # type: ignore[misc]
            assert heeded == (await sent(endpoint.url)).retry_after


async def sent(url: str, *, timeout_seconds: float = 5, **more: Any) -> Answer:
    """How a server takes one message."""
    sender = Sender(timeout_seconds=timeout_seconds, **{"private_too": True, **more})
    try:
        return await sender.send(WebhookTarget(UUID(int=1), url, SECRET), MESSAGE)
    finally:
        await sender.close()


def names(*addresses: str) -> Any:
    """A resolver that knows every name by these addresses, as whoever owns a name may let it say."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost:{port}/",
        "https://localhost.:{port}/",
        "https://2130706433:{port}/",
        "https://0x7f000001:{port}/",
        "https://0177.0.0.1:{port}/",
        "https://127.1:{port}/",
        "http://127.0.0.1:{port}/",
    ],
)
async def test_a_name_of_this_machine_is_told_nothing(url: str) -> None:
    """However it is written: no connection is made."""
    async with an_endpoint() as endpoint:
        got = await sent(url.format(port=endpoint.port), private_too=False)
        assert not got.taken
        assert got.error in {
            "leads to a private, loopback, link-local or reserved address",
            "must start with https://; FERMATA_WEBHOOK_PRIVATE_TARGETS allows http:// and neighbours",
            "its name can't be resolved",
        }
        assert [] == endpoint.told


async def test_a_name_that_leads_inside_is_told_nothing() -> None:
    """Also where only one of its addresses does."""
    for addresses in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]):
        got = await sent("https://evil.example/", private_too=False, resolve=names(*addresses))
        assert "leads to a private, loopback, link-local or reserved address" == got.error


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The name is asked for once: what it says later leads nowhere. TLS and Host still carry the name."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(server)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with an_endpoint(tls=server) as endpoint:
        url = f"https://hooks.example:{endpoint.port}/in?a=1"
        assert Answer(200) == await sent(url, resolve=names("127.0.0.1"), tls=ours)
        assert f"hooks.example:{endpoint.port}" == endpoint.told[0].headers["host"]
        assert "/in?a=1" == endpoint.told[0].path
        # A certificate of another name, and one of nobody that we know.
        other = await sent(f"https://other.example:{endpoint.port}/", resolve=names("127.0.0.1"), tls=ours)
        stranger = await sent(url, resolve=names("127.0.0.1"))
        assert "CERTIFICATE_VERIFY_FAILED" in (other.error or "")
        assert "CERTIFICATE_VERIFY_FAILED" in (stranger.error or "")
        assert 1 == len(endpoint.told)


async def test_an_address_that_does_not_answer_is_no_obstacle() -> None:
    """A name with several addresses is tried at the next."""
    async with an_endpoint() as endpoint:
        url = f"http://hooks.example:{endpoint.port}/"
        assert Answer(200) == await sent(url, resolve=names("127.0.0.9", "127.0.0.1"))


async def test_a_slow_endpoint_takes_only_its_share(database: Database) -> None:
    """Given one that never answers and has more than enough to hear, then another is told at once."""
    async with opened(database) as store, an_endpoint(shut=True) as slow, an_endpoint() as quick:
        await hooked(store, slow, events=["flood"])
        await hooked(store, quick, events=["word"])
        for _ in range(100):
            await happened(store, "ada", "flood", uuid4())
        async with delivering(store, webhook_timeout_seconds=20):
            await until(lambda: slow.waiting >= 8, "the slow one has its share")
            await happened(store, "ada", "word")
            await until(lambda: quick.told, "the quick one is told", 5)
            assert 15 >= slow.open_max


async def test_no_connection_to_the_books_is_held_while_sending(database: Database) -> None:
    """Given 16 messages on their way, then every connection of the pool is idle and outside any transaction."""
    async with opened(database, pool_size=2) as store, an_endpoint(shut=True) as one, an_endpoint(shut=True) as other:
        for endpoint in (one, other):
            await hooked(store, endpoint)
        for _ in range(16):
            await happened(store, "ada", "x", uuid4())
        async with delivering(store, webhook_timeout_seconds=20):
            await until(lambda: one.waiting >= 8 and other.waiting >= 8, "all on their way")
            busy = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
            await until(lambda: _is_zero(store, busy), "no transaction is open")


async def _is_zero(store: Store, sql: str) -> bool:
    return int(await store.value(sql)) == 0


async def test_410_closes_an_endpoint(database: Database) -> None:
    """Its owner wants nothing any more: what happens later is not even noted, until it is opened again."""
    async with opened(database) as store, an_endpoint(lambda number: answer(410 if number == 0 else 200)) as endpoint:
        hook = await hooked(store, endpoint)
        await happened(store, "ada", "x")
        async with delivering(store):
            await until(lambda: ended(store), "dead")
            await happened(store, "ada", "y")
            assert 1 == await store.value("SELECT count(*) FROM deliveries")
            assert 1 == await Webhooks(store.engine).redeliver(hook, None)
            await happened(store, "ada", "z")
            await until(lambda: ended(store), "told")
    assert ["x", "x", "z"] == [one.document["type"] for one in endpoint.told]


async def test_a_sender_that_was_given_up_changes_nothing(database: Database) -> None:
    """Given two claims of one event, the first one's lease over, then only the second may say how it went."""
    async with opened(database) as store, an_endpoint() as endpoint:
        await hooked(store, endpoint)
        await happened(store, "ada", "x")
        webhooks = Webhooks(store.engine)
        (first,) = await webhooks.claim(8, 8, [], lease_seconds=30)
        assert [] == await webhooks.claim(8, 8, [], lease_seconds=30)
        await database.advance(timedelta(seconds=31))
        (second,) = await webhooks.claim(8, 8, [], lease_seconds=30)
        await webhooks.failed(first, 500, "late", None)
        assert 1 == await store.value("SELECT count(*) FROM deliveries WHERE state = 'pending'")
        await webhooks.delivered(second, 200)
        assert [("delivered", 2)] == [tuple(row) for row in await store.fetch("SELECT state, attempts FROM deliveries")]


async def test_what_ended_long_ago_is_forgotten(database: Database) -> None:
    """And what an endpoint that is gone was still to be told; what is pending stays."""
    async with opened(database) as store, an_endpoint() as endpoint:
        webhooks = Webhooks(store.engine)
        hook = await hooked(store, endpoint)
        await happened(store, "ada", "x")
        await happened(store, "bob", "x")
        first, _ = sorted(await webhooks.claim(8, 8, [], lease_seconds=30), key=lambda one: one.seq)
        await webhooks.delivered(first, 200)
        pruning = Pruning(store.engine, load({}, deliveries_kept_days=1))
        assert 0 == await pruning.deliveries()
        assert 2 == await store.value("SELECT count(*) FROM deliveries")
        await database.advance(timedelta(days=2))
        assert 1 == await pruning.deliveries()
        assert 1 == await store.value("SELECT count(*) FROM deliveries")
        await webhooks.delete(hook, "test")
        assert 0 == await store.value("SELECT count(*) FROM deliveries")


async def test_what_an_account_is_told_without_asking_is_told_too(database: Database) -> None:
    """A new cycle, told by the step that begins it: whatever writes an event need not know of webhooks."""
    async with opened(database) as store, an_endpoint() as endpoint:
        await store.account("ada")
        await hooked(store, endpoint, events=["cycle_renewed"])
        async with delivering(store):
            await store.accounts.subscribe("ada", "starter", "s-1", "test")
            await until(lambda: endpoint.told, "told")
    document = endpoint.told[0].document
    assert ("cycle_renewed", "ada", None) == (document["type"], document["account"], document["data"]["job"])
    assert {"plan", "credits", "ends_at"} <= document["data"].keys()
    assert not {"key", "outputs"} & document["data"].keys()


async def test_no_endpoint_costs_an_event_nothing(database: Database) -> None:
    """Where nobody asked, nothing is written."""
    async with opened(database) as store:
        await store.account("ada", 100)
        claimed = await store.running("ada")
        await store.settle("ada", claimed, Ending.CANCELLED_RUNNING)
        assert 0 == await store.value("SELECT count(*) FROM deliveries")


def test_the_verbs(fermata: Fermata, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with a secret that is shown once, listed, shown, tested, deleted; what is wrong is said in a line."""
    made = fermata.ok("webhooks", "create", "https://192.0.2.1.example/in", "--event", "ended")
    assert made["secret"].startswith("whsec_")
    listed = fermata.ok("webhooks", "list")["webhooks"]
    assert [(made["webhook"], ["ended"], None)] == [(one["webhook"], one["events"], one["account"]) for one in listed]
    assert made["secret"] not in str(listed) + str(fermata.ok("webhooks", "show", made["webhook"]))
    tried = fermata("webhooks", "test", made["webhook"], "--json")
    assert (1, False) == (tried.code, tried.document["taken"])
    assert fermata.ok("webhooks", "delete", made["webhook"])["deleted"]
    for arguments, said in (
        (["show", made["webhook"]], "no endpoint"),
        (["create", "http://example.com"], "https://; FERMATA_WEBHOOK_PRIVATE_TARGETS allows"),
        (["create", "https://10.0.0.1"], "private"),
        (
            ["create", "https://example.com", "--event", "finished"],
            "no event 'finished'; there are ended, ",
        ),
        (["create", "https://example.com", "--account", "nobody"], "no account"),
        (["redeliver", "x"], "must be an id"),
    ):
        answer_ = fermata("webhooks", *arguments)
        assert 2 == answer_.code
        assert said in answer_.err
    assert [] == fermata.ok("webhooks", "list")["webhooks"]
