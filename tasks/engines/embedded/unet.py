"""Spleeter's vocal network, run by numpy: from a mix's spectrum to the part of it that is a voice.

A U-Net of six halvings and six doublings (Hennequin et al., "Spleeter", JOSS 2020; Jansson et al., ISMIR 2017).
Each convolution is one matrix product. Half a second to load, 0.03 CPU seconds a second of music.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

#: (channels, frames, bins), float32.
Planes = NDArray[np.float32]

#: What the network was trained on: stereo magnitudes of 512 frames and the lowest 1024 bins of a 4096-point FFT
#: at 44.1 kHz, every 1024 samples.
FRAMES, BINS = 512, 1024
#: Levels of halving and doubling.
LEVELS = 6
#: Trained with Keras's batch normalization and TensorFlow's leaky ReLU.
NORMALIZING_EPSILON, LEAK = 1e-3, 0.2

WEIGHTS = Path(__file__).parent / "weights" / "spleeter-vocals-int8.npz"


class VocalNetwork:
    """The network with its weights, as `vocals_of(magnitudes)`."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        with np.load(path) as stored:
            self._weights = {name: _dequantized(stored, name) for name in stored.files if not name.endswith(".scale")}

    def vocals_of(self, magnitudes: Planes) -> Planes:
        """The voice's magnitudes in a mix's, both (2, FRAMES, BINS)."""
        skipped: list[Planes] = []
        plane = magnitudes
        for level in range(1, LEVELS + 1):
            halved = self._convolved(np.pad(plane, ((0, 0), (1, 2), (1, 2))), f"down{level}_conv.1", stride=2)
            skipped.append(halved)
            plane = halved
            if level < LEVELS:
                plane = _leaky(self._normalized(halved, f"down{level}_act.0"))
        for level in range(1, LEVELS + 1):
            if level > 1:
                plane = np.concatenate([skipped[LEVELS - level], plane])
            doubled = self._doubled(plane, f"up{level}.0")
            plane = self._normalized(np.maximum(doubled, 0, out=doubled), f"up{level}.3")
        mask = self._convolved(np.pad(plane, ((0, 0), (3, 3), (3, 3))), "up7.0", dilation=2)
        return np.asarray(magnitudes / (1 + np.exp(-mask)), np.float32)

    def _convolved(self, plane: Planes, name: str, stride: int = 1, dilation: int = 1) -> Planes:
        """A convolution without padding, as one matrix product over all windows."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        filters, channels, height, width = weight.shape
        reach = ((height - 1) * dilation + 1, (width - 1) * dilation + 1)
        windows = sliding_window_view(plane, reach, axis=(1, 2))[:, ::stride, ::stride, ::dilation, ::dilation]
        rows, columns = windows.shape[1:3]
        flat = np.ascontiguousarray(windows.transpose(0, 3, 4, 1, 2)).reshape(channels * height * width, -1)
        return np.asarray((weight.reshape(filters, -1) @ flat + bias[:, None]).reshape(filters, rows, columns))

    def _doubled(self, plane: Planes, name: str) -> Planes:
        """A transposed convolution of stride 2, cut to twice the plane's size: a product, then added up by taps."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        channels, filters, height, width = weight.shape
        _, rows, columns = plane.shape
        taps = (weight.reshape(channels, -1).T @ plane.reshape(channels, -1)).reshape(
            filters, height, width, rows, columns
        )
        grown = np.zeros((filters, (rows - 1) * 2 + height, (columns - 1) * 2 + width), np.float32)
        for row in range(height):
            for column in range(width):
                grown[:, row : row + rows * 2 : 2, column : column + columns * 2 : 2] += taps[:, row, column]
        return grown[:, 1:-2, 1:-2] + bias[:, None, None]

    def _normalized(self, plane: Planes, name: str) -> Planes:
        """Batch normalization with the trained statistics, as one factor and one summand a channel."""
        factor = self._weights[f"{name}.weight"] / np.sqrt(self._weights[f"{name}.running_var"] + NORMALIZING_EPSILON)
        summand = self._weights[f"{name}.bias"] - self._weights[f"{name}.running_mean"] * factor
        return np.asarray(plane * factor[:, None, None] + summand[:, None, None])


@cache
def vocal_network() -> VocalNetwork:
    """The network, loaded once a process."""
    return VocalNetwork()


def _dequantized(stored: np.lib.npyio.NpzFile, name: str) -> Planes:
    array = stored[name].astype(np.float32)
    scale = stored[f"{name}.scale"] if f"{name}.scale" in stored.files else np.ones(1, np.float32)
    return array * scale.reshape(-1, *[1] * (array.ndim - 1)) if array.ndim > 1 else array


def _leaky(plane: Planes) -> Planes:
    return np.where(plane > 0, plane, np.float32(LEAK) * plane)
