"""The client against the real application, and the same calls in process: one story for all of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest

from fermata_client import errors
from fermata_client.client import AsyncFermata, Fermata, JobRequest
from fermata_client.requests import GenerationRequest, StemSplitRequest, VocalConversionRequest
from tests.acceptance.stage import until
from tests.endpoints import Endpoint, Told, an_endpoint, answer
from tests.integration.api_support import Api, an_api
from tests.integration.cli_support import files_in, silence
from tests.servers import Database
from worker.boot import opened_in_process
from worker.in_process import InProcess

SONG = GenerationRequest(prompt="warm lofi piano", seconds=20)

Asks = AsyncFermata | InProcess


@pytest.fixture(params=["over HTTP", "in process"])
async def asks(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> AsyncIterator[Asks]:
    """Who asks: for account `ada`, which has 100 credits."""
    async with an_api(database, tmp_path) as api:
        await api.account("ada", 100)
        if request.param == "in process":
            async with opened_in_process(api.services.settings, "pipeline") as beside:
                yield beside
            return
        async with over_http(api) as client:
            yield client


@asynccontextmanager
async def over_http(api: Api, **more: Any) -> AsyncIterator[AsyncFermata]:
    """A client of the application, with a pipeline's key."""
    transport = httpx2.ASGITransport(api.http._transport.app)  # type: ignore[attr-defined]
    async with AsyncFermata("http://fermata", await api.key("pipeline"), transport=transport, **more) as client:
        yield client


async def test_a_pipelines_story(asks: Asks, tmp_path: Path) -> None:
    """Quote, upload, submit, submit again, look, cancel: the same names and answers whoever asks."""
    quoted = await asks.quote(SONG, account="ada")
    stored = await asks.upload("ada", silence(tmp_path / "voice.wav", 2.0))
    voice = VocalConversionRequest(semitones=3)
    asked = JobRequest(account="ada", request=voice, inputs={"voice": stored.artifact}, metadata={"take": 3})
    first, again = await asks.submit(asked), await asks.submit(asked)
    fetched = await asks.download(stored.artifact, tmp_path / "fetched.wav")
    cancelled = await asks.cancel(first.id)
    ended = await asks.wait(first.id, timeout=10)
    assert quoted.total == sum(line.amount for line in quoted.lines) > 0
    assert (2.0, "voice.wav") == (stored.seconds, stored.name)
    assert (first.id, False, True) == (again.id, first.replayed, again.replayed)
    assert (tmp_path / "voice.wav").read_bytes() == fetched.read_bytes()
    assert ("cancelled", "cancelled", True) == (cancelled.state, ended.state, ended.ended)
    assert 100 == (await asks.balance("ada")).spendable


async def test_what_came_of_a_job_is_told(asks: Asks) -> None:
    """Its story, its receipt, its place among others; and it is asked for again, once."""
    first = await asks.submit(JobRequest(account="ada", request=SONG, metadata={"take": 3}))
    other = await asks.submit(JobRequest(account="ada", request=SONG))
    queued = await asks.job(first.id)
    with pytest.raises(errors.Invalid, match="only an ended job"):
        await asks.retry(first.id)
    await asks.cancel(first.id)
    ended, receipt = await asks.job(first.id), await asks.receipt(first.id)
    story = [one async for one in asks.events(first.id)]
    assert [("queued", 0), ("ended", 1)] == [(one.event, one.id) for one in story]
    assert [("ended", "cancelled")] == [(one.event, one.state) async for one in asks.events(first.id, after=0)]
    assert [] == [one async for one in asks.events(first.id, after=1)]
    assert ({"take": 3}, 1, 0, 0) == (queued.metadata, queued.position, ended.attempts, ended.refunded)
    assert queued.created_at == ended.created_at == story[0].at == receipt.created_at
    assert ("cancelled", 0, first.quoted) == (
        receipt.state,
        receipt.charged,
        sum(x.amount for x in receipt.quote_lines),
    )

    page = await asks.jobs("ada", limit=1)
    rest = await asks.jobs("ada", after=page.next)
    assert [other.id, first.id] == [line.id for line in (*page.jobs, *rest.jobs)]
    found = await asks.jobs("ada", state="cancelled", kind="generation", metadata={"take": "3"})
    assert ([first.id], None) == ([line.id for line in found.jobs], found.next)

    again, twice = await asks.retry(first.id), await asks.retry(first.id)
    assert (again.id, True) == (twice.id, twice.replayed)
    assert again.id not in (first.id, other.id)
    assert first.id == (await asks.job(again.id)).retry_of
    balance = await asks.balance("ada")
    assert (0, None, 0) == (balance.topup.frozen, balance.subscription.expires_at, balance["topup"]["frozen"])


