"""Demucs 4 through its API: stems, made in this process's own model process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from fermata_client.requests import Number
from tasks.engines.child import close_children
from tasks.engines.contract import Commission, EngineNotReady
from tasks.engines.offer import Options
from tasks.engines.report import Report
from tasks.engines.torch.device import Device, ModelOptions, check_folder, check_installed, check_trusted
from tasks.finish import Finish
from tasks.kind import AudioInfo, Context, EngineFailure, RunLimits


class DemucsOptions(ModelOptions):
    """What the document says of a Demucs model."""

    #: The name of its NAME.yaml in the folder.
    model: str = Field("htdemucs", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    #: Demucs unpickles its weights: whoever can write to the folder can do anything. Say so, or it doesn't start.
    trusted: bool = False
    shifts: int = Field(1, ge=0, le=10)
    overlap: Number = Field(0.25, ge=0, lt=1)


class Demucs:
    """A Demucs 4 model."""

    Options: ClassVar[type[Options]] = DemucsOptions
    kinds: ClassVar[frozenset[str]] = frozenset({"stem_split"})
    deterministic: ClassVar[bool] = False  # on one machine it is; between GPUs it is not

    def __init__(self, name: str, options: DemucsOptions) -> None:
        if options.dtype != "float32":
            raise ValueError("dtype: Demucs runs in float32 only")
        self.name = name
        self.options = options

    def check(self, kind: str, request: Any) -> None:
        """It takes all that the request can say."""

    def prepare(self) -> None:
        options = self.options
        check_installed(self.name, ("torch", "demucs"))
        check_folder(self.name, options.folder, (f"{options.model}.yaml",))
        if not options.trusted:
            raise EngineNotReady(
                f"{self.name} unpickles its weights: if nobody else can write to {options.folder}, say trusted = true"
            )
        check_trusted(self.name, options.folder)

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        mix = commission.inputs["mix"]
        arguments = {
            "path": mix.path.absolute(),
            "info": mix.info,
            "stems": commission.names,
            "finish": commission.finish,
            "name": self.options.model,
            "shifts": self.options.shifts,
            "overlap": self.options.overlap,
        }
        device = Device.named(self.options.device)
        await device.run("tasks.engines.torch.demucs:split", arguments, self.options, context, limits)

    async def close(self) -> None:
        await close_children()


def split(
    report: Report,
    folder: Path,
    device: str,
    dtype: str,
    path: Path,
    info: AudioInfo,
    stems: tuple[str, ...],
    finish: Finish,
    name: str,
    shifts: int,
    overlap: float,
) -> None:
    """Take a mix apart and write the stems that are wanted, each as long as it. Runs in the model process."""
    import random

    import numpy as np
    import torch

    from tasks.engines.embedded.material import sound_at
    from tasks.engines.torch.loaded import model, out_of_memory, step
    from tasks.engines.writing import OutputFile

    step(report, 0.01, "loading")
    separator = model(("demucs", str(folder), name, device), lambda: _loaded(folder, name, device), device)
    missing = set(stems) - set(separator.model.sources)
    if missing:
        raise EngineFailure(f"the model makes no {', '.join(sorted(missing))}")
    turns = max(1, shifts)

    def told(news: dict[str, Any]) -> None:
        done = (news["shift_idx"] + news["segment_offset"] / news["audio_length"]) / turns
        step(report, 0.05 + 0.8 * (news["model_idx_in_bag"] + done) / news["models"], "taking apart")

    rate = int(separator.samplerate)
    mix = np.concatenate([np.broadcast_to(block, (len(block), 2)) for block in sound_at(path, rate, "mix")])
    random.seed(0)  # its shifts are drawn by chance: the same mix gives the same stems
    torch.manual_seed(0)
    separator.update_parameter(shifts=shifts, overlap=overlap, callback=told)
    with out_of_memory(device), torch.inference_mode():
        _, parts = separator.separate_tensor(torch.from_numpy(mix.T.copy()), rate)
    for stem in stems:
        step(report, 0.9, f"writing {stem}")
        with OutputFile(report, stem, finish, rate, info.channels, bits=24) as file:
            file.write(parts[stem].float().cpu().numpy().T[:, : info.channels])
            file.hand_over(info.seconds)


def _loaded(folder: Path, name: str, device: str) -> Any:
    """From this folder only: the settings say that it is to be trusted."""
    import demucs.api

    return demucs.api.Separator(model=name, repo=folder, device=device, progress=False)
