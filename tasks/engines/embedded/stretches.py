"""Long sounds worked on in overlapping stretches, so that a run's memory doesn't grow with its input's length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from tasks.engines.writing import Sound

#: A stretch, and whether it is the last.
Stretch = tuple[Sound, bool]
#: What one stretch is turned into: one sound or several by name, each as long as the stretch.
Results = Mapping[str, Sound]


def joined(stretches: Iterable[Stretch], overlap: int, change: Callable[[Sound], Results]) -> Iterator[Results]:
    """Each stretch changed and cross-faded with the one before over `overlap` samples, as consecutive pieces.

    Together they are as long as the sound that was cut up; the fades add up to one.
    """
    fading: Results = {}
    rising = np.linspace(0, 1, overlap, dtype=np.float32)[:, None]
    for stretch, last in stretches:
        results = change(stretch)
        for name, before in fading.items():
            results[name][:overlap] *= rising
            results[name][:overlap] += before * (1 - rising)
        yield results if last else {name: result[:-overlap] for name, result in results.items()}
        fading = {name: result[-overlap:] for name, result in results.items()}


def even_stretches(blocks: Iterable[Sound], length: int, overlap: int) -> Iterator[Stretch]:
    """Stretches of `length` samples, each beginning `overlap` before the last one's end. The last may be shorter."""
    return _cut_up(blocks, length, overlap, lambda held: length - overlap)


def quiet_stretches(blocks: Iterable[Sound], shortest: int, longest: int, overlap: int) -> Iterator[Stretch]:
    """Stretches of mono sound that end where it is quietest between `shortest` and `longest` samples."""

    def next_start(held: Sound) -> int:
        return shortest + _quietest(held[shortest:longest], overlap)

    return _cut_up(blocks, longest + overlap, overlap, next_start)


def _cut_up(
    blocks: Iterable[Sound], enough: int, overlap: int, next_start: Callable[[Sound], int]
) -> Iterator[Stretch]:
    """Where more than `enough` is held, answer what lies before the next start, and `overlap` more."""
    held: Sound | None = None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        while len(held) > enough:
            start = next_start(held)
            yield held[: start + overlap], False
            held = held[start:]
    if held is not None and len(held):
        yield held, True


def _quietest(sound: Sound, width: int) -> int:
    """Where the `width` samples with the least energy begin."""
    energy = np.cumsum(np.square(np.pad(sound[:, 0], (1, 0)), dtype=np.float64))
    return int(np.argmin(energy[width:] - energy[:-width]))