async def test_a_batch_answers_each_for_itself(asks: Asks) -> None:
    """A bad one among good ones is an error in its place; all again is all replayed."""
    jobs = [
        JobRequest(account="ada", request=SONG),
        JobRequest(account="nobody", request=SONG),
        JobRequest(account="ada", request={"prompt": "x", "seconds": 900}, kind="generation"),
        JobRequest(account="ada", request=GenerationRequest(prompt="x", seconds_max=30)),
        JobRequest(account="ada", request={"prompt": "x", "seconds": 9}),
        JobRequest(account="ada", request=SONG, on_insufficient=cast(Any, "wiat")),
        JobRequest(account="ada", request=SONG, metadata={"a": {1}}),
        JobRequest(account="", request=SONG),
    ]
    bad = [errors.Invalid] * 4
    first, again = await asks.submit_many(jobs), await asks.submit_many(jobs)
    assert [False, errors.NotFound, errors.Invalid, False, *bad] == [how(one) for one in first]
    assert [True, errors.NotFound, errors.Invalid, True, *bad] == [how(one) for one in again]
    fields = [one.field for one in first if isinstance(one, errors.Invalid)]
    assert ["seconds", "kind", "on_insufficient", "metadata", "account"] == fields


def how(one: Any) -> Any:
    """Whether it was a replay, or which error it is."""
    return type(one) if isinstance(one, errors.FermataError) else one.replayed


async def test_what_is_refused_says_why(asks: Asks, tmp_path: Path) -> None:
    """An error of the tree, with the server's code and the field that is wrong."""
    bad: list[tuple[Callable[[], Any], type[errors.FermataError], str, str | None]] = [
        (lambda: asks.submit(JobRequest(account="nobody", request=SONG)), errors.NotFound, "unknown_account", None),
        (lambda: asks.job(uuid4()), errors.NotFound, "unknown_job", None),
        (lambda: asks.balance("nobody"), errors.NotFound, "unknown_account", None),
        (lambda: asks.artifact(uuid4()), errors.NotFound, "unknown_artifact", None),
        *(
            (call, errors.NotFound, "not_found", None)
            for call in (
                lambda: asks.job("xyz"),
                lambda: asks.wait("xyz", timeout=1),
                lambda: asks.cancel("xyz"),
                lambda: asks.artifact("xyz"),
                lambda: asks.download("xyz", tmp_path / "x.wav"),
            )
        ),
        (
            lambda: asks.submit(JobRequest(account="ada", request={"prompt": "x", "seconds": 9})),
            errors.Invalid,
            "validation",
            "kind",
        ),
        (
            lambda: asks.submit(JobRequest(account="ada", request=SONG, kind="stem_split")),
            errors.Invalid,
            "validation",
            "kind",
        ),
        (lambda: asks.submit(JobRequest(account="", request=SONG)), errors.Invalid, "validation", "account"),
        (lambda: asks.quote(SONG, account=""), errors.Invalid, "validation", "account"),
        (
            lambda: asks.submit(JobRequest(account="ada", request=SONG, key="Lied-ü")),
            errors.Invalid,
            "validation",
            "key",
        ),
        (
            lambda: asks.submit(JobRequest(account="ada", request=SONG, metadata={"a": {1, 2}})),
            errors.Invalid,
            "validation",
            "metadata",
        ),
        (lambda: asks.upload("ada", tmp_path / "none.wav"), errors.Invalid, "validation", "file"),
        (lambda: asks.upload("ada", tmp_path), errors.Invalid, "validation", "file"),
        (
            lambda: asks.submit(JobRequest(account="ada", request=SONG, max_credits=1)),
            errors.Invalid,
            "validation",
            "max_credits",
        ),
        (
            lambda: asks.submit(JobRequest(account="ada", request=StemSplitRequest())),
            errors.Invalid,
            "validation",
            "inputs.mix",
        ),
    ]
    for call, kind, code, field in bad:
        with pytest.raises(kind) as refused:
            await call()
        assert code == refused.value.code
        assert field == getattr(refused.value, "field", None)
    one = JobRequest(account="ada", request=SONG)
    await asks.submit(one)
    with pytest.raises(errors.Conflict, match="key"):
        await asks.submit(JobRequest(account="ada", request=GenerationRequest(prompt="y", seconds=9), key=one.key))


