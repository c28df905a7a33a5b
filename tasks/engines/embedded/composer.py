"""Words in, a score out: tempo, key, style and moods are read from the prompt, the rest is drawn from the seed.

Pure standard library and cheap, so the border can ask how long a bar will be before anything is paid.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

#: Every piece is in four.
BEATS_PER_BAR = 4
#: What a tempo may be, in beats a minute.
BPM_MIN, BPM_MAX = 30, 300

Mode = Literal["major", "minor"]
Part = Literal["drums", "bass", "chords", "lead"]
#: In the order they are rendered.
PARTS: tuple[Part, ...] = ("drums", "bass", "chords", "lead")

#: General MIDI's numbers of the drums.
KICK, SNARE, HAT, TOM_HIGH, TOM_LOW = 36, 38, 42, 48, 43


@dataclass(frozen=True, slots=True)
class Key:
    """A tonic (0 = C … 11 = B) and its mode."""

    tonic: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Style:
    """What makes a style: its usual tempo and mode, its progressions (scale degrees), its drums (16th steps)."""

    bpm: int
    mode: Mode
    words: tuple[str, ...]
    progressions: tuple[tuple[int, ...], ...]
    drums: Mapping[int, tuple[int, ...]]
    bass_beats: tuple[float, ...]
    chord_beats: tuple[float, ...]
    sounds: Mapping[Part, str]


@dataclass(frozen=True, slots=True)
class Note:
    """One note: start and length in beats, MIDI pitch, velocity from 0 to 1."""

    start_beats: float
    length_beats: float
    pitch: int
    velocity: float


@dataclass(frozen=True, slots=True)
class Brief:
    """What is to be composed. Exactly one of the two lengths is given."""

    prompt: str
    seconds: Decimal | None = None
    seconds_max: Decimal | None = None
    bpm: int | None = None
    key: str | None = None
    style: str | None = None


@dataclass(frozen=True, slots=True)
class Song:
    """A score. `whole_bars` says that it ends with its last bar, else it is cut after `seconds`."""

    bpm: int
    key: Key
    style: str
    bars: int
    seconds: Decimal | None
    parts: Mapping[Part, tuple[Note, ...]]

    def frames(self, sample_rate: int) -> int:
        """Its length in samples, rounded down: never longer than what was asked."""
        if self.seconds is not None:
            return int(self.seconds * sample_rate)
        return self.bars * BEATS_PER_BAR * 60 * sample_rate // self.bpm


def compose(brief: Brief, seed: int) -> Song:
    """The score for a brief. The same brief and seed give the same score; the length changes only its end."""
    style_name = style_for(brief.prompt, brief.style)
    style = STYLES[style_name]
    chance = _chance(brief, style_name, seed, "material")
    key = _key_for(brief, style, chance)
    bpm = tempo_for(brief.prompt, brief.bpm, brief.style)
    bars = bars_of(brief, bpm)
    material = _Material.drawn(style, chance)
    parts = {
        part: _Score(style, key, bars, material, _chance(brief, style_name, seed, part)).notes(part) for part in PARTS
    }
    return Song(bpm, key, style_name, bars, brief.seconds, parts)


def tempo_for(prompt: str, bpm: int | None = None, style: str | None = None) -> int:
    """The tempo: what was asked, else `NNN bpm` in the prompt, else the style's, moved by words like "slow"."""
    if bpm is not None:
        return bpm
    written = re.search(r"(?<![\d.])(\d{2,3})\s*bpm\b", prompt, re.IGNORECASE | re.ASCII)
    if written and BPM_MIN <= int(written[1]) <= BPM_MAX:
        return int(written[1])
    words = _words(prompt)
    usual = STYLES[style_for(prompt, style)].bpm
    if words & {"slow", "slowly", "calm", "sleepy"}:
        return round(usual * 0.85)
    return round(usual * 1.15) if words & {"fast", "quick", "energetic"} else usual


def style_for(prompt: str, style: str | None = None) -> str:
    """The style: what was asked, else the first whose words the prompt holds, else lofi."""
    words = _words(prompt)
    return style or next((name for name, one in STYLES.items() if words & {name, *one.words}), "lofi")


def bars_within(seconds: Decimal, bpm: int) -> int:
    """How many whole bars fit."""
    return int(seconds * bpm / (BEATS_PER_BAR * 60))


def bars_of(brief: Brief, bpm: int) -> int:
    """How many bars to write: as many as fit, and for an exact length the one that is cut too."""
    if brief.seconds is None:
        assert brief.seconds_max is not None
        return bars_within(brief.seconds_max, bpm)
    whole = bars_within(brief.seconds, bpm)
    return whole if whole * BEATS_PER_BAR * 60 == brief.seconds * bpm else whole + 1


def key_of(text: str) -> Key:
    """The key that "F# minor" names. Raises `ValueError` for anything else."""
    named = re.fullmatch(r"([A-G])([#b]?) (major|minor)", text)
    if not named:
        raise ValueError("no key")
    letter, sign, mode = named.groups()
    tonic = (_LETTERS[letter] + {"": 0, "#": 1, "b": -1}[sign]) % 12
    return Key(tonic, "major" if mode == "major" else "minor")


