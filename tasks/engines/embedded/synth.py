"""A score played: additive tones and shaped noise, mixed to a song of exactly the frames that the score has.

numpy only. The same score, seed and tier give the same samples; 0.003–0.02 CPU seconds a second of music.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from tasks.engines.embedded.composer import (
    HAT,
    KICK,
    PARTS,
    SNARE,
    STYLES,
    TOM_HIGH,
    Brief,
    Note,
    Part,
    Song,
    compose,
)
from tasks.engines.report import Report
from tasks.engines.writing import OutputFile, Sound
from tasks.finish import Finish

#: One channel, float32.
Wave = NDArray[np.float32]

#: The loudest sample of a song: -1 dB of full scale.
PEAK = 0.89
#: Notes rendered between two progress reports.
NOTES_PER_REPORT = 64
#: Seconds over which a song that is cut fades out, and over which one that ends with its bar does.
CUT_FADE_SECONDS, END_FADE_SECONDS = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Tier:
    """How a song is played: what a `model` of the request stands for."""

    sample_rate: int
    channels: int
    bits: int
    #: Oscillators a note, as factors of its frequency.
    detuned: tuple[float, ...]
    #: Echoes of the room: (seconds, gain), each crossing to the other side.
    room: tuple[tuple[float, float], ...]


TIERS: Mapping[str, Tier] = {
    "draft": Tier(22_050, 1, 16, (1.0,), ()),
    "standard": Tier(44_100, 2, 16, (1.0,), ((0.031, 0.18), (0.047, 0.14))),
    "studio": Tier(48_000, 2, 24, (0.997, 1.0, 1.003), ((0.023, 0.2), (0.037, 0.17), (0.061, 0.13), (0.097, 0.09))),
}


def make_songs(report: Report, brief: Brief, seed: int, variants: int, model: str, finish: Finish) -> None:
    """Compose, play and write each variant: "song", "song-2", … with seeds `seed`, `seed` + 1, …"""
    tier = TIERS[model]
    for variant in range(variants):
        name = "song" if variant == 0 else f"song-{variant + 1}"
        song = compose(brief, seed + variant)
        tell = partial(_tell, report, variant, variants)
        sound = play(song, tier, tell)
        with OutputFile(report, name, finish, tier.sample_rate, tier.channels, tier.bits) as file:
            file.write(sound)
            file.hand_over()


def _tell(report: Report, variant: int, variants: int, fraction: float, stage: str) -> None:
    report.progress((variant + 0.95 * fraction) / variants, f"song {variant + 1} of {variants}: {stage}")


def play(song: Song, tier: Tier, tell: Callable[[float, str], None]) -> Sound:
    """The song as sound: `song.frames(tier.sample_rate)` frames, its peak at `PEAK`.

    `tell(fraction, stage)` is called along the way.
    """
    mix = mixed(song, tier, PARTS, tell)
    loudest = float(np.abs(mix).max(initial=0.0))
    if loudest > 0:
        mix *= PEAK / loudest
    return mix


def mixed(song: Song, tier: Tier, parts: Sequence[Part], tell: Callable[[float, str], None]) -> Sound:
    """Some parts of a song before its loudness is set: sounds of single parts add up to that of all."""
    mix = np.zeros((song.frames(tier.sample_rate), tier.channels), np.float32)
    band = _Band(song, tier)
    for number, part in enumerate(parts):
        track = np.zeros(len(mix), np.float32)
        notes = song.parts[part]
        for n, note in enumerate(notes):
            if n % NOTES_PER_REPORT == 0:
                tell((number + n / len(notes)) / len(parts), part)
            _add(track, band.start_of(note), band.wave_of(part, note), note.velocity)
        for channel, gain in enumerate(_gains(part, tier.channels)):
            mix[:, channel] += track * gain
    _add_room(mix, tier)
    _fade_out(mix, song, tier.sample_rate)
    return mix


def _add(track: Wave, start: int, wave: Wave, gain: float) -> None:
    """Add a note to a track; what hangs over the track's end is cut."""
    fitting = wave[: max(0, len(track) - start)]
    track[start : start + len(fitting)] += fitting * np.float32(gain)


def _gains(part: Part, channels: int) -> tuple[float, ...]:
    """A part's gain in each channel, by equal-power panning."""
    gain, side = _PLACES[part]
    return (gain,) if channels == 1 else (gain * math.cos(side * math.pi / 2), gain * math.sin(side * math.pi / 2))


def _add_room(mix: Sound, tier: Tier) -> None:
    """Add early echoes of the dry sound, each from the other side."""
    dry = mix.copy()
    for seconds, gain in tier.room:
        delay = round(seconds * tier.sample_rate)
        mix[delay:] += np.float32(gain) * dry[: len(dry) - delay, ::-1]


def _fade_out(mix: Sound, song: Song, sample_rate: int) -> None:
    seconds = END_FADE_SECONDS if song.seconds is None else CUT_FADE_SECONDS
    frames = min(len(mix), round(seconds * sample_rate))
    mix[len(mix) - frames :] *= np.linspace(1, 0, frames, dtype=np.float32)[:, None]