async def test_a_wait_ends_when_its_time_is_over(asks: Asks) -> None:
    """And the job goes on."""
    job = await asks.submit(JobRequest(account="ada", request=SONG))
    with pytest.raises(errors.TimedOut):
        await asks.wait(job.id, timeout=0.3)
    assert "queued" == (await asks.job(job.id)).state


async def test_what_can_not_be_paid_says_what_is_missing(asks: Asks) -> None:
    """Looked at before anything is stored; in a batch too."""
    dear = JobRequest(account="ada", request=GenerationRequest(prompt="x", seconds=300, variants=4))
    with pytest.raises(errors.InsufficientCredits) as refused:
        await asks.submit(dear)
    assert (100, refused.value.needed - 100) == (refused.value.available, refused.value.shortfall)
    taken, told = await asks.submit_many([JobRequest(account="ada", request=SONG), dear])
    assert [False, errors.InsufficientCredits] == [how(taken), how(told)]
    dearer = replace(dear, request=GenerationRequest(prompt="y", seconds=300, variants=4))
    with pytest.raises(errors.InsufficientCredits):  # the key was not used up
        await asks.submit(dearer)


async def test_a_file_may_be_called_anything(asks: Asks, tmp_path: Path) -> None:
    """Longer than is shown, or no UTF-8: what people see of it is on one line. The same again is the same."""
    long = await asks.upload("ada", silence(tmp_path / f"{'x' * 240}.wav", 1.0))
    odd = await asks.upload("ada", silence(tmp_path / os.fsdecode(b"\xff\n.wav"), 2.0))
    again = await asks.upload("ada", silence(tmp_path / "again.wav", 2.0), "y" * 300)
    assert ("x" * 200, "??.wav", odd.artifact) == (long.name, odd.name, again.artifact)
    with pytest.raises(errors.Invalid) as refused:
        await asks.download(odd.artifact, tmp_path / "none" / "x.wav")
    assert "path" == refused.value.field


def test_a_request_is_checked_before_it_is_sent() -> None:
    """The models are those that the server checks by."""
    for wrong in ({"prompt": ""}, {"prompt": "x", "seconds": 1}, {"prompt": "x", "bpm": 90.5}, {"prompt": "x", "a": 1}):
        with pytest.raises(ValueError, match="validation error"):
            GenerationRequest(**wrong)


# --- faults


def submitted(key: str = "k") -> bytes:
    """A good answer to a submit."""
    document = {"id": str(uuid4()), "account": "ada", "kind": "generation", "state": "queued", "quoted": 9, "book": 1}
    return answer(202, body=json.dumps({**document, "replayed": False, "key": key, "later": 1}).encode())


def problem(status: int, code: str, *headers: str) -> bytes:
    """An answer that says no."""
    return answer(status, *headers, body=json.dumps({"status": status, "code": code, "detail": "no"}).encode())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("fermata_client.calls._WAIT_SECONDS", 0.01)
    monkeypatch.setattr("fermata_client.calls._WAIT_SECONDS_MAX", 0.05)


