"""A voice changed by the WORLD vocoder: taken into pitch, spectral envelope and breath, changed, and sung again.

Morise, Yokomori, Ozawa, "WORLD", IEICE 2016; `pyworld` is its binding. WORLD is made for one voice, so the sound is
worked on in mono. It moves statistics of a voice towards a reference's; it is not a neural clone of a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyworld
from numpy.typing import NDArray

from tasks.engines.embedded.material import sound_at
from tasks.engines.embedded.stretches import joined, quiet_stretches
from tasks.engines.report import Report
from tasks.engines.writing import OutputFile, Sound, output_rate_for
from tasks.finish import Finish
from tasks.kind import AudioInfo, InvalidInput

Samples = NDArray[np.float64]

#: WORLD's measure of breath looks at 4 to 7.9 kHz, so it needs 16 kHz; slower inputs are answered at that.
RATE_MIN = 16_000
#: Pitches that are looked for, in Hz: a bass's lowest to a soprano's highest note.
PITCH_MIN, PITCH_MAX = 71.0, 1000.0
#: Seconds of a stretch: cut where it is quietest between these, and faded over into the next one.
SHORTEST_SECONDS, LONGEST_SECONDS, FADE_SECONDS = 6, 12, 0.01
#: Seconds that are listened to, to know a voice.
PROFILE_SECONDS = 30
#: Coefficients kept of the difference of two voices' colours: smooth enough to leave single harmonics alone.
COLOUR_COEFFICIENTS = 40
#: The most a colour is moved: nats of power, 17 dB.
COLOUR_MAX = 4.0
#: Above this sample, what is too loud is bent instead of cut; no sample comes over 0.99.
KNEE = 0.9


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the voice: a request's fields."""

    semitones: float
    formant: float
    preset: str
    strength: float
    volume_mix: float
    model: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A voice by its statistics: mean and spread of its log pitch, and its mean log envelope where it is voiced."""

    pitch_mean: float
    pitch_spread: float
    colour: Samples


def convert(
    report: Report, path: Path, info: AudioInfo, reference: Path | None, change: Mapping[str, Any], finish: Finish
) -> None:
    """Write the changed voice as "voice": as long as the input, with as many channels. `change` is a `Change`."""
    rate = max(RATE_MIN, output_rate_for(info.sample_rate))
    knows_voice = reference is not None or change["preset"] == "robot"
    own = _profile(path, rate, "voice") if knows_voice else None
    converter = Converter(rate, Change(**change), own, _reference(reference, rate))
    done, all_frames = 0, max(1, info.frames * rate // info.sample_rate)
    with OutputFile(report, "voice", finish, rate, info.channels) as file:
        for piece in converted(_mono(path, rate, "voice"), rate, converter):
            file.write(np.broadcast_to(piece, (len(piece), info.channels)))
            done += len(piece)
            report.progress(min(1.0, done / all_frames), "converting")
        file.hand_over(info.seconds)


def converted(blocks: Iterator[Sound], rate: int, converter: Converter) -> Iterator[Sound]:
    """A mono sound changed, in consecutive pieces that are as long as it together."""
    fade = round(FADE_SECONDS * rate)
    stretches = quiet_stretches(blocks, SHORTEST_SECONDS * rate, LONGEST_SECONDS * rate, fade)
    for results in joined(stretches, fade, lambda stretch: {"voice": converter.changed(stretch)}):
        yield limited(results["voice"])


@dataclass(frozen=True, slots=True)
class Converter:
    """Changes stretches of one voice. Its `own` profile is needed for a target, and for the robot's one pitch."""

    rate: int
    change: Change
    own: Profile | None = None
    target: Profile | None = None

    def changed(self, stretch: Sound) -> Sound:
        """One stretch, (samples, 1), changed."""
        samples = np.asarray(stretch[:, 0], np.float64)
        pitch, envelope, breath = analysed(samples, self.rate, self.change.model)
        power = envelope.sum(axis=1, keepdims=True)
        envelope = self._recoloured(envelope)
        if self.change.formant != 1:
            envelope = np.exp(_stretched(np.log(envelope), self.change.formant))
            breath = _stretched(breath, self.change.formant)
        envelope *= power / envelope.sum(axis=1, keepdims=True)  # another colour is not another loudness
        if self.change.preset == "whisper":
            pitch, breath = np.zeros_like(pitch), np.ones_like(breath)
        sung = pyworld.synthesize(self._repitched(pitch), envelope, breath, self.rate)[: len(samples)]
        sung = np.pad(sung, (0, len(samples) - len(sung)))
        return np.asarray(self._as_loud_as(samples, sung), np.float32)[:, None]

    def _repitched(self, pitch: Samples) -> Samples:
        """The pitch towards the target's mean and spread, then moved by semitones. 0 stays unvoiced."""
        log_pitch = np.log(np.maximum(pitch, 1.0))
        if self.own is not None and self.change.preset == "robot":
            log_pitch = np.full_like(log_pitch, self.own.pitch_mean)
        if self.own is not None and self.target is not None:
            strength = self.change.strength
            spread = 1 + strength * (self.target.pitch_spread / self.own.pitch_spread - 1)
            moved = strength * (self.target.pitch_mean - self.own.pitch_mean)
            log_pitch = (log_pitch - self.own.pitch_mean) * spread + self.own.pitch_mean + moved
        highest = self.rate / 4
        return np.where(pitch > 0, np.minimum(np.exp(log_pitch) * 2 ** (self.change.semitones / 12), highest), 0.0)

    def _recoloured(self, envelope: Samples) -> Samples:
        """The envelope with the smooth difference of the two voices' colours put on it."""
        if self.own is None or self.target is None:
            return envelope
        difference = self.change.strength * (self.target.colour - self.own.colour)
        cepstrum = np.fft.irfft(difference - difference.mean())
        cepstrum[COLOUR_COEFFICIENTS:-COLOUR_COEFFICIENTS] = 0
        smooth = np.clip(np.fft.rfft(cepstrum).real, -COLOUR_MAX, COLOUR_MAX)
        return np.asarray(envelope * np.exp(smooth))

    def _as_loud_as(self, samples: Samples, sung: Samples) -> Samples:
        """The voice's own loudness, 50 ms by 50 ms, as far as `volume_mix` asks for it; at most 12 dB either way."""
        if self.change.volume_mix == 1:
            return sung
        width = round(0.05 * self.rate)
        gain = (_loudness(samples, width) / _loudness(sung, width)) ** (1 - self.change.volume_mix)
        places = (np.arange(len(gain)) + 0.5) * width
        return np.asarray(sung * np.interp(np.arange(len(sung)), places, np.clip(gain, 0.25, 4)))


