"""Engines behind HTTP, against real servers that go wrong: what is asked again, what ends a job, what is made once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tasks.engines.contract import EngineNotReady, Link
from tasks.engines.remote.ace_step import AceStepServer
from tasks.engines.remote.cog import Cog, _measures
from tasks.engines.remote.engine import Remote
from tasks.engines.remote.failures import Away, Busy, again_for, wait_of
from tasks.generation import Generation
from tasks.kind import (
    AudioInfo,
    EngineError,
    EngineFailure,
    EngineUnavailable,
    InputFile,
    QualityGate,
    RefusedRequest,
    RunLimits,
)
from tasks.registry import RegistryError, prepared, registry
from tasks.stem_split import StemSplit
from tasks.tiers import Tiered
from tasks.validation import parse
from tests.providers import AceStepProvider, CogProvider, Fault, Job, running
from tests.unit.tasks.contexts import JOB, Recorder
from tests.waiting import wait_until

#: Short times, so that what goes wrong goes wrong within a test.
QUICK = {"private": "true", "poll_seconds": "0.01", "timeout_seconds": "1", "patience_seconds": "20"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cog(stack: ExitStack) -> CogProvider:
    provider = CogProvider()
    stack.enter_context(running(provider))
    return provider


@pytest.fixture
def ace(stack: ExitStack) -> AceStepProvider:
    provider = AceStepProvider()
    stack.enter_context(running(provider))
    return provider


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes a kind whose tier studio is made by an engine of a document."""
    opened: list[Tiered] = []

    def make(sort: str, url: str, kind: str = "generation", **options: str) -> Any:
        lines = "\n".join(f"{name} = {value}" for name, value in {**QUICK, **options}.items())
        document = tmp_path / "engines.toml"
        document.write_text(f'[engines.far]\ntype = "{sort}"\nurl = "{url}"\n{lines}\n[tiers.{kind}]\nstudio = "far"\n')
        found = registry(engines=document)[kind]
        assert isinstance(found, Tiered)
        opened.append(found)
        return found

    yield make
    for kind in opened:
        await kind.engines["studio"].close()


async def song(kind: Generation, context: Recorder, **fields: Any) -> None:
    request = parse(kind, {"prompt": "warm piano", "seconds": 10, "model": "studio", **fields})
    await kind.run(request, {}, context, RunLimits())


def anew(context: Recorder) -> Recorder:
    """The next attempt of the same job: another folder, the state that was remembered."""
    folder = context.workdir.with_name(f"{context.workdir.name}+")
    folder.mkdir()
    return Recorder(folder, engine_state=context.engine_state)


# --- what an answer means


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_who_fails_is_asked_again_and_is_not_well(status: int) -> None:
    """These count for the breaker."""
    assert isinstance(again_for(status, {}), Away)


@pytest.mark.parametrize("status", [409, 429])
def test_who_is_busy_is_asked_again_and_is_well(status: int) -> None:
    """These don't."""
    assert isinstance(again_for(status, {}), Busy)


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 410, 413, 422])
def test_the_rest_is_for_good(status: int) -> None:
    """Asking again can't help."""
    assert again_for(status, {}) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2026 00:00:00 +99999999999999999999"}, None),
        (
            {"retry-after": formatdate(1_700_000_000, usegmt=True), "date": "Mon, 01 Jan 2026 00:00:00 +9999999999999"},
            0,
        ),
        ({"retry-after": formatdate(1_700_000_060, usegmt=True), "date": formatdate(1_700_000_000, usegmt=True)}, 60),
        ({"retry-after": formatdate(1_700_000_000, usegmt=True), "date": formatdate(1_700_000_060, usegmt=True)}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, 12),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "3"}, 3),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000005", "date": formatdate(1_700_000_000)},
            5,
        ),
        ({"x-ratelimit-remaining": "2", "x-ratelimit-reset": "12"}, None),
    ],
)
def test_a_provider_says_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """In seconds, as a date, or by a rate limit that is used up; its times are by its own clock."""
    assert seconds == wait_of(headers)


