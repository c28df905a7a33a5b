"""What may be asked of each kind of job: every field bounded, unknown fields refused, never coerced.

The server checks the same models and what only it can know: keys and styles, its engines, the inputs' lengths.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator


class Request(BaseModel):
    """What a customer asks of one kind: every field bounded, unknown fields refused, never coerced."""

    # Defaults of its fields are given as `default=`: type checkers see no other, unless they know pydantic by a plugin.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


# Field types that the request models share


def _text(value: str) -> str:
    for character in value:
        code = ord(character)
        if code == 0:
            raise ValueError("must not contain NUL characters")
        if 0xD800 <= code <= 0xDFFF:
            raise ValueError("must not contain lone surrogates")
        if (code < 0x20 and character not in "\n\r\t") or 0x7F <= code < 0xA0:
            raise ValueError("must not contain control characters")
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _without_minus_zero(value: float) -> float:
    return value + 0.0


def _whole_milliseconds(value: float) -> float:
    if round(value, 3) != value:
        raise ValueError("must be given to the millisecond at most")
    return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


#: Words of a customer: no NUL, no control characters, no lone surrogates, not blank. Add the length with `Field`.
Text = Annotated[str, AfterValidator(_text)]
#: A whole or decimal number from JSON, finite. Add the bounds with `Field`.
Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_without_minus_zero)]
#: A length in seconds, to the millisecond. Add the bounds with `Field`.
Seconds = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_whole_milliseconds)]
#: Put before a tuple's type: JSON has lists only.
FromList = BeforeValidator(_tuple)

#: The formats that outputs come in.
Format = Literal["wav", "flac", "mp3", "ogg"]
#: Integrated loudness that may be asked for, in LUFS (ITU-R BS.1770).
LOUDNESS_MIN, LOUDNESS_MAX = -40, -5


class FinishedRequest(Request):
    """What every kind's request may say of its outputs."""

    format: Format = "wav"
    #: Bring each output to this integrated loudness, in LUFS; less where its peaks would pass -1 dB.
    loudness: Number | None = Field(default=None, ge=LOUDNESS_MIN, le=LOUDNESS_MAX)
    #: The title in the file's tags; without one, the output's name.
    title: Text | None = Field(default=None, max_length=200)
    #: Give "NAME-peaks" beside each output: its waveform for players, as audiowaveform's JSON. Costs nothing.
    peaks: bool = False


#: Seconds of music a request may ask for, and its tempo.
SECONDS_MIN, SECONDS_MAX = 5, 300
BPM_MIN, BPM_MAX = 30, 300
GenerationModel = Literal["draft", "standard", "studio"]


class GenerationRequest(FinishedRequest):
    """What to compose. Exactly one of `seconds` and `seconds_max` says how long."""

    kind: ClassVar[str] = "generation"

    prompt: Text = Field(min_length=1, max_length=2000)
    #: Exactly this long, to the sample.
    seconds: Seconds | None = Field(default=None, ge=SECONDS_MIN, le=SECONDS_MAX)
    #: At most this long: the piece ends with its last whole bar that fits, and that is what it uses.
    seconds_max: Seconds | None = Field(default=None, ge=SECONDS_MIN, le=SECONDS_MAX)
    bpm: int | None = Field(default=None, ge=BPM_MIN, le=BPM_MAX)
    key: str | None = Field(default=None, max_length=9)
    style: str | None = None
    #: The same request with the same seed gives the same sound. Variants take seed, seed + 1, …
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    variants: int = Field(default=1, ge=1, le=4)
    model: GenerationModel = "standard"
    #: Sung by engines that can; the embedded one refuses them.
    lyrics: Text | None = Field(default=None, max_length=5000)


#: What a voice of the registry may be called.
VOICE_PATTERN = r"^[a-z][a-z0-9-]{0,63}$"
VocalModel = Literal["standard", "studio"]


class VocalConversionRequest(FinishedRequest):
    """What becomes of the voice in the input `voice`, maybe towards that in the input `reference`."""

    kind: ClassVar[str] = "vocal_conversion"

    #: Semitones up (or down).
    semitones: Number = Field(default=0.0, ge=-24, le=24)
    #: The formants' factor: above 1 a smaller singer, below 1 a bigger one.
    formant: Number = Field(default=1.0, ge=0.6, le=1.6)
    preset: Literal["natural", "whisper", "robot"] = "natural"
    #: A voice of the registry (`fermata voices list`), instead of an input `reference` of one's own.
    target: str | None = Field(default=None, pattern=VOICE_PATTERN)
    #: How far to go towards the voice or the reference: 0 not at all, 1 all the way. Only with one; 1 if not given.
    strength: Number | None = Field(default=None, ge=0, le=1)
    #: Whose loudness: 0 follows the voice's own, 1 leaves it as the engine made it.
    volume_mix: Number = Field(default=1.0, ge=0, le=1)
    model: VocalModel = "standard"


Stem = Literal["vocals", "drums", "bass", "other"]
#: In the order they are made.
STEMS: tuple[Stem, ...] = ("vocals", "drums", "bass", "other")
SplitModel = Literal["standard", "studio"]


class StemSplitRequest(FinishedRequest):
    """Which stems to make of the input `mix`."""

    kind: ClassVar[str] = "stem_split"

    stems: Annotated[tuple[Stem, ...], FromList] = Field(default=STEMS, min_length=1, max_length=4)
    model: SplitModel = "standard"

    @field_validator("stems")
    @classmethod
    def _each_once(cls, stems: tuple[Stem, ...]) -> tuple[Stem, ...]:
        if len(set(stems)) < len(stems):
            raise ValueError("must name each stem once")
        return tuple(stem for stem in STEMS if stem in stems)
