"""Tiny models with random weights, saved as the real ones are: they go through the true loading code on any CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def ace_step(folder: Path) -> Path:
    """An ACE-Step pipeline as diffusers saves it: 48 kHz stereo, 25 latents a second. About a megabyte."""
    import torch
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
    }
    text = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    AceStepPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4, 4, 6, 10],
            channel_multiples=[1, 1, 1, 1, 1],
            decoder_channels=8,
            decoder_input_channels=8,
            audio_channels=2,
            sampling_rate=48_000,
        ),
        text_encoder=Qwen3Model(text),
        tokenizer=_tokenizer(),
        transformer=AceStepTransformer1DModel(
            num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, is_turbo=True, **shared
        ),
        condition_encoder=AceStepConditionEncoder(
            text_hidden_dim=32,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **shared,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """One token a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1, **{chr(code): code - 30 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def demucs(folder: Path) -> Path:
    """A folder of Demucs checkpoints with one model, `tiny`: 0.27 million parameters."""
    import torch
    from demucs.htdemucs import HTDemucs

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "sources": ["drums", "bass", "other", "vocals"],
        "channels": 8,
        "depth": 4,
        "t_layers": 1,
        "t_heads": 2,
        "bottom_channels": 16,
        "segment": 4.0,
    }
    model = HTDemucs(**arguments)
    torch.save({"klass": HTDemucs, "args": (), "kwargs": arguments, "state": model.state_dict()}, folder / "tiny0.th")
    (folder / "tiny.yaml").write_text("models: ['tiny0']\n")
    return folder