class _Band:
    """The instruments of one song. Equal notes are rendered once."""

    def __init__(self, song: Song, tier: Tier) -> None:
        self._frames_per_beat = tier.sample_rate * 60 / song.bpm
        self._sounds = STYLES[song.style].sounds
        self._tier = tier
        self._tone = lru_cache(maxsize=WAVES_KEPT)(partial(_tone, tier))
        self._drum = lru_cache(maxsize=WAVES_KEPT)(partial(_drum, tier.sample_rate))

    def start_of(self, note: Note) -> int:
        return round(note.start_beats * self._frames_per_beat)

    def wave_of(self, part: Part, note: Note) -> Wave:
        if part == "drums":
            return self._drum(note.pitch)
        return self._tone(self._sounds[part], note.pitch, round(note.length_beats * self._frames_per_beat))


@dataclass(frozen=True, slots=True)
class _Timbre:
    """An instrument: its harmonics (amplitude, decay a second), its attack, and how deep its vibrato is."""

    harmonics: tuple[tuple[float, float], ...]
    attack_seconds: float = 0.004
    vibrato: float = 0.0


def _tone(tier: Tier, sound: str, pitch: int, frames: int) -> Wave:
    """One note of `frames`, and the 60 ms after it in which it fades."""
    timbre, rate = _TIMBRES[sound], tier.sample_rate
    release = round(0.06 * rate)
    seconds = np.arange(frames + release) / rate
    wave = np.zeros(frames + release)
    for factor in tier.detuned:
        frequency = 440 * 2 ** ((pitch - 69) / 12) * factor
        phase = 2 * math.pi * frequency * (seconds + timbre.vibrato * np.sin(2 * math.pi * 5.2 * seconds) / frequency)
        for number, (amplitude, decay) in enumerate(timbre.harmonics, 1):
            if number * frequency < 0.45 * rate:
                wave += amplitude * np.exp(-decay * seconds) * np.sin(number * phase)
    envelope = np.minimum(1, seconds / timbre.attack_seconds)
    envelope[frames:] *= np.linspace(1, 0, release)
    return np.asarray(wave * envelope / len(tier.detuned), np.float32)


def _drum(rate: int, drum: int) -> Wave:
    """One stroke. Its noise is always the same, so a song's bytes are too."""
    seconds = np.arange(round(0.35 * rate)) / rate
    noise = np.random.default_rng(drum).standard_normal(len(seconds))
    if drum == KICK:
        sweep = 2 * math.pi * (48 * seconds + 3.2 * (1 - np.exp(-28 * seconds)))
        wave = np.sin(sweep) * np.exp(-11 * seconds) + 0.1 * noise * np.exp(-300 * seconds)
    elif drum == SNARE:
        tone = np.sin(2 * math.pi * 185 * seconds) * np.exp(-26 * seconds)
        wave = 0.5 * tone + 0.45 * np.diff(noise, prepend=0.0) * np.exp(-19 * seconds)
    elif drum == HAT:
        wave = 0.16 * np.diff(noise, 2, prepend=(0.0, 0.0)) * np.exp(-65 * seconds)
    else:
        low = 145 if drum == TOM_HIGH else 100
        wave = 0.8 * np.sin(2 * math.pi * low * (seconds + 0.015 * (1 - np.exp(-20 * seconds)))) * np.exp(-13 * seconds)
    wave[-64:] *= np.linspace(1, 0, 64)
    return np.asarray(wave, np.float32)


#: Rendered notes kept of one song; a long pad is 1.5 MB.
WAVES_KEPT = 128

#: Each part's gain and side (0 left, 1 right).
_PLACES: Mapping[Part, tuple[float, float]] = {
    "drums": (0.9, 0.5),
    "bass": (0.75, 0.5),
    "chords": (0.28, 0.38),
    "lead": (0.3, 0.62),
}

_TIMBRES: Mapping[str, _Timbre] = {
    "keys": _Timbre(((1, 1.8), (0.45, 3.5), (0.2, 6), (0.12, 9), (0.05, 14))),
    "pad": _Timbre(((1, 0.1), (0.4, 0.1), (0.2, 0.2), (0.1, 0.3), (0.06, 0.4)), attack_seconds=0.2),
    "pluck": _Timbre(((1, 3.5), (0.6, 5), (0.4, 8), (0.25, 11), (0.15, 15), (0.1, 20))),
    "reed": _Timbre(
        ((1, 0.3), (0.25, 0.3), (0.5, 0.4), (0.15, 0.5), (0.3, 0.6), (0.08, 0.8), (0.15, 1)), 0.02, vibrato=0.003
    ),
    "round": _Timbre(((1, 1.2), (0.35, 2), (0.12, 4))),
    "bright": _Timbre(((1, 1.2), (0.5, 1.5), (0.33, 2), (0.25, 3), (0.2, 4), (0.15, 6), (0.1, 8)), 0.003),
}