def analysed(samples: Samples, rate: int, model: str) -> tuple[Samples, Samples, Samples]:
    """Pitch (Hz, 0 where unvoiced), envelope (power) and breath (0 to 1), each 5 ms."""
    if model == "studio":
        pitch, times = pyworld.harvest(samples, rate, f0_floor=PITCH_MIN, f0_ceil=PITCH_MAX)
    else:
        rough, times = pyworld.dio(samples, rate, f0_floor=PITCH_MIN, f0_ceil=PITCH_MAX)
        pitch = pyworld.stonemask(samples, rough, times, rate)
    envelope = pyworld.cheaptrick(samples, pitch, times, rate)
    return pitch, envelope + 1e-16, pyworld.d4c(samples, pitch, times, rate)


def profile_of(samples: NDArray[np.floating], rate: int) -> Profile | None:
    """A voice's statistics, or None where nothing is voiced."""
    pitch, envelope, _ = analysed(np.asarray(samples, np.float64), rate, "standard")
    voiced = pitch > 0
    if not voiced.any():
        return None
    log_pitch = np.log(pitch[voiced])
    return Profile(
        pitch_mean=float(log_pitch.mean()),
        pitch_spread=max(float(log_pitch.std()), 0.01),
        colour=np.log(envelope[voiced]).mean(axis=0),
    )


def statistics(report: Report, path: Path) -> dict[str, str]:
    """What a clip says of its voice, for people: pitch and its spread, and how much of what was heard is voiced."""
    rate = 24_000
    pitch = analysed(np.asarray(_heard(path, rate, "clip"), np.float64), rate, "standard")[0]
    voiced = pitch[pitch > 0]
    if not len(voiced):
        raise InvalidInput(f"there is no voice in its first {PROFILE_SECONDS} seconds")
    return {
        "pitch_hz": f"{np.exp(np.log(voiced).mean()):.1f}",
        "spread_semitones": f"{np.log2(voiced).std() * 12:.1f}",
        "voiced_percent": f"{100 * len(voiced) / len(pitch):.0f}",
    }


def limited(sound: Sound) -> Sound:
    """Never over 0.99: what is over the knee is bent."""
    over = np.abs(sound) - KNEE
    bent = np.sign(sound) * (KNEE + (0.99 - KNEE) * np.tanh(over / (0.99 - KNEE)))
    return np.where(over > 0, bent, sound)


def _stretched(rows: Samples, factor: float) -> Samples:
    """Each row drawn out to the right by a factor (above 1: formants go up), read between its points."""
    last = rows.shape[1] - 1
    places = np.minimum(np.arange(last + 1) / factor, last)
    left = np.minimum(places.astype(int), last - 1)
    share = places - left
    return np.ascontiguousarray(rows[:, left] * (1 - share) + rows[:, left + 1] * share)


def _loudness(samples: Samples, width: int) -> Samples:
    padded = np.pad(samples, (0, -len(samples) % width)).reshape(-1, width)
    return np.asarray(np.sqrt((padded**2).mean(axis=1)) + 1e-4)


def _mono(path: Path, rate: int, name: str) -> Iterator[Sound]:
    return (block.mean(axis=1, keepdims=True, dtype=np.float32) for block in sound_at(path, rate, name))


def _profile(path: Path, rate: int, name: str) -> Profile | None:
    """Of the first `PROFILE_SECONDS` of a file."""
    return profile_of(_heard(path, rate, name), rate)


def _heard(path: Path, rate: int, name: str) -> NDArray[np.float32]:
    """The first `PROFILE_SECONDS` of a file, in mono."""
    wanted, heard, blocks = PROFILE_SECONDS * rate, 0, []
    for block in _mono(path, rate, name):
        blocks.append(block)
        heard += len(block)
        if heard >= wanted:
            break
    return np.concatenate(blocks)[:wanted, 0]


def _reference(path: Path | None, rate: int) -> Profile | None:
    if path is None:
        return None
    profile = _profile(path, rate, "reference")
    if profile is None:
        raise InvalidInput(f"inputs.reference: there is no voice in its first {PROFILE_SECONDS} seconds")
    return profile
