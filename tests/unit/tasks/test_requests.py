"""What customers may ask, and what each refusal says."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kind import AudioInfo, InputLimits, RefusedRequest, Request, Usage, field_of
from tasks.registry import RegistryError, registry
from tasks.validation import check_inputs, parse

KINDS = registry()
GENERATION = KINDS["generation"]
CONVERSION = KINDS["vocal_conversion"]
STEMS = KINDS["stem_split"]


def a_song(**fields: Any) -> dict[str, Any]:
    return {"prompt": "calm lofi in A minor", "seconds": 30, **fields}


def audio(seconds: float = 10, sample_rate: int = 44_100, channels: int = 2) -> AudioInfo:
    return AudioInfo(frames=int(seconds * sample_rate), sample_rate=sample_rate, channels=channels)


@pytest.mark.parametrize(
    ("params", "field", "problem"),
    [
        ({"seconds": 30}, "prompt", "is required"),
        (a_song(prompt=7), "prompt", "must be text, not a whole number"),
        (a_song(prompt=""), "prompt", "must not be empty"),
        (a_song(prompt=" \n "), "prompt", "must not be empty"),
        (a_song(prompt="x" * 2001), "prompt", "must be at most 2000 characters long (given 2001)"),
        (a_song(prompt="a\0b"), "prompt", "must not contain NUL characters"),
        (a_song(prompt="a\x1b[31mb"), "prompt", "must not contain control characters"),
        (a_song(prompt="a\x9bb"), "prompt", "must not contain control characters"),
        (a_song(prompt="a\ud800"), "prompt", "must be valid Unicode, without lone surrogates"),
        ({"prompt": "x"}, "seconds", "exactly one of seconds and seconds_max must be given"),
        (a_song(seconds_max=20), "seconds", "exactly one of seconds and seconds_max must be given"),
        (a_song(seconds=4.999), "seconds", "must be between 5 and 300 (given 4.999)"),
        (a_song(seconds=301), "seconds", "must be between 5 and 300 (given 301)"),
        (a_song(seconds=-1), "seconds", "must be between 5 and 300 (given -1)"),
        (a_song(seconds=0), "seconds", "must be between 5 and 300 (given 0)"),
        (a_song(seconds=10**30), "seconds", f"must be between 5 and 300 (given 1{'0' * 30})"),
        (a_song(seconds=10**400), "seconds", "must be a finite number"),
        (a_song(seconds=30.0001), "seconds", "must be given to the millisecond at most"),
        (a_song(seconds=True), "seconds", "must be a number, not true or false"),
        (a_song(seconds="30"), "seconds", "must be a number, not text"),
        (a_song(seconds=float("nan")), "seconds", "must be a finite number"),
        (a_song(seconds=float("inf")), "seconds", "must be a finite number"),
        ({"prompt": "x", "seconds_max": 5, "bpm": 30}, "seconds_max", "must hold a whole bar, 8.00 seconds at 30 bpm"),
        (a_song(bpm=120.0), "bpm", "must be a whole number, not a decimal number"),
        (a_song(bpm="120"), "bpm", "must be a whole number, not text"),
        (a_song(bpm=True), "bpm", "must be a whole number, not true or false"),
        (a_song(bpm=29), "bpm", "must be between 30 and 300 (given 29)"),
        (a_song(bpm=10**5000), "bpm", "must be between 30 and 300 (given a number of too many digits)"),
        (a_song(key="H minor"), "key", 'must be a key such as "A minor" or "F# major"'),
        (a_song(key="A  minor"), "key", 'must be a key such as "A minor" or "F# major"'),
        (a_song(key="A dorian"), "key", 'must be a key such as "A minor" or "F# major"'),
        (a_song(key="A minor" * 9), "key", "must be at most 9 characters long (given 63)"),
        (
            a_song(style="polka"),
            "style",
            "must be one of lofi, house, rock, hiphop, pop, folk, cinematic, ambient",
        ),
        (a_song(seed=-1), "seed", "must be between 0 and 4294967295 (given -1)"),
        (a_song(seed=2**63), "seed", "must be between 0 and 4294967295 (given 9223372036854775808)"),
        (a_song(variants=0), "variants", "must be between 1 and 4 (given 0)"),
        (a_song(variants=5), "variants", "must be between 1 and 4 (given 5)"),
        (a_song(model="huge"), "model", "must be 'draft', 'standard' or 'studio' (given huge)"),
        (a_song(format="exe"), "format", "must be 'wav', 'flac', 'mp3' or 'ogg' (given exe)"),
        (a_song(format=None), "format", "must be 'wav', 'flac', 'mp3' or 'ogg' (given null)"),
        (
            a_song(lyrics="la la"),
            "lyrics",
            "are not sung by this engine: it is instrumental. Leave the field out",
        ),
        (a_song(secs=3), "secs", "is not a known field (did you mean seconds?)"),
        (a_song(account="me"), "account", "is not a known field (known: "),
        ([], "params", "must be an object of fields and values, not a list"),
        ("prompt", "params", "must be an object of fields and values, not text"),
        (None, "params", "must be an object of fields and values, not null"),
    ],
)
def test_generation_refuses(params: Any, field: str, problem: str) -> None:
    """A bad field is refused by name, with its limit."""
    with pytest.raises(RefusedRequest) as refused:
        parse(GENERATION, params)
    assert field == refused.value.field
    assert refused.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("params", "field", "problem"),
    [
        ({"semitones": 24.1}, "semitones", "must be between -24 and 24 (given 24.1)"),
        ({"semitones": True}, "semitones", "must be a number, not true or false"),
        ({"semitones": float("-inf")}, "semitones", "must be a finite number"),
        ({"formant": 0.59}, "formant", "must be between 0.6 and 1.6 (given 0.59)"),
        ({"formant": "1"}, "formant", "must be a number, not text"),
        ({"preset": "opera"}, "preset", "must be 'natural', 'whisper' or 'robot' (given opera)"),
        ({"strength": 1.01}, "strength", "must be between 0 and 1 (given 1.01)"),
        ({"volume_mix": -0.1}, "volume_mix", "must be between 0 and 1 (given -0.1)"),
        ({"model": "draft"}, "model", "must be 'standard' or 'studio' (given draft)"),
        ({"semitone": 1}, "semitone", "is not a known field (did you mean semitones?)"),
    ],
)
def test_vocal_conversion_refuses(params: dict[str, Any], field: str, problem: str) -> None:
    """A bad field is refused by name, with its limit."""
    with pytest.raises(RefusedRequest) as refused:
        parse(CONVERSION, params)
    assert (field, problem) == (refused.value.field, refused.value.problem)


@pytest.mark.parametrize(
    ("stems", "field", "problem"),
    [
        ([], "stems", "must have at least 1 entry"),
        (["vocals", "vocals"], "stems", "must name each stem once"),
        (["vocals"] * 5, "stems", "must have at most 4 entries"),
        (
            ["vocals", "piano"],
            "stems[1]",
            "must be 'vocals', 'drums', 'bass' or 'other' (given piano)",
        ),
        ("vocals", "stems", "must be a list, not text"),
        ({"vocals": 1}, "stems", "must be a list, not an object"),
    ],
)
def test_stem_split_refuses(stems: Any, field: str, problem: str) -> None:
    """Stems are a list of known names, each once, never empty."""
    with pytest.raises(RefusedRequest) as refused:
        parse(STEMS, {"stems": stems})
    assert (field, problem) == (refused.value.field, refused.value.problem)


def test_a_refusal_shows_only_a_short_piece_without_control_characters() -> None:
    """A long or hostile value can't flood or colour a log."""
    with pytest.raises(RefusedRequest) as refused:
        parse(GENERATION, a_song(model="\x1b[31m" + "x" * 100_000))
    assert len(refused.value.problem) < 120
    assert "\x1b" not in refused.value.problem
    with pytest.raises(RefusedRequest) as refused:
        parse(GENERATION, a_song(**{"y\n" * 100_000: 1}))
    assert len(refused.value.field) < 40
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (GENERATION, a_song(seconds=30.125, bpm=90, key="F# minor", variants=4, model="studio", format="ogg")),
        (GENERATION, {"prompt": "rock 🤘", "seconds_max": 60}),
        (CONVERSION, {"semitones": -0.0, "formant": 1, "preset": "robot", "strength": 0.5, "model": "studio"}),
        (STEMS, {"stems": ["other", "vocals"], "format": "mp3"}),
        (STEMS, {}),
    ],
)
def test_a_request_survives_the_way_through_json(kind: Any, params: dict[str, Any]) -> None:
    """What is stored as JSON is read back as the same request, whichever of the two forms was stored."""
    request = parse(kind, json.loads(json.dumps(params)))
    assert request == parse(kind, json.loads(request.model_dump_json()))
    assert "-0.0" not in request.model_dump_json()


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.binary()
FIELDS = st.sampled_from(["prompt", "seconds", "bpm", "seed", "key", "stems", "format", "semitones", "other"])


