"""A mix taken apart in two passes: the voice by the vocal network, then the rest by what lasts and what strikes.

Each pass goes through the music in overlapping stretches, so memory doesn't grow with its length. A stretch's stems
add up to it and its cross-fades add up to one, so all four stems together are the mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tasks.engines.embedded.material import sound_at
from tasks.engines.embedded.spectrum import HOP, WINDOW, sound_of, spectrum_of
from tasks.engines.embedded.stretches import Results as Parts
from tasks.engines.embedded.stretches import even_stretches, joined
from tasks.engines.embedded.unet import BINS, FRAMES, vocal_network
from tasks.engines.report import Report
from tasks.engines.writing import OutputFile, Sound, write_blocks
from tasks.finish import Finish
from tasks.kind import AudioInfo

#: The rate that the network was trained at.
RATE = 44_100
#: Samples of a stretch (23.7 s: its spectrum fills the network twice), and of its overlap with the next one.
STRETCH, OVERLAP = (2 * FRAMES - WINDOW // HOP - 1) * HOP, RATE
#: Medians that tell what lasts from what strikes: over 17 frames of a bin, and over 13 bins of a frame. Without the
#: voice they gave drums 6.2, bass 4.0, other 5.2 dB SDR, where the usual 31 and 31 gave 3.1, 1.3, 4.9.
FRAMES_ACROSS, BINS_ACROSS = 17, 13
#: What lasts below so many Hz is the bass; the crossing has the slope of an 8th-order filter.
BASS_HZ, BASS_ORDER = 220, 8
#: The first pass's share of the time when there is a second.
VOCAL_SHARE = 0.5
#: Keeps a quotient of silences finite.
TINY = 1e-9


def split(report: Report, path: Path, info: AudioInfo, stems: Sequence[str], finish: Finish) -> None:
    """Write the wanted stems, each as long as the mix, at 44.1 kHz with the mix's channels.

    Vocals are handed over before the rest is begun, so they stay counted if the rest fails.
    """
    others = [stem for stem in stems if stem != "vocals"]
    share = VOCAL_SHARE if others else 1.0
    rest = report.workdir / "rest.wav"
    with ExitStack() as stack:
        files = _outputs(report, stack, info, [stem for stem in stems if stem == "vocals"], finish)
        scratch = stack.enter_context(soundfile.SoundFile(rest, "w", RATE, info.channels, "FLOAT")) if others else None
        for done, parts in _taken_apart(path, info, voice_and_rest):
            _write(files, parts, info)
            if scratch is not None:
                write_blocks(scratch, parts["rest"][:, : info.channels])
            report.progress(share * done, "vocals")
        _hand_over(files, info)
    if others:
        with ExitStack() as stack:
            files = _outputs(report, stack, info, others, finish)
            for done, parts in _taken_apart(rest, info, drums_bass_other):
                _write(files, parts, info)
                report.progress(share + (1 - share) * done, "drums, bass, other")
            rest.unlink()
            _hand_over(files, info)


def voice_and_rest(stretch: Sound) -> Parts:
    """A stereo stretch as its `vocals` and the `rest`, which add up to it exactly."""
    mix = spectrum_of(stretch)
    mask = np.zeros(mix.shape, np.float32)
    for start in range(0, mix.shape[1], FRAMES):
        heard = np.abs(mix[:, start : start + FRAMES, :BINS])
        filled = np.pad(heard, ((0, 0), (0, FRAMES - heard.shape[1]), (0, 0)))
        voice = vocal_network().vocals_of(filled)[:, : heard.shape[1]]
        ratio = np.clip(voice / (heard + TINY), 0, 1)
        mask[:, start : start + FRAMES, :BINS] = ratio**2 / (ratio**2 + (1 - ratio) ** 2 + TINY)
    vocals = sound_of(mix * mask, len(stretch))
    return {"vocals": vocals, "rest": stretch - vocals}


def drums_bass_other(stretch: Sound) -> Parts:
    """A stereo stretch without voice as `drums`, `bass` and `other`, which add up to it exactly.

    Harmonic/percussive separation by medians (Fitzgerald, DAFx 2010).
    """
    from scipy.ndimage import median_filter  # a second to import: not for those who want the voice only

    spectrum = spectrum_of(stretch)
    heard = np.abs(spectrum).mean(axis=0)
    lasting = median_filter(heard, (FRAMES_ACROSS, 1)) ** 2
    striking = median_filter(heard, (1, BINS_ACROSS)) ** 2
    struck: NDArray[np.float32] = striking / (lasting + striking + TINY)
    low = 1 / (1 + (np.fft.rfftfreq(WINDOW, 1 / RATE) / BASS_HZ) ** BASS_ORDER)
    drums = sound_of(spectrum * struck, len(stretch))
    bass = sound_of(spectrum * np.asarray((1 - struck) * low, np.float32), len(stretch))
    return {"drums": drums, "bass": bass, "other": stretch - drums - bass}


def separated(blocks: Iterable[Sound], take_apart: Callable[[Sound], Parts]) -> Iterator[Parts]:
    """All of a stereo sound taken apart, in consecutive pieces."""
    return joined(even_stretches(blocks, STRETCH, OVERLAP), OVERLAP, take_apart)


def _taken_apart(path: Path, info: AudioInfo, take_apart: Callable[[Sound], Parts]) -> Iterator[tuple[float, Parts]]:
    """The parts of a file, with the fraction that is done."""
    stereo = (np.broadcast_to(block, (len(block), 2)) for block in sound_at(path, RATE, "mix"))
    frames, all_frames = 0, max(1, info.frames * RATE // info.sample_rate)
    for parts in separated(stereo, take_apart):
        frames += len(next(iter(parts.values())))
        yield min(1.0, frames / all_frames), parts


def _outputs(
    report: Report, stack: ExitStack, info: AudioInfo, stems: Sequence[str], finish: Finish
) -> Mapping[str, OutputFile]:
    """A file being written for each stem: 24 bit where the format has a choice, so that they still add up."""
    return {stem: stack.enter_context(OutputFile(report, stem, finish, RATE, info.channels, bits=24)) for stem in stems}


def _write(files: Mapping[str, OutputFile], parts: Parts, info: AudioInfo) -> None:
    for stem, file in files.items():
        file.write(parts[stem][:, : info.channels])


def _hand_over(files: Mapping[str, OutputFile], info: AudioInfo) -> None:
    for file in files.values():
        file.hand_over(info.seconds)
