"""ACE-Step 1.5 through diffusers: songs with lyrics, made in this process's own model process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from fermata_client.requests import Number
from tasks.engines.child import close_children
from tasks.engines.contract import Commission
from tasks.engines.offer import Options
from tasks.engines.report import Report
from tasks.engines.torch.device import Device, ModelOptions, check_folder, check_installed
from tasks.finish import Finish
from tasks.kind import Context, RefusedRequest, RunLimits

#: Seconds of music that the model makes.
SECONDS_MIN = 10


class AceStepOptions(ModelOptions):
    """What the document says of an ACE-Step model."""

    inference_steps: int = Field(8, ge=1, le=200)
    #: Ignored by turbo checkpoints.
    guidance_scale: Number = Field(7.0, ge=1, le=30)
    seconds_min: int = Field(SECONDS_MIN, ge=1, le=60)
    #: Variants that are made in one batch. None: one on the CPU, where four took 1.7 to 2.3 times as long so; else all.
    songs_at_once: int | None = Field(None, ge=1, le=64)


class AceStep:
    """An ACE-Step 1.5 model."""

    Options: ClassVar[type[Options]] = AceStepOptions
    kinds: ClassVar[frozenset[str]] = frozenset({"generation"})
    deterministic: ClassVar[bool] = False  # on one machine it is; between GPUs it is not

    def __init__(self, name: str, options: AceStepOptions) -> None:
        self.name = name
        self.options = options

    def check(self, kind: str, request: Any) -> None:
        if request.most_seconds < self.options.seconds_min:
            raise RefusedRequest("seconds", f"must be at least {self.options.seconds_min} with this model")

    def prepare(self) -> None:
        check_installed(self.name, ("torch", "diffusers", "transformers"))
        check_folder(self.name, self.options.folder, ("model_index.json",))

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        request = commission.request
        arguments = {
            "names": commission.names,
            "seconds": float(request.most_seconds),
            "finish": commission.finish,
            "prompt": ", ".join(filter(None, (request.style, request.prompt))),
            "lyrics": request.lyrics or "[instrumental]",
            "bpm": request.bpm,
            "key": request.key,
            "seed": request.seed,
            "steps": self.options.inference_steps,
            "guidance_scale": self.options.guidance_scale,
            "at_once": self.options.songs_at_once or (1 if self.options.device == "cpu" else len(commission.names)),
        }
        device = Device.named(self.options.device)
        await device.run("tasks.engines.torch.ace_step:sing", arguments, self.options, context, limits)

    async def close(self) -> None:
        await close_children()


def sing(
    report: Report,
    folder: Path,
    device: str,
    dtype: str,
    names: tuple[str, ...],
    seconds: float,
    finish: Finish,
    prompt: str,
    lyrics: str,
    bpm: int | None,
    key: str | None,
    seed: int,
    steps: int,
    guidance_scale: float,
    at_once: int,
) -> None:
    """Make the songs, `at_once` in a batch, with seeds `seed`, `seed` + 1, … Runs in the model process.

    Each is what it would be alone, but for the last bits of its samples: all have the same words, and a seed each.
    """
    import torch

    from tasks.engines.torch.loaded import model, out_of_memory, step
    from tasks.engines.writing import OutputFile

    step(report, 0.01, "loading")
    pipeline = model(("ace_step", str(folder), device, dtype), lambda: _loaded(folder, device, dtype), device)
    rate = int(pipeline.sample_rate)
    for first in range(0, len(names), at_once):
        batch = names[first : first + at_once]

        def told(_pipeline: Any, number: int, _time: Any, values: dict[str, Any], first: int = first) -> dict[str, Any]:
            done = first + at_once * (number + 1) / steps
            step(report, min(0.05 + 0.9 * done / len(names), 0.95), "making")
            return values

        with out_of_memory(device), torch.inference_mode():
            songs = pipeline(
                [prompt] * len(batch),
                lyrics=[lyrics] * len(batch),
                audio_duration=seconds,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator(device).manual_seed(seed + first + n) for n in range(len(batch))],
                bpm=bpm,
                keyscale=key,
                callback_on_step_end=told,
            ).audios
        for name, song in zip(batch, songs.float().cpu().numpy(), strict=True):
            with OutputFile(report, name, finish, rate, song.shape[0], bits=24) as file:
                file.write(song.T[: round(seconds * rate)])  # it comes in whole latents, a little longer
                file.hand_over()


def _loaded(folder: Path, device: str, dtype: str) -> Any:
    """From this folder only, and never by unpickling."""
    import torch
    from diffusers import AceStepPipeline

    pipeline = AceStepPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