@given(st.dictionaries(FIELDS, ANYTHING))
def test_whatever_is_sent_ends_as_a_request_or_a_refusal(params: dict[str, Any]) -> None:
    """No input reaches the caller as another exception."""
    for kind in KINDS.values():
        with contextlib.suppress(RefusedRequest):
            assert isinstance(parse(kind, params), kind.request_model)


def test_generation_uses_what_was_asked_once_a_variant() -> None:
    """The most a song can use is its length, or its maximum; variants are outputs of their own."""
    assert (Usage(seconds_out=Decimal("30.5")),) == GENERATION.usage(parse(GENERATION, a_song(seconds=30.5)), {})
    at_most = parse(GENERATION, {"prompt": "x", "seconds_max": 60, "variants": 3})
    assert (Usage(seconds_out=Decimal(60)),) * 3 == GENERATION.usage(at_most, {})


def test_conversion_and_split_use_the_length_of_their_input() -> None:
    """Seconds in and out are the decoded input's, once an output; a reference isn't counted."""
    once = Usage(seconds_in=Decimal(12), seconds_out=Decimal(12))
    voices = {"voice": audio(12), "reference": audio(30)}
    assert (once,) == CONVERSION.usage(parse(CONVERSION, {"strength": 1}), voices)
    assert (once,) * 2 == STEMS.usage(parse(STEMS, {"stems": ["bass", "drums"]}), {"mix": audio(12)})