async def in_both_ways(endpoint: Endpoint, use: Callable[[Any], Any]) -> list[Any]:
    """What a call comes to, blocking and awaited: an answer or an error of the tree."""
    url = f"http://127.0.0.1:{endpoint.port}"

    def blocking() -> Any:
        try:
            with Fermata(url, "fmt_key") as client:
                return use(client)
        except errors.FermataError as error:
            return error

    async def awaited() -> Any:
        try:
            async with AsyncFermata(url, "fmt_key") as client:
                return await use(client)
        except errors.FermataError as error:
            return error

    return [await asyncio.to_thread(blocking), await awaited()]


@pytest.mark.usefixtures("quick")
async def test_a_lost_answer_is_asked_for_again_with_the_same_key() -> None:
    """Cut connections, a server that is away, one that is busy: the same body and key until there is an answer."""
    bad = [None, problem(503, "unavailable", "Retry-After: 0"), problem(429, "rate_limited"), b"", answer(502)]

    async with an_endpoint(lambda number: (*bad, submitted())[number % 6]) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit(JobRequest(account="ada", request=SONG)))
        assert [9, 9] == [one.quoted for one in both]
        assert 1 == both[0].model_extra["later"]
        for told in (endpoint.told[:6], endpoint.told[6:]):
            assert 1 == len({(one.headers["idempotency-key"], one.body) for one in told})
        assert 2 == len({one.headers["idempotency-key"] for one in endpoint.told})


def results(*said: str) -> bytes:
    """An answer to a batch: what was said of each item, `taken` or a code of 503."""
    taken = json.loads(submitted().partition(b"\r\n\r\n")[2])
    told = [
        {"job": taken} if one == "taken" else {"problem": {"status": 503, "code": one, "detail": "no"}} for one in said
    ]
    return answer(207, body=json.dumps({"results": told}).encode())


def songs(*keys: str, **more: Any) -> list[JobRequest]:
    """A job for each key."""
    return [JobRequest(account="ada", request=SONG, key=key, **more) for key in keys]


def keys_of(told: Told) -> str:
    """The keys of a batch's items."""
    return "".join(one["key"] for one in told.document["jobs"])


@pytest.mark.usefixtures("quick")
async def test_what_of_a_batch_came_at_a_bad_moment_is_asked_for_again() -> None:
    """Only that, under its own key, until there is an answer, as for a submit by itself."""
    replies = [results("taken", "unavailable", "outcome_unknown"), results("unavailable", "taken"), results("taken")]
    async with an_endpoint(lambda number: replies[number % 3]) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit_many(songs(*"abc")))
        assert [[False] * 3] * 2 == [[how(one) for one in told] for told in both]
        assert ["abc", "bc", "b"] * 2 == [keys_of(told) for told in endpoint.told]


@pytest.mark.usefixtures("quick")
async def test_of_a_batch_too_nothing_was_done_is_said_only_where_it_is_certain() -> None:
    """An item that was in doubt once stays so, and so does one whose request was once not answered."""
    first, away = results("unavailable", "outcome_unknown"), results(*(2 * ["unavailable"]))
    async with an_endpoint(lambda number: first if number % 8 == 0 else away) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit_many(songs(*"ab")))
        assert [[errors.Unavailable, errors.Unreachable]] * 2 == [[how(one) for one in told] for told in both]
        assert 16 == len(endpoint.told)
    async with an_endpoint(lambda number: None if number % 9 == 0 else away) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit_many(songs(*"ab")))
        assert [[errors.Unreachable] * 2] * 2 == [[how(one) for one in told] for told in both]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("second", "kinds"),
    [
        (problem(413, "too_large"), [False, False, errors.Invalid, errors.Invalid, False]),
        (problem(401, "unauthorized"), [False, False, *(3 * [errors.NotAllowed])]),
        (answer(207, body=b"{}"), [False, False, *(3 * [errors.Broken])]),
        (None, [False, False, *(3 * [errors.Unreachable])]),
    ],
    ids=["too large", "key", "other document", "lost"],
)
async def test_what_was_stored_is_told_whatever_becomes_of_the_rest(
    monkeypatch: pytest.MonkeyPatch, second: bytes | None, kinds: list[Any]
) -> None:
    """Many jobs travel in several requests: the answers of one are not lost with another."""
    monkeypatch.setattr("fermata_client.calls.BATCH_MAX", 2)

    def reply(number: int) -> bytes | None:
        keys = keys_of(endpoint.told[number])
        return second if keys == "cd" else results(*(["taken"] * len(keys)))

    async with an_endpoint() as endpoint:
        endpoint.reply = reply
        both = await in_both_ways(endpoint, lambda client: client.submit_many(songs(*"abcde")))
        assert [kinds] * 2 == [[how(one) for one in told] for told in both]