def key_in(prompt: str) -> Key | None:
    """The key that a prompt names ("in A minor", "Bb major"); a small letter is an article, not a note."""
    found = re.search(r"(?<!\w)([A-G][#b]?)[ -]([mM]ajor|[mM]inor)\b", prompt)
    return key_of(f"{found[1]} {found[2].lower()}") if found else None


def _key_for(brief: Brief, style: Style, chance: random.Random) -> Key:
    tonic = chance.randrange(12)  # always drawn, so that naming a key leaves the rest of the piece as it was
    if brief.key is not None:
        return key_of(brief.key)
    return key_in(brief.prompt) or Key(tonic, _mood(brief.prompt) or style.mode)


def _mood(prompt: str) -> Mode | None:
    words = _words(prompt)
    if words & {"sad", "dark", "melancholic", "moody", "tense", "gloomy"}:
        return "minor"
    return "major" if words & {"happy", "bright", "cheerful", "sunny", "uplifting", "joyful"} else None


def _words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z]+", prompt.lower().replace("lo-fi", "lofi").replace("hip-hop", "hiphop")))


def _chance(brief: Brief, style: str, seed: int, purpose: str) -> random.Random:
    digest = hashlib.sha256(f"{brief.prompt}|{style}|{seed}|{purpose}".encode()).digest()
    return random.Random(digest)  # noqa: S311 - music, not secrets


@dataclass(frozen=True, slots=True)
class _Material:
    """What is drawn once a piece and then repeated: people hear repetition as form."""

    progression: tuple[int, ...]
    motif: tuple[int, ...]
    rhythm: tuple[float, ...]

    @staticmethod
    def drawn(style: Style, chance: random.Random) -> _Material:
        return _Material(
            progression=chance.choice(style.progressions),
            motif=tuple(chance.choice((0, 2, 4, 4, 7, 2)) for _ in range(8)),
            rhythm=chance.choice(((0, 1, 1.5, 3), (0, 0.5, 1.5, 2.5), (0.5, 1, 2, 3.5), (0, 1.5, 2, 3))),
        )