def test_a_strength_without_a_reference_is_refused() -> None:
    """A field that would do nothing is refused rather than ignored."""
    with pytest.raises(RefusedRequest, match="strength: needs the input reference"):
        CONVERSION.usage(parse(CONVERSION, {"strength": 1}), {"voice": audio()})


@pytest.mark.parametrize(
    ("kind", "inputs", "refusal"),
    [
        (STEMS, {}, "inputs.mix: is required"),
        (STEMS, {"mix": audio(), "voice": audio()}, "inputs.voice: is not an input of stem_split (known: mix)"),
        (GENERATION, {"mix": audio()}, "inputs.mix: is not an input of generation (known: none)"),
        (STEMS, {"mix": audio(0.05)}, "inputs.mix: has 0.05 seconds; between 0.1 and 600 are taken"),
        (STEMS, {"mix": audio(601, 8000)}, "inputs.mix: has 601 seconds; between 0.1 and 600 are taken"),
        (STEMS, {"mix": audio(channels=3)}, "inputs.mix: has 3 channels; between 1 and 2 are taken"),
        (
            CONVERSION,
            {"voice": audio(sample_rate=7999)},
            "inputs.voice: has 7999 samples a second; between 8000 and 192000 are taken",
        ),
        (
            CONVERSION,
            {"voice": audio(), "reference": audio(0.01)},
            "inputs.reference: has 0.01 seconds; between 0.1 and 600 are taken",
        ),
    ],
)
def test_inputs_are_refused_by_name_and_limit(kind: Any, inputs: dict[str, AudioInfo], refusal: str) -> None:
    """Missing, unknown and oversized inputs are refused before anything is paid."""
    with pytest.raises(RefusedRequest) as refused:
        check_inputs(kind, inputs)
    assert refusal == str(refused.value)


def test_inputs_within_the_limits_are_taken() -> None:
    """An optional input may be there or not; bounds are inclusive."""
    check_inputs(CONVERSION, {"voice": audio(600)})
    check_inputs(CONVERSION, {"voice": audio(0.1), "reference": audio(channels=1, sample_rate=192_000)})


class _Told(Request):
    seconds: int

    @property
    def model(self) -> str:
        return "long" if self.seconds > 60 else "short"


def test_a_kind_may_check_more_than_its_model_does() -> None:
    """However it came by its `check`."""

    def refuse(request: Request) -> None:
        raise RefusedRequest("seconds", f"{field_of(request, 'seconds')} is too many for {field_of(request, 'model')}")

    kind = SimpleNamespace(request_model=_Told, check=refuse)
    with pytest.raises(RefusedRequest, match="90 is too many for long"):
        parse(cast("Any", kind), {"seconds": 90})
    assert parse(cast("Any", SimpleNamespace(request_model=_Told)), {"seconds": 90}) == _Told(seconds=90)


def test_a_field_that_a_kind_does_not_have_is_none() -> None:
    assert field_of(_Told(seconds=1), "lyrics") is None


def test_the_registry_has_the_three_kinds_and_takes_more() -> None:
    """A further kind is named by module and object, as an instance or a class."""
    assert list(KINDS) == ["generation", "vocal_conversion", "stem_split"]
    more = registry(f"{__name__}:Echo, {__name__}:ANOTHER")
    assert list(more)[3:] == ["echo", "another"]


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("tasks.generation", "must be written module:object"),
        ("nowhere.at_all:Kind", "can't be loaded: ModuleNotFoundError"),
        ("tasks.generation:Nothing", "can't be loaded: AttributeError"),
        ("tasks.generation:Generation", "there is a kind 'generation' already"),
        ("tasks.kind:AudioInfo", "can't be loaded: TypeError"),
        ("tasks.kind:Request", "its name must be"),
    ],
)
def test_the_registry_refuses_what_is_no_kind(extra: str, problem: str) -> None:
    """A wrong entry stops the start with the entry's own words."""
    with pytest.raises(RegistryError) as refused:
        registry(extra)
    assert str(refused.value).startswith(f"{extra}: {problem}")


class Echo:
    """The smallest kind there can be."""

    name = "echo"
    request_model = STEMS.request_model
    inputs = {"sound": InputLimits()}  # noqa: RUF012 - a kind's inputs are read only

    def usage(self, request: Any, inputs: Any) -> tuple[Usage, ...]:
        return ()

    async def run(self, request: Any, inputs: Any, context: Any, limits: Any) -> None:
        return None


class _Another(Echo):
    name = "another"


ANOTHER = _Another()