async def test_many_jobs_travel_in_requests_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split by their bytes too; each comes once, in its place."""
    monkeypatch.setattr("fermata_client.calls.BATCH_BYTES_MAX", 2_000)
    async with an_endpoint() as endpoint:
        endpoint.reply = lambda number: results(*(["taken"] * len(keys_of(endpoint.told[number]))))
        jobs = songs(*"abcdefghij", metadata={"note": "日" * 150})
        both = await in_both_ways(endpoint, lambda client: client.submit_many(jobs))
        assert [[False] * 10] * 2 == [[how(one) for one in told] for told in both]
        assert 2 * "abcdefghij" == "".join(keys_of(told) for told in endpoint.told)
        assert 1_000 < max(len(told.body) for told in endpoint.told) <= 2_000


UNAVAILABLE = problem(503, "unavailable", "Retry-After: 0")
UNKNOWN = problem(503, "outcome_unknown", "Retry-After: 0")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([UNAVAILABLE], errors.Unavailable),
        ([UNKNOWN], errors.InDoubt),
        ([answer(504)], errors.InDoubt),
        ([None, *(7 * [UNAVAILABLE])], errors.Unreachable),
        ([UNKNOWN, *(7 * [UNAVAILABLE])], errors.Unreachable),
    ],
)
async def test_nothing_was_done_is_said_only_where_it_is_certain(
    replies: list[bytes | None], kind: type[errors.FermataError]
) -> None:
    """A try without an answer may have been done: no later one takes that back."""
    async with an_endpoint(lambda number: replies[number % len(replies)]) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit(JobRequest(account="ada", request=SONG)))
        assert [kind] * 2 == [type(one) for one in both]
        assert isinstance(both[0], errors.Unreachable) == (kind is not errors.Unavailable)
        assert 16 == len(endpoint.told)


@pytest.mark.usefixtures("quick")
async def test_a_server_that_never_answers_is_an_error_of_the_tree() -> None:
    """After eight tries: no exception of the library below ever leaks."""
    async with an_endpoint(lambda _: None) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.balance("ada"))
        assert [errors.Unreachable] * 2 == [type(one) for one in both]
        assert 16 == len(endpoint.told)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(401, "unauthorized"), errors.NotAllowed),
        (problem(422, "validation"), errors.Invalid),
        (answer(500, body=b"<html>"), errors.Broken),
        (answer(302, "Location: http://127.0.0.1:1/"), errors.Invalid),
        (answer(200, body=b"[]"), errors.Broken),
        (answer(200, body=b'{"id": 7}'), errors.Broken),
    ],
    ids=["key", "field", "bug", "redirect", "other JSON", "other document"],
)
async def test_a_no_is_told_once(reply: bytes, kind: type[errors.FermataError]) -> None:
    """It is not asked again, no redirect carries the key elsewhere, and what isn't understood is said to be so."""
    async with an_endpoint(lambda _: reply) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.job(uuid4()))
        assert [kind] * 2 == [type(one) for one in both]
        assert 2 == len(endpoint.told)


@pytest.mark.usefixtures("quick")
async def test_a_download_that_is_not_what_was_stored_is_not_kept(tmp_path: Path) -> None:
    """Three tries, then an error; nothing lies at its place or beside it."""
    facts = {"artifact": str(uuid4()), "account": "ada", "name": "x", "media_type": "audio/wav", "seconds": 1.0}
    facts |= {"sample_rate": 8000, "channels": 1, "bytes": 3, "sha256": "00" * 32}
    replies = (answer(200, body=json.dumps(facts).encode()), *(answer(200, body=b"abc"),) * 3)
    async with an_endpoint(lambda number: replies[number % 4]) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.download(uuid4(), tmp_path / "song.wav"))
        assert [errors.Damaged] * 2 == [type(one) for one in both]
    assert [] == files_in(tmp_path)