@dataclass(frozen=True, slots=True)
class _Score:
    """Writes the notes of each part, bar by bar."""

    style: Style
    key: Key
    bars: int
    material: _Material
    chance: random.Random

    def notes(self, part: Part) -> tuple[Note, ...]:
        write = {"drums": self._drums, "bass": self._bass, "chords": self._chords, "lead": self._lead}[part]
        return tuple(note for bar in range(self.bars) for note in write(bar))

    def _section(self, bar: int) -> int:
        """0 intro, 1 and 2 the body, 3 the end. A short piece has no intro."""
        return 1 + bar * 2 // self.bars if self.bars < 8 else min(3, bar * 8 // self.bars * 4 // 7)

    def _degree(self, bar: int) -> int:
        """The scale degree of a bar's chord; the last bar comes home."""
        return 1 if bar == self.bars - 1 else self.material.progression[bar % len(self.material.progression)]

    def _pitch(self, degree: int, octave: int) -> int:
        return 12 * octave + self.key.tonic + _SCALES[self.key.mode][(degree - 1) % 7] + 12 * ((degree - 1) // 7)

    def _velocity(self, usual: float) -> float:
        return usual * self.chance.uniform(0.9, 1.0)

    def _drums(self, bar: int) -> Iterator[Note]:
        start = bar * BEATS_PER_BAR
        if bar % 4 == 3 and SNARE in self.style.drums:
            for step, tom in ((12, TOM_HIGH), (13, TOM_HIGH), (14, TOM_LOW), (15, TOM_LOW)):
                yield Note(start + step / 4, 0.25, tom, self._velocity(0.7))
        for drum, steps in self.style.drums.items():
            for step in steps:
                accent = 1.0 if step % 4 == 0 else 0.8
                yield Note(start + step / 4, 0.25, drum, self._velocity(accent))

    def _bass(self, bar: int) -> Iterator[Note]:
        degree, beats = self._degree(bar), self.style.bass_beats
        for n, (beat, after) in enumerate(zip(beats, (*beats[1:], float(BEATS_PER_BAR)), strict=True)):
            pitch = self._pitch(degree + 4, 2) if n % 4 == 2 else self._pitch(degree, 3)
            yield Note(bar * BEATS_PER_BAR + beat, (after - beat) * 0.95, pitch, self._velocity(0.9))

    def _chords(self, bar: int) -> Iterator[Note]:
        degree, beats = self._degree(bar), self.style.chord_beats
        for beat, after in zip(beats, (*beats[1:], float(BEATS_PER_BAR)), strict=True):
            velocity = self._velocity(0.7)
            for third in (0, 2, 4):
                pitch = self._pitch((degree + third - 1) % 7 + 1, 5)
                yield Note(bar * BEATS_PER_BAR + beat, (after - beat) * 0.98, pitch, velocity)

    def _lead(self, bar: int) -> Iterator[Note]:
        if self._section(bar) == 0:
            return
        if bar == self.bars - 1:
            yield Note(bar * BEATS_PER_BAR, BEATS_PER_BAR, self._pitch(8, 5), self._velocity(0.8))
            return
        rhythm = self.material.rhythm
        for n, (beat, after) in enumerate(zip(rhythm, (*rhythm[1:], float(BEATS_PER_BAR)), strict=True)):
            step = self.material.motif[(n + 4 * (bar % 2)) % 8]
            pitch = self._pitch(self._degree(bar) + step, 6)
            yield Note(bar * BEATS_PER_BAR + beat, (after - beat) * 0.9, pitch, self._velocity(0.8))


_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SCALES: Mapping[Mode, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_FOUR_TO_THE_FLOOR = {KICK: (0, 4, 8, 12), SNARE: (4, 12), HAT: (2, 6, 10, 14)}
_BACKBEAT = {KICK: (0, 8, 10), SNARE: (4, 12), HAT: (0, 2, 4, 6, 8, 10, 12, 14)}
_LAZY = {KICK: (0, 7, 10), SNARE: (4, 12), HAT: (0, 2, 4, 6, 8, 10, 12, 14)}
_SPARSE = {KICK: (0,), HAT: (8,)}

#: The styles that can be asked for by name; the prompt's words find them too, the first match wins.
STYLES: Mapping[str, Style] = {
    "lofi": Style(
        bpm=78,
        mode="minor",
        words=("chill", "chillhop", "study", "relaxed", "mellow"),
        progressions=((1, 6, 4, 5), (1, 4, 6, 5), (1, 3, 4, 1)),
        drums=_LAZY,
        bass_beats=(0, 1.5, 2, 3),
        chord_beats=(0, 2),
        sounds={"drums": "kit", "bass": "round", "chords": "keys", "lead": "pluck"},
    ),
    "house": Style(
        bpm=124,
        mode="minor",
        words=("dance", "club", "techno", "edm", "disco", "electronic"),
        progressions=((1, 6, 4, 5), (1, 1, 6, 7)),
        drums=_FOUR_TO_THE_FLOOR,
        bass_beats=(0.5, 1.5, 2.5, 3.5),
        chord_beats=(0, 1.5, 3),
        sounds={"drums": "kit", "bass": "bright", "chords": "keys", "lead": "reed"},
    ),
    "rock": Style(
        bpm=128,
        mode="major",
        words=("punk", "metal", "grunge", "guitar", "indie"),
        progressions=((1, 5, 6, 4), (1, 4, 1, 5)),
        drums=_BACKBEAT,
        bass_beats=(0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5),
        chord_beats=(0, 1, 2, 3),
        sounds={"drums": "kit", "bass": "bright", "chords": "reed", "lead": "reed"},
    ),
    "hiphop": Style(
        bpm=90,
        mode="minor",
        words=("rap", "trap", "boombap", "beat", "beats"),
        progressions=((1, 1, 6, 7), (1, 4, 1, 5)),
        drums=_LAZY,
        bass_beats=(0, 1.75, 2.5),
        chord_beats=(0,),
        sounds={"drums": "kit", "bass": "round", "chords": "keys", "lead": "pluck"},
    ),
    "pop": Style(
        bpm=112,
        mode="major",
        words=("catchy", "radio", "summer", "song"),
        progressions=((1, 5, 6, 4), (6, 4, 1, 5)),
        drums=_BACKBEAT,
        bass_beats=(0, 1.5, 2, 3),
        chord_beats=(0, 2),
        sounds={"drums": "kit", "bass": "round", "chords": "pad", "lead": "pluck"},
    ),
    "folk": Style(
        bpm=100,
        mode="major",
        words=("acoustic", "country", "campfire", "waltz"),
        progressions=((1, 4, 1, 5), (1, 6, 4, 5)),
        drums=_SPARSE,
        bass_beats=(0, 2),
        chord_beats=(0, 1, 2, 3),
        sounds={"drums": "kit", "bass": "round", "chords": "pluck", "lead": "reed"},
    ),
    "cinematic": Style(
        bpm=84,
        mode="minor",
        words=("epic", "film", "trailer", "orchestral", "dramatic", "score"),
        progressions=((1, 6, 4, 5), (1, 1, 6, 7)),
        drums=_SPARSE,
        bass_beats=(0, 2),
        chord_beats=(0,),
        sounds={"drums": "kit", "bass": "round", "chords": "pad", "lead": "reed"},
    ),
    "ambient": Style(
        bpm=66,
        mode="major",
        words=("drone", "meditation", "sleep", "space", "spacey", "atmospheric"),
        progressions=((1, 4, 1, 5), (1, 6, 4, 1)),
        drums={},
        bass_beats=(0,),
        chord_beats=(0,),
        sounds={"drums": "kit", "bass": "round", "chords": "pad", "lead": "pluck"},
    ),
}
