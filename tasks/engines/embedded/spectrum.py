"""Sound to spectrum and back without loss: short Fourier transforms with a Hann window."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.engines.writing import Sound

#: (channels, frames, bins), complex64.
Spectrum = NDArray[np.complex64]

#: Samples of a window and between two windows: what the vocal network was trained at.
WINDOW, HOP = 4096, 1024


def spectrum_of(sound: Sound) -> Spectrum:
    """The spectrum of (samples, channels): one frame every `HOP` samples, the sound's edges padded with silence."""
    padded = np.pad(sound.T, ((0, 0), (WINDOW, WINDOW + -len(sound) % HOP)))
    frames = sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]
    return np.asarray(np.fft.rfft(frames * _HANN, axis=2), np.complex64)


def sound_of(spectrum: Spectrum, samples: int) -> Sound:
    """The sound of a spectrum that `spectrum_of` made of so many samples, changed or not."""
    frames = np.fft.irfft(spectrum, WINDOW, axis=2).astype(np.float32) * _HANN
    channels, count, _ = frames.shape
    padded = np.zeros((channels, (count - 1) * HOP + WINDOW), np.float32)
    for overlap in range(WINDOW // HOP):  # frames that don't overlap are added at once
        chosen = frames[:, overlap :: WINDOW // HOP]
        start, length = overlap * HOP, chosen.shape[1] * WINDOW
        padded[:, start : start + length] += chosen.reshape(channels, -1)
    return np.asarray(padded[:, WINDOW : WINDOW + samples].T / _OVERLAP_GAIN, np.float32, order="C")


#: Periodic, so that its square adds up to the same everywhere.
_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
_OVERLAP_GAIN = float((_HANN**2).sum() / HOP)