def test_both_clients_have_every_call() -> None:
    """Written once: what one can, the other can, and our own in process too."""
    names = {name for name in vars(Fermata) if not name.startswith("_")} - {"close"}
    assert names == {name for name in vars(AsyncFermata) if not name.startswith("_")} - {"close"}
    assert names == {name for name in vars(InProcess) if not name.startswith("_")} - set(InProcess.__slots__)
    assert {*("submit", "submit_many", "quote", "wait", "cancel", "balance", "upload", "download")} <= names


def stream(*events: tuple[int | None, dict[str, Any]]) -> bytes:
    """A job's stream, cut off behind these events. The name of each is in its document."""
    lines = [": a job's story\nretry: 1000\n\n"]
    for number, document in events:
        named = "" if number is None else f"id: {number}\n"
        lines.append(f"event: {document['event']}\ndata: {json.dumps(document)}\n{named}\n")
    return answer(200, "Content-Type: text/event-stream", body="".join(lines).encode())


@pytest.mark.usefixtures("quick")
async def test_events_go_on_where_they_were_cut_off() -> None:
    """Each is told once, over whatever connections; the last one is the end."""
    replies = [
        stream((0, {"event": "queued", "at": "2026-12-01T10:00:00Z"}), (1, {"event": "started", "attempt": 1})),
        None,
        UNAVAILABLE,
        stream((None, {"event": "progress", "progress": 0.5, "stage": "mixing"})),
        stream((3, {"event": "ended", "state": "succeeded", "charged": 7})),
    ]
    async with an_endpoint(lambda number: replies[number % 5]) as endpoint:
        both = await heard(endpoint)
        assert [[(0, "queued"), (1, "started"), (None, "progress"), (3, "ended")]] * 2 == [
            [(one.id, one.event) for one in told] for told in both
        ]
        assert [0.5, {"charged": 7}] == [both[0][2].progress, both[1][3].model_extra]
        assert [None, "1", "1", "1", "1"] * 2 == [one.headers.get("last-event-id") for one in endpoint.told]
    async with an_endpoint(lambda _: answer(204)) as endpoint:
        assert [[], []] == await heard(endpoint)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(404, "unknown_job"), errors.NotFound),
        (None, errors.Unreachable),
        (stream(), errors.Unreachable),
        (answer(200, "Content-Type: text/event-stream", body=b"data: [\n\n"), errors.Broken),
    ],
    ids=["unknown", "away", "cut off again and again", "no JSON"],
)
async def test_a_stream_that_can_not_be_had_is_an_error_of_the_tree(
    reply: bytes | None, kind: type[errors.FermataError]
) -> None:
    """Not asked for without end."""
    async with an_endpoint(lambda _: reply) as endpoint:
        assert [kind] * 2 == [type(one) for one in await heard(endpoint)]


async def heard(endpoint: Endpoint) -> list[Any]:
    """The events of a job, or an error of the tree, blocking and awaited."""
    url = f"http://127.0.0.1:{endpoint.port}"

    def blocking() -> Any:
        try:
            with Fermata(url, "fmt_key") as client:
                return list(client.events(RUNNING["id"]))
        except errors.FermataError as error:
            return error

    async def awaited() -> Any:
        try:
            async with AsyncFermata(url, "fmt_key") as client:
                return [one async for one in client.events(RUNNING["id"])]
        except errors.FermataError as error:
            return error

    return [await asyncio.to_thread(blocking), await awaited()]


