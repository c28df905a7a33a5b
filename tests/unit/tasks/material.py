"""Sounds made in code, so that what is in them is known: a singer by source and filter, a band by our own scores."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tasks.engines.embedded.composer import PARTS, Brief, compose
from tasks.engines.embedded.synth import TIERS, mixed

Samples = NDArray[np.floating]

#: Formants (Hz) of five vowels of a grown-up voice.
VOWELS = {
    "a": (730, 1090, 2440, 3400),
    "e": (530, 1840, 2480, 3500),
    "i": (270, 2290, 3010, 3700),
    "o": (570, 840, 2410, 3300),
    "u": (300, 870, 2240, 3300),
}
BANDWIDTHS = (80, 100, 140, 200)


def pitch_curve(notes: list[float], note_seconds: float, rate: int, vibrato_cents: float = 25) -> Samples:
    """A melody's pitch in Hz, sample by sample: gliding from note to note, with a vibrato of 5.5 Hz."""
    length = round(note_seconds * rate)
    steps = np.repeat(np.log2(np.asarray(notes)), length)
    glide = np.hanning(round(0.06 * rate))
    smooth = np.convolve(np.pad(steps, len(glide), mode="edge"), glide / glide.sum(), "same")[len(glide) : -len(glide)]
    seconds = np.arange(len(smooth)) / rate
    return np.asarray(2 ** (smooth + vibrato_cents / 1200 * np.sin(2 * np.pi * 5.5 * seconds)))


def sung(
    pitch: Samples, rate: int, vowels: str = "aeiou", vowel_seconds: float = 0.6, consonants: bool = True
) -> Samples:
    """A voice that sings a pitch curve: glottal pulses through a vowel's resonances, and a hiss between vowels."""
    phase = np.cumsum(pitch / rate)
    source = np.zeros(len(pitch))
    for harmonic in range(1, 60):
        audible = harmonic * pitch < min(0.45 * rate, 8000)
        source += audible * np.cos(2 * np.pi * harmonic * phase) / harmonic**1.1
    voice = np.zeros(len(pitch))
    width = round(vowel_seconds * rate)
    edge = np.hanning(2 * round(0.04 * rate))
    chance = np.random.default_rng(3)
    for number, start in enumerate(range(0, len(pitch), width)):
        piece = source[start : start + width]
        filtered = resonated(piece, rate, VOWELS[vowels[number % len(vowels)]])
        fade = min(len(edge) // 2, len(piece) // 2)
        filtered[:fade] *= edge[: len(edge) // 2][:fade]
        filtered[len(filtered) - fade :] *= edge[len(edge) // 2 :][-fade:]
        voice[start : start + len(piece)] += filtered
        if consonants:
            hiss = np.diff(chance.standard_normal(round(0.07 * rate) + 1)) * np.hanning(round(0.07 * rate))
            fitting = min(len(hiss), len(voice) - start)
            voice[start : start + fitting] += 0.02 * np.abs(filtered).max(initial=0) * hiss[:fitting]
    return np.asarray(voice / np.abs(voice).max())


def resonated(source: Samples, rate: int, formants: tuple[int, ...]) -> Samples:
    """A source through resonances, by their response in the spectrum."""
    frequencies = np.fft.rfftfreq(len(source), 1 / rate)
    response = np.ones(len(frequencies), complex)
    for formant, bandwidth in zip(formants, BANDWIDTHS, strict=True):
        response *= formant**2 / (formant**2 - frequencies**2 + 1j * bandwidth * frequencies)
    return np.asarray(np.fft.irfft(np.fft.rfft(source) * response, len(source)))


@cache
def stems_of_a_band(seconds: int = 24) -> dict[str, Samples]:
    """True stems at 44.1 kHz stereo, to be added up to a mix: our own band, and the singer in its key."""
    song = compose(Brief("pop 100 bpm", seconds=Decimal(seconds), key="A minor"), 2)
    played = {part: mixed(song, TIERS["standard"], (part,), lambda *_: None) for part in PARTS}
    notes = [220, 246.9, 261.6, 329.6, 293.7, 261.6, 246.9, 220, 196, 220, 261.6, 220]
    curve = pitch_curve(notes * (seconds // 7 + 1), 0.6, 44_100)[: len(played["drums"])]
    voice = sung(curve, 44_100) * _phrases(len(curve), 44_100)
    band = {"drums": played["drums"], "bass": played["bass"], "other": played["chords"] + played["lead"]}
    loudness = np.sqrt((total(band) ** 2).mean())
    stereo = np.repeat(voice[:, None], 2, axis=1)
    stereo = stereo * loudness / np.sqrt((stereo**2).mean()) * 10 ** (-1 / 20)
    stems = {"vocals": stereo, **band}
    peak = np.abs(total(stems)).max()
    return {name: np.asarray(stem * 0.8 / peak, np.float32) for name, stem in stems.items()}


def total(stems: Mapping[str, Samples]) -> Samples:
    """The mix of some stems."""
    return np.asarray(np.sum(list(stems.values()), axis=0))


def _phrases(length: int, rate: int) -> Samples:
    """Sing for 4.8 seconds, breathe for 1.2."""
    seconds = np.arange(length) / rate % 6
    return np.clip(np.minimum(seconds, 4.8 - seconds) / 0.05, 0, 1)