# --- a song from each


async def test_cog_makes_a_song(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """Ordered under the job's own id, polled, fetched, written as was asked; what the provider measured is kept."""
    await song(made("cog", cog.url), context, format="ogg", variants=2)
    assert [("song", "audio/ogg", 441_000), ("song-2", "audio/ogg", 441_000)] == [
        (output.name, output.media_type, output.info.frames) for output in context.outputs
    ]
    assert ["1.250"] * 2 == [output.measures["predict_seconds"] for output in context.outputs]
    assert [f"PUT /predictions/{JOB}"] == [one.line for one in cog.asked("PUT")]
    ordered = cog.jobs[str(JOB)].given
    assert ("warm piano", 10, 2) == (ordered["prompt"], ordered["seconds"], ordered["variants"])
    assert sorted(context.told) == context.told
    assert 1.0 == context.told[-1][0]


async def test_cog_splits_a_mix(cog: CogProvider, context: Recorder, made: Callable[..., Any], tmp_path: Path) -> None:
    """The mix goes along as data, under the model's own name for it; stems come by their names."""
    mix = a_mix(tmp_path)
    kind: StemSplit = made(
        "cog", cog.url, "stem_split", fields='{ audio = "mix", stems = "stems", seconds = "seconds" }',
        constants='{ quality = "best" }',
    )  # fmt: skip
    request = parse(kind, {"stems": ["drums", "vocals"], "model": "studio"})
    await kind.run(request, {"mix": mix}, context, RunLimits())
    assert ["vocals", "drums"] == [output.name for output in context.outputs]
    assert {mix.info.seconds} == {output.usage.seconds_in for output in context.outputs}
    ordered = cog.jobs[str(JOB)].given
    assert {"audio", "stems", "seconds", "quality"} == set(ordered)
    assert ordered["audio"].startswith("data:application/octet-stream;base64,")


async def test_a_mix_can_go_by_url(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link instead of the bytes; a provider that is to say when it is done is told where."""
    kind: StemSplit = made("cog", cog.url, "stem_split", inputs='"url"', webhook="true")

    async def input_url(name: str) -> str:
        return f"https://bucket.example/{name}"

    monkeypatch.setattr(context, "input_url", input_url)
    monkeypatch.setattr(context, "completion_url", lambda: "https://fermata.example/done")
    await kind.run(parse(kind, {"stems": ["drums"], "model": "studio"}), {"mix": a_mix(tmp_path)}, context, RunLimits())
    ordered = cog.asked("PUT")[0].body
    assert "https://bucket.example/mix" == ordered["input"]["mix"]
    assert ("https://fermata.example/done", ["completed"]) == (ordered["webhook"], ordered["webhook_events_filter"])


async def test_audio_that_is_too_large_to_go_along_ends_the_job(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], tmp_path: Path
) -> None:
    """Before anything is sent; it says how much goes."""
    kind: StemSplit = made("cog", cog.url, "stem_split", upload_bytes_max="2000")
    with pytest.raises(EngineError, match=r"^far takes at most 2000 bytes of audio; it is 88244$") as ended:
        await kind.run(parse(kind, {"model": "studio"}), {"mix": a_mix(tmp_path)}, context, RunLimits())
    assert (False, []) == (ended.value.retryable, cog.heard)


def a_mix(folder: Path) -> InputFile:
    """One second of it."""
    info = AudioInfo(44_100, 44_100, 1)
    soundfile.write(folder / "mix.wav", 0.3 * np.sin(np.arange(info.frames) / 20), info.sample_rate)
    return InputFile(folder / "mix.wav", info)


@pytest.mark.parametrize(
    ("options", "links", "problem"),
    [
        ({"webhook": "true"}, set(), "far: its provider is to say when work is done: set FERMATA_PUBLIC_URL and"),
        ({"inputs": '"url"'}, set(), "far: its provider is to fetch inputs: set FERMATA_PUBLIC_URL and"),
        ({"inputs": '"url"'}, {Link.INPUT}, None),
        ({"webhook": "true", "inputs": '"url"'}, {Link.INPUT, Link.COMPLETION}, None),
        ({}, set(), None),
    ],
)
def test_a_provider_that_can_t_come_to_us_is_not_started(
    made: Callable[..., Any], options: dict[str, str], links: set[Link], problem: str | None
) -> None:
    """Where the settings have no address for it."""
    kind = made("cog", "http://127.0.0.1:1", **options)
    _, problems = prepared({"generation": kind}, ["generation"], links)
    assert ([problem] if problem else []) == [one.problem[: len(problem or "")] for one in problems]


def test_a_held_request_needs_no_word(made: Callable[..., Any]) -> None:
    """It brings the result itself."""
    with pytest.raises(RegistryError, match='far: webhook: goes with wait = "poll" only'):
        made("cog", "http://127.0.0.1:1", wait='"hold"', webhook="true")


async def test_plain_cog_is_held(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """It knows no GET: the PUT is held, and asked again under the same id when the connection breaks."""
    cog.faults = [Fault("PUT /predictions", cut=True)]
    await song(made("cog", cog.url, wait='"hold"'), context)
    assert [f"PUT /predictions/{JOB}"] * 2 == [one.line for one in cog.asked("PUT")]
    assert ([], 1) == (cog.asked("GET /predictions"), len(cog.jobs))


async def test_plain_cogs_result_is_fetched_again_never_made_again(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """It forgets what it has made once it has answered, so where the result lies is remembered here."""
    kind = made("cog", cog.url, wait='"hold"', patience_seconds="0")
    cog.faults = [Fault("GET /files", cut=True)]
    with pytest.raises(EngineUnavailable, match=r"^far can't be reached, or broke off$"):
        await song(kind, context)
    await song(kind, later := anew(context))
    assert (["song"], 1) == ([one.name for one in later.outputs], len(cog.asked("PUT")))
    assert "1.250" == later.outputs[0].measures["predict_seconds"]


async def test_a_prediction_that_was_done_is_never_made_again(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """The service forgot it before its result was here: that is fetched from where it lay."""
    kind = made("cog", cog.url, patience_seconds="0")
    cog.faults = [Fault("GET /files", cut=True)]
    with pytest.raises(EngineUnavailable, match=r"^far can't be reached, or broke off$"):
        await song(kind, context)
    cog.faults = [Fault("GET /predictions", status=404)]
    await song(kind, later := anew(context))
    assert (["song"], 1, 2) == (
        [one.name for one in later.outputs],
        len(cog.asked("PUT")),
        len(cog.asked("GET /files")),
    )
    assert [] == cog.faults


async def test_a_prediction_that_is_gone_with_its_result_ends_the_job(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """It was made, and what was made is lost over there: no further attempt pays the provider for another one."""
    kind = made("cog", cog.url, patience_seconds="0")
    cog.faults = [Fault("GET /files", cut=True)]
    with pytest.raises(EngineUnavailable):
        await song(kind, context)
    cog.die()
    cog.dead = False
    cog.faults = [Fault("GET /files", status=404), Fault("GET /files", status=410)]
    with pytest.raises(EngineError, match=r"^far no longer has the result$") as ended:
        await song(kind, anew(context))
    assert (False, 1) == (ended.value.retryable, len(cog.asked("PUT")))


async def test_a_prediction_that_was_lost_before_it_was_done_is_ordered_again(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """Under the same id: it never came to anything over there."""
    cog.faults = [Fault("GET /predictions", status=404)]
    await song(made("cog", cog.url), context)
    assert [f"PUT /predictions/{JOB}"] * 2 == [one.line for one in cog.asked("PUT")]
    assert ["song"] == [one.name for one in context.outputs]


async def test_plain_cogs_result_that_is_gone_ends_the_job(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """For good: another look there would have it made a second time."""
    cog.faults = [Fault("GET /files", status=404)]
    with pytest.raises(EngineError, match=r"^far no longer has the result$") as ended:
        await song(made("cog", cog.url, wait='"hold"'), context)
    assert (False, 1) == (ended.value.retryable, len(cog.asked("PUT")))


async def test_ace_step_makes_songs(ace: AceStepProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """Released with the request's words, queried by the task's id, fetched."""
    fields = {"lyrics": "la la", "bpm": 90, "key": "A minor", "seed": 7, "variants": 2}
    await song(made("ace_step_server", ace.url), context, **fields)
    assert [("song", 441_000), ("song-2", 441_000)] == [(one.name, one.info.frames) for one in context.outputs]
    released = ace.asked("POST /release_task")[0].body
    assert {
        "lyrics": "la la",
        "bpm": 90,
        "key_scale": "A minor",
        "seed": 7,
        "batch_size": 2,
    }.items() <= released.items()
    assert {"audio_duration": 10.0, "use_random_seed": False}.items() <= released.items()
    assert {"engine": "far", "round": 0, "task": "task-1"} == context.engine_state


# --- what goes wrong on the way


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", status=409),
        Fault("PUT", status=429, headers={"Retry-After": "0.05"}),
        Fault("PUT", status=503),
        Fault("PUT", cut=True),
        Fault("PUT", stall=True),
        Fault("GET /predictions", status=500),
        Fault("GET /predictions", stall=True),
        Fault("GET /files", status=502),
        Fault("GET /files", cut=True),
        Fault("GET /files", stall=True),
        Fault("GET /files", status=404),
    ],
    ids=str,
)
async def test_one_failure_costs_nothing_but_time(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], fault: Fault
) -> None:
    """Whatever goes wrong once, on the way there or back: the song comes, and it was made once."""
    cog.faults = [fault]
    await song(made("cog", cog.url), context)
    assert ["song"] == [output.name for output in context.outputs]
    assert ([str(JOB)], []) == (list(cog.jobs), cog.faults)


async def test_a_rate_limit_holds_every_request(
    ace: AceStepProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """A 429 with Retry-After: nothing is asked of that provider before, by any job."""
    ace.faults = [Fault("POST /release_task", status=429, headers={"Retry-After": "0.4"})]
    kind = made("ace_step_server", ace.url, connections="1", patience_seconds="30")
    await asyncio.gather(song(kind, context), song(kind, anew(context)))
    first, *later = ace.heard
    assert later
    assert min(one.at for one in later) >= first.at + 0.39


async def test_a_result_is_fetched_again_by_the_next_attempt_never_made_again(
    ace: AceStepProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """The task's id was remembered before the first look, so whoever comes next looks and fetches."""
    kind = made("ace_step_server", ace.url, patience_seconds="0")
    ace.faults = [Fault("POST /query_result", status=500)]
    with pytest.raises(EngineUnavailable, match=r"^far failed \(500\)$"):
        await song(kind, context)
    later = anew(context)
    ace.faults = [Fault("GET /v1/audio", cut=True)]
    with pytest.raises(EngineUnavailable, match=r"^far can't be reached, or broke off$"):
        await song(kind, later)
    last = anew(later)
    await song(kind, last)
    assert (["song"], 1, 1) == ([one.name for one in last.outputs], len(ace.jobs), len(ace.asked("POST /release")))


async def test_a_result_that_is_gone_ends_the_job(
    ace: AceStepProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """After one more look: links go stale. For good, and without a second making."""
    ace.faults = [Fault("GET /v1/audio", status=404), Fault("GET /v1/audio", status=410)]
    with pytest.raises(EngineError, match=r"^far no longer has the result$") as ended:
        await song(made("ace_step_server", ace.url), context)
    assert not ended.value.retryable
    assert 1 == len(ace.jobs)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
async def test_a_refusal_ends_the_job(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], status: int
) -> None:
    """Asked once, and for good. It says the number, and nothing that the provider wrote."""
    cog.faults = [Fault("PUT", status=status)]
    with pytest.raises(EngineError, match=rf"^far refused the job \({status}\)$") as ended:
        await song(made("cog", cog.url), context)
    assert not ended.value.retryable
    assert 1 == len(cog.heard)


async def test_what_failed_over_there_is_ordered_anew(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """Under another id: the same one would only answer with the same failure."""
    kind = made("cog", cog.url)
    cog.looks_needed = None
    working = asyncio.create_task(song(kind, context))
    await until(lambda: cog.asked("GET /predictions"))
    cog.jobs[str(JOB)].failed = True
    with pytest.raises(EngineFailure, match=r"^far could not make it$"):
        await working
    cog.looks_needed = 1
    await song(kind, again := anew(context))
    assert [str(JOB), f"{JOB}-1"] == list(cog.jobs)
    assert ["song"] == [output.name for output in again.outputs]


async def test_too_few_outputs_are_no_success(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """Nobody can tell which one is missing, so none is handed over, and it is made anew."""
    kind, cog.withheld = made("cog", cog.url), 1
    with pytest.raises(QualityGate, match=r"^far made 1 of the 2 outputs that were asked$"):
        await song(kind, context, variants=2)
    cog.withheld = 0
    await song(kind, again := anew(context), variants=2)
    assert ([], 2) == (context.outputs, len(again.outputs))


async def test_a_longer_result_is_cut(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """No output uses more than was quoted."""
    cog.stretch = 1.3
    await song(made("cog", cog.url), context)
    assert [441_000] == [output.info.frames for output in context.outputs]


async def test_a_result_that_is_no_audio_is_the_providers_failure(
    ace: AceStepProvider, context: Recorder, made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the customer's: another attempt has it made anew, for the same file would only be fetched again."""
    kind = made("ace_step_server", ace.url)
    sound = ace.sound
    monkeypatch.setattr(ace, "sound", lambda seconds: b"<html>we are sorry</html>")
    with pytest.raises(EngineFailure, match=r"^the provider's song ") as ended:
        await song(kind, context)
    monkeypatch.setattr(ace, "sound", sound)
    assert ended.value.retryable
    await song(kind, later := anew(context))
    assert (["song"], 2) == ([one.name for one in later.outputs], len(ace.jobs))


async def test_patience_ends(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """Then the job's own retry comes, which holds no slot while it waits."""
    cog.faults = [Fault("PUT", status=503)] * 50
    with pytest.raises(EngineUnavailable, match=r"^far failed \(503\)$"):
        await song(made("cog", cog.url, patience_seconds="0.5", timeout_seconds="30", breaker_failures="100"), context)
    assert cog.faults  # it was not for want of failures


async def test_within_its_patience_it_is_asked_again(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """After a wait of our own, and not once the provider asks for more than is left."""
    cog.faults = [Fault("PUT", status=503), Fault("PUT", status=503, headers={"Retry-After": "600"})] * 2
    kind = made("cog", cog.url, patience_seconds="300", timeout_seconds="30", breaker_failures="100")
    with pytest.raises(EngineUnavailable, match=r"^far failed \(503\)$"):
        await song(kind, context)
    assert 2 == len(cog.heard)


async def test_a_wait_beyond_all_patience_is_not_waited_for(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """The attempt ends at once."""
    cog.faults = [Fault("PUT", status=429, headers={"Retry-After": "600"})]
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"^far is busy \(429\)$"):
        await song(made("cog", cog.url), context)
    assert time.monotonic() - began < 3


async def test_no_provider_can_have_itself_left_alone_for_ever(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mad answer must not end a tier until the worker is started again."""
    monkeypatch.setattr("tasks.engines.remote.provider.SILENT_MAX_SECONDS", 0.05)
    cog.faults = [Fault("PUT", status=429, headers={"Retry-After": "999999999"})]
    kind = made("cog", cog.url)
    with pytest.raises(EngineUnavailable, match=r"^far is busy \(429\)$"):
        await song(kind, context)
    await song(kind, later := anew(context))
    assert ["song"] == [one.name for one in later.outputs]


async def test_another_hosts_rate_limit_is_not_the_providers(
    stack: ExitStack, cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """Where results lie elsewhere, what is said there holds up that fetch, and no request to the provider."""
    elsewhere = CogProvider()
    stack.enter_context(running(elsewhere))
    elsewhere.jobs = cog.jobs
    elsewhere.faults = [Fault("GET /files", status=429, headers={"Retry-After": "600"})]
    cog.faults = [Fault("GET /files", status=302, headers={"Location": f"{elsewhere.url}/files/{JOB}/song-0"})]
    kind = made("cog", cog.url, patience_seconds="5")
    with pytest.raises(EngineUnavailable, match=r"^far is busy \(429\)$"):
        await song(kind, context)
    await song(kind, later := anew(context))
    assert ["song"] == [one.name for one in later.outputs]


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{", b"[1]", b'"x"', b"\xff"], ids=["deep", "cut", "list", "text", "bytes"]
)
async def test_an_answer_that_makes_no_sense_is_the_providers_failure(
    cog: CogProvider, context: Recorder, made: Callable[..., Any], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never ours: another attempt may help."""
    answer = cog.answer
    monkeypatch.setattr(
        cog, "answer", lambda method, *more: (200, content) if method == "GET" else answer(method, *more)
    )
    with pytest.raises(EngineFailure, match=r"^the provider answered with something that is no object$"):
        await song(made("cog", cog.url), context)


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-1", "1" + "0" * 400, '"3"', "[]"])
def test_a_measure_that_makes_no_sense_is_left_out(seconds: str) -> None:
    """It stands on no receipt, and fails no run."""
    assert {} == _measures({"metrics": {"predict_time": json.loads(seconds)}})


async def test_nobody_there(context: Recorder, made: Callable[..., Any]) -> None:
    """A provider that is down is away, not a failure for good."""
    with pytest.raises(EngineUnavailable, match=r"^far can't be reached, or broke off$"):
        await song(made("cog", "http://127.0.0.1:1", patience_seconds="0"), context)


# --- breaker, connections


async def test_after_enough_failures_one_probe_looks_first(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """The open breaker spares the provider; then its health is asked before any job's request goes there."""
    cog.faults = [Fault("PUT", status=500)] * 3
    cog.health = "UNHEALTHY"
    kind = made("cog", cog.url, breaker_failures="3", breaker_seconds="0.3", connections="1", patience_seconds="60")
    jobs = [asyncio.create_task(song(kind, one)) for one in (context, anew(context))]
    await until(lambda: len(cog.asked("GET /health-check")) >= 2)
    assert 3 == len(cog.asked("PUT"))
    cog.health = "READY"
    await asyncio.gather(*jobs)
    probes = [one.at for one in cog.asked("GET /health-check")]
    assert all(later - earlier >= 0.29 for earlier, later in pairwise(probes))


async def test_a_busy_provider_does_not_open_the_breaker(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """It is well, and says so."""
    cog.faults = [Fault("PUT", status=409)] * 4
    await song(made("cog", cog.url, breaker_failures="2"), context)
    assert ([], 5) == (cog.asked("GET /health"), len(cog.asked("PUT")))


async def test_connections_are_limited(ace: AceStepProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """However many jobs there are."""
    kind, contexts = made("ace_step_server", ace.url, connections="2"), [context]
    for _ in range(5):
        contexts.append(anew(contexts[-1]))
    await asyncio.gather(*(song(kind, one) for one in contexts))
    assert 2 >= ace.most_at_once
    assert 6 == len(ace.jobs)


# --- cancel


async def test_a_cancel_reaches_the_provider(cog: CogProvider, context: Recorder, made: Callable[..., Any]) -> None:
    """Within a second, if nobody wants the job any more."""
    cog.looks_needed = None
    working = asyncio.create_task(song(made("cog", cog.url), context))
    await until(lambda: cog.asked("GET /predictions"))
    context.abandoned = True
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert cog.jobs[str(JOB)].cancelled


async def test_work_that_somebody_goes_on_with_is_left_alone(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """A worker that leaves hands the job back: the next one finds the prediction where it was."""
    cog.looks_needed, kind = None, made("cog", cog.url)
    working = asyncio.create_task(song(kind, context))
    await until(lambda: cog.asked("GET /predictions"))
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    cog.looks_needed = 1
    await song(kind, anew(context))
    assert (False, 1, 1) == (cog.jobs[str(JOB)].cancelled, len(cog.jobs), len(cog.asked("PUT")))


async def test_a_provider_that_does_not_hear_a_cancel_holds_nobody_up(
    cog: CogProvider, context: Recorder, made: Callable[..., Any]
) -> None:
    """It gets a second."""
    cog.looks_needed = None
    working = asyncio.create_task(song(made("cog", cog.url, timeout_seconds="30"), context))
    await until(lambda: cog.asked("GET /predictions"))
    cog.faults, context.abandoned = [Fault("POST", stall=True)], True
    began = time.monotonic()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert time.monotonic() - began < 2


# --- secrets, and where we go


async def test_the_secret_goes_to_its_provider_only(
    stack: ExitStack, cog: CogProvider, context: Recorder, made: Callable[..., Any], tmp_path: Path
) -> None:
    """Results may lie elsewhere: whoever is there does not learn it, by a link or by a redirect."""
    (tmp_path / "secret").write_text("CANARY\n")
    elsewhere = stack.enter_context(running(CogProvider()))
    assert isinstance(elsewhere, CogProvider)
    elsewhere.jobs = cog.jobs
    kind = made("cog", cog.url, secret_file='"secret"')
    kind.engines["studio"].prepare()
    target = f"{elsewhere.url}/files/{JOB}/song-0"
    cog.faults = [Fault("GET /files", status=302, headers={"Location": target})]
    await song(kind, context)
    assert {"Bearer CANARY"} == {one.headers.get("Authorization") for one in cog.heard}
    assert [None] == [one.headers.get("Authorization") for one in elsewhere.heard]


@pytest.mark.parametrize("content", [None, "", "  \n", "two\nlines", "ümlaut"])
def test_a_missing_secret_keeps_the_tier_from_starting(
    made: Callable[..., Any], tmp_path: Path, content: str | None
) -> None:
    """In one sentence that shows nothing of it."""
    if content is not None:
        (tmp_path / "secret").write_text(content)
    engine = made("cog", "http://127.0.0.1:1", secret_file='"secret"').engines["studio"]
    assert isinstance(engine, Remote)
    with pytest.raises(EngineNotReady, match=r"^far: ") as refused:
        engine.prepare()
    assert str(tmp_path / "secret") in str(refused.value)
    assert "lines" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "private", "problem"),
    [
        ("http://music.example", "false", "only https is used; a provider in your own network needs private = true"),
        ("https://127.0.0.1", "false", "it is a private address; a provider in your own"),
        ("https://[::1]:8000", "false", "it is a private address"),
        ("https://169.254.169.254", "false", "it is a private address"),
        ("ftp://music.example", "true", "only http and https are used"),
        ("https://user:CANARY@music.example", "true", "it has a name or password in it"),
        ("https://music.example/?key=CANARY", "true", "must have no query"),
        ("music.example", "true", "only http and https are used"),
        ("https://", "true", "it names no host"),
    ],
)
def test_a_provider_that_is_no_place_to_go_is_refused_at_start(
    made: Callable[..., Any], url: str, private: str, problem: str
) -> None:
    """By its name in the document, without a secret that may stand in it."""
    with pytest.raises(RegistryError) as refused:
        made("cog", url, private=private)
    assert f"engines.far: url: {problem}" in str(refused.value)
    assert "CANARY" not in str(refused.value)


async def test_a_name_that_leads_to_a_private_address_is_not_followed(
    context: Recorder, made: Callable[..., Any], cog: CogProvider
) -> None:
    """Looked at when it is connected to, so a name can't change its mind in between."""
    port = cog.url.rpartition(":")[2]
    with pytest.raises(EngineError, match=r"^far can't be reached: its name leads to a private address$") as ended:
        await song(made("cog", f"https://localhost:{port}", private="false"), context)
    assert not ended.value.retryable
    assert [] == cog.heard


@pytest.mark.parametrize("way", ["result", "redirect"])
async def test_a_private_provider_opens_its_own_host_only(
    context: Recorder, made: Callable[..., Any], cog: CogProvider, stack: ExitStack, way: str
) -> None:
    """Its results may not lead to another address of our network, but to the hosts that the document names."""
    elsewhere = CogProvider()
    elsewhere.jobs[str(JOB)] = Job({"seconds": 10})
    stack.enter_context(running(elsewhere))
    there = f"{elsewhere.url.replace('127.0.0.1', 'localhost')}/files/{JOB}/song-0"

    def lead_there() -> None:
        if way == "result":
            cog.results = [there]
        else:
            cog.faults = [Fault("GET /files", status=302, headers={"Location": there})]

    lead_there()
    with pytest.raises(EngineError, match=r"^far can't be reached: only https is used$") as ended:
        await song(made("cog", cog.url), context)
    assert (False, []) == (ended.value.retryable, elsewhere.heard)
    cog.results = [there.replace("http:", "https:")]
    with pytest.raises(EngineError, match=r"^far can't be reached: its name leads to a private address$"):
        await song(made("cog", cog.url), second := anew(context))
    cog.results = None
    lead_there()
    await song(made("cog", cog.url, result_hosts='["LocalHost"]'), later := anew(second))
    assert (["song"], 1) == ([one.name for one in later.outputs], len(elsewhere.heard))


@pytest.mark.parametrize("host", ["", "https://x", "x:80", "x/y", "user@x", "a b"])
def test_a_result_host_is_a_host(made: Callable[..., Any], host: str) -> None:
    """Named in one sentence, at start."""
    with pytest.raises(RegistryError, match=r"engines\.far: result_hosts: .* is no host: name it without scheme"):
        made("cog", "https://music.example", result_hosts=f'["{host}"]')


def test_adapters_turn_down_what_they_cant_do(made: Callable[..., Any]) -> None:
    """Before anything is priced."""
    ace = made("ace_step_server", "http://127.0.0.1:1")
    assert isinstance(ace.engines["studio"], AceStepServer)
    with pytest.raises(RefusedRequest, match=r"^seconds: must be at least 10 with this model$"):
        parse(ace, {"prompt": "x", "seconds": 8, "model": "studio"})
    cog = made("cog", "http://127.0.0.1:1")
    assert isinstance(cog.engines["studio"], Cog)
    with pytest.raises(RefusedRequest, match=r"^lyrics: are not sung by this engine"):
        parse(cog, {"prompt": "x", "seconds": 8, "lyrics": "la", "model": "studio"})
    assert parse(
        made("cog", "http://127.0.0.1:1", sings="true"),
        {"prompt": "x", "seconds": 8, "lyrics": "la", "model": "studio"},
    )


async def until(condition: Callable[[], object]) -> None:
    """Wait for it, at most ten seconds."""
    await asyncio.to_thread(wait_until, condition, "the provider was asked", seconds=10)