@pytest.mark.parametrize(
    ("url", "key", "field"),
    [
        ("fermata.example", "fmt_x", "url"),
        ("ftp://fermata.example", "fmt_x", "url"),
        ("http://[", "fmt_x", "url"),
        ("", "fmt_x", "url"),
        ("http://fermata.example", "fmt_x\n", "key"),
        ("http://fermata.example", "fmt_ü", "key"),
        ("http://fermata.example", "", "key"),
    ],
)
def test_a_client_that_is_set_up_wrongly_says_so_at_once(url: str, key: str, field: str) -> None:
    """Before anything is sent, and not as an outage. The key itself is never said."""
    for made in (Fermata, AsyncFermata):
        with pytest.raises(errors.WrongSetup, match=f"^{field}: ") as refused:
            made(url, key)
        assert not key or key not in str(refused.value)


async def test_a_redirect_says_where_it_leads() -> None:
    """So that the right address can be given; it is not followed."""
    async with an_endpoint(lambda _: answer(308, "Location: https://new.example/v1")) as endpoint:
        for one in await in_both_ways(endpoint, lambda client: client.balance("ada")):
            assert ("redirected", True) == (one.code, "https://new.example/v1" in str(one))


async def test_a_402_that_is_not_ours_is_no_question_of_credits() -> None:
    """Of a proxy, say: it can't tell what is missing."""
    async with an_endpoint(lambda _: answer(402)) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.submit(JobRequest(account="ada", request=SONG)))
        assert [errors.Refused] * 2 == [type(one) for one in both]


RUNNING: dict[str, Any] = {
    "id": "0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88",
    "account": "ada",
    "kind": "generation",
    "state": "running",
    "quoted": 9,
    "charged": 0,
    "partial": False,
    "reason": None,
    "message": None,
    "waiting_for": None,
    "outputs": [],
    "progress": 0.5,
}


def looked(**more: Any) -> bytes:
    """An answer to a look at a job."""
    return answer(200, body=json.dumps(RUNNING | more).encode())


@pytest.mark.usefixtures("quick")
async def test_a_wait_goes_on_while_nobody_answers() -> None:
    """For as long as it was given, however many looks that are; without a time as long as any call."""
    replies = [*(12 * [None]), UNAVAILABLE, looked(), *(12 * [None]), looked(state="succeeded")]
    async with an_endpoint(lambda number: replies[number % 27]) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.wait(RUNNING["id"], timeout=30))
        assert ["succeeded"] * 2 == [one.state for one in both]
    async with an_endpoint(
        lambda number: ([looked()] + 12 * [None] + [looked(state="failed")])[number % 14]
    ) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.wait(RUNNING["id"]))
        assert ["failed"] * 2 == [one.state for one in both]
    async with an_endpoint(lambda _: None) as endpoint:
        both = await in_both_ways(endpoint, lambda client: client.wait(RUNNING["id"]))
        assert [errors.Unreachable] * 2 == [type(one) for one in both]
        assert 16 == len(endpoint.told)


async def test_a_wait_keeps_its_time_whoever_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is not asked a second time, one that is gone is asked until the time is over."""
    monkeypatch.setattr("fermata_client.client.TIMEOUT_SECONDS", 3.0)
    async with an_endpoint(shut=True) as endpoint:
        for one in await in_both_ways(endpoint, lambda client: client.wait(RUNNING["id"], timeout=0.5)):
            assert isinstance(one, errors.TimedOut)
            assert isinstance(one.__cause__, errors.Unreachable)
        assert 2 == len(endpoint.told)
    for one in await in_both_ways(Endpoint(port=9), lambda client: client.wait(RUNNING["id"], timeout=0.5)):
        assert isinstance(one, errors.TimedOut)


async def test_a_wait_lets_the_server_wait_where_it_does() -> None:
    """One look that is held until the job has ended, and no others meanwhile; a short time is asked for as such."""
    async with an_endpoint(lambda _: looked(state="succeeded"), shut=True) as endpoint:
        waits = asyncio.create_task(in_both_ways(endpoint, lambda client: client.wait(RUNNING["id"], timeout=5.5)))
        await until(lambda: endpoint.told, "asked")
        endpoint.gate.set()
        assert ["succeeded"] * 2 == [one.state for one in await waits]
    assert 2 == len(endpoint.told)
    assert all(one.path.endswith("?wait=5") for one in endpoint.told)
