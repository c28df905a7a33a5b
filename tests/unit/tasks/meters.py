"""Independent measuring: what is heard in a sound, told by other means than those that made it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating]


def tempo(sound: Samples, sample_rate: int) -> float:
    """Beats a minute between 60 and 180: the lag at which the onsets repeat best, beat by beat and bar by bar."""
    onsets = _onsets(sound, sample_rate)
    rate = sample_rate / HOP
    repeats = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
    repeats /= np.arange(len(onsets), 0, -1)
    candidates = np.arange(60, 180, 0.1)
    lags = 60 / candidates * rate
    places = np.arange(len(repeats))
    scores = sum(np.interp(beats * lags, places, repeats) for beats in (1, 2, 4, 8))
    usual = np.exp(-0.5 * np.log2(candidates / 110) ** 2)  # people tap nearest to 110
    return float(candidates[np.argmax(scores * usual)])


def _onsets(sound: Samples, sample_rate: int) -> Samples:
    mono = sound.mean(axis=1) if sound.ndim == 2 else sound
    frames = np.lib.stride_tricks.sliding_window_view(mono, 4 * HOP)[::HOP]
    spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(4 * HOP), axis=1)))
    flux = np.maximum(np.diff(spectrum, axis=0), 0).sum(axis=1)
    return np.asarray(flux - flux.mean())


def key(sound: Samples, sample_rate: int) -> tuple[int, str]:
    """Tonic (0 = C) and mode whose usual share of each note is nearest to what sounds (Krumhansl's profiles)."""
    shares = _note_shares(sound, sample_rate)
    fits = {
        (tonic, mode): float(np.corrcoef(np.roll(profile, tonic), shares)[0, 1])
        for mode, profile in PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda one: fits[one])


def _note_shares(sound: Samples, sample_rate: int) -> Samples:
    mono = sound.mean(axis=1) if sound.ndim == 2 else sound
    frames = np.lib.stride_tricks.sliding_window_view(mono, 8192)[::4096]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(8192), axis=1)).mean(axis=0)
    frequencies = np.fft.rfftfreq(8192, 1 / sample_rate)
    heard = (frequencies > 100) & (frequencies < 2000)
    pitches = np.round(12 * np.log2(frequencies[heard] / 440)).astype(int) + 69
    shares = np.zeros(12)
    np.add.at(shares, pitches % 12, spectrum[heard])
    return shares


HOP = 512
PROFILES = {
    "major": np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]),
    "minor": np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]),
}


def distortion_ratio(true: Samples, found: Samples) -> float:
    """SDR in dB: a stem's energy to that of what is wrong with the one found."""
    return float(10 * np.log10((true**2).sum() / ((true - found) ** 2).sum()))


def pitches(sound: Samples, sample_rate: int, times: Samples) -> Samples:
    """The pitch in Hz around each time, by the first high peak of the autocorrelation (60–1200 Hz). NaN: no pitch."""
    width = round(0.06 * sample_rate)
    shortest, longest = sample_rate // 1200, sample_rate // 60
    found = np.full(len(times), np.nan)
    for n, time in enumerate(times):
        start = round(time * sample_rate) - width // 2
        piece = sound[max(0, start) : start + width]
        if len(piece) < width or np.abs(piece).max() < 1e-3:
            continue
        found[n] = sample_rate / _period(piece * np.hanning(width), shortest, min(longest, width // 2))
    return found


def _period(piece: Samples, shortest: int, longest: int) -> float:
    """The lag in samples, between samples by a parabola; what the window takes from long lags is given back."""
    size = 2 * len(piece)
    repeats = np.fft.irfft(np.abs(np.fft.rfft(piece, size)) ** 2)[: longest + 2]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(len(piece)), size)) ** 2)[: longest + 2]
    likeness = repeats / window / (repeats[0] / window[0])
    inner = likeness[1:-1]
    peaks = np.flatnonzero((inner > likeness[:-2]) & (inner >= likeness[2:])) + 1
    peaks = peaks[peaks >= shortest]
    if not len(peaks) or likeness[peaks].max() < 0.5:
        return float("nan")
    lag = int(peaks[likeness[peaks] > 0.93 * likeness[peaks].max()][0])
    before, at, after = likeness[lag - 1 : lag + 2]
    return float(lag + 0.5 * (before - after) / (before - 2 * at + after))


def cents(found: Samples, expected: Samples) -> Samples:
    """How far each found pitch is from the expected one; frames without a pitch are left out."""
    return np.asarray(1200 * np.log2(found / expected))[np.isfinite(found)]


def formant_factor(before: Samples, after: Samples, sample_rate: int) -> float:
    """By how much the resonances moved: the stretching of one mean envelope that fits the other best."""
    frequencies = np.fft.rfftfreq(2048, 1 / sample_rate)
    first, second = (_mean_envelope(sound) for sound in (before, after))
    heard = (frequencies > 400) & (frequencies < 3200)
    factors = np.arange(0.6, 1.6, 0.005)
    stretched = [np.interp(frequencies[heard] / factor, frequencies, first) for factor in factors]
    return float(factors[np.argmax([np.corrcoef(one, second[heard])[0, 1] for one in stretched])])


def _mean_envelope(sound: Samples) -> Samples:
    """The mean log spectrum in dB, made smooth in its cepstrum so that harmonics are gone and formants are not."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 2048)[::512] * np.hanning(2048)
    loud = frames[(frames**2).mean(axis=1) > 0.1 * (frames**2).mean()]
    cepstrum = np.fft.irfft(20 * np.log10(np.abs(np.fft.rfft(loud, axis=1)) + 1e-6), axis=1).mean(axis=0)
    cepstrum[45:-45] = 0
    return np.asarray(np.fft.rfft(cepstrum).real)
