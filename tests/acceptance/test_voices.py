"""A conversion towards a voice of the registry, in a whole deployment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from tests.acceptance.stage import ACTOR, Stage
from tests.unit.tasks.material import pitch_curve, sung
from worker.store.voices import Voices
from worker.voice_desk import VoiceOffer, register

RATE = 24_000


def singer(path: Path, hertz: float) -> Path:
    soundfile.write(path, 0.5 * sung(pitch_curve([hertz, hertz], 1.0, RATE), RATE), RATE)
    return path


async def test_a_conversion_goes_towards_the_voice_it_names(stage: Stage, tmp_path: Path) -> None:
    """Given a registered alto, when a bass is converted towards it, then it sings as high; removed meanwhile, still."""
    await stage.account("label", credits=0)
    voices = Voices(stage.store.engine)
    offer = VoiceOffer("alto", singer(tmp_path / "alto.wav", 330.0), "label", "ours", "signed", accounts=("ada",))
    await register(stage.client, voices, offer, ACTOR)
    bass = await stage.client.put("ada", singer(tmp_path / "bass.wav", 110.0), ACTOR)
    job_id = await stage.submit("vocal_conversion", inputs={"voice": str(bass.artifact_id)}, target="alto")
    await voices.remove("alto", ACTOR)
    stage.scheduler()
    stage.worker("vocal_conversion")
    seen = await stage.becomes(job_id, "succeeded")
    assert (5, ["voice"]) == (seen.charged, seen.outputs)
    [path] = stage.outputs(job_id)
    sound, rate = soundfile.read(path)
    spectrum = np.abs(np.fft.rfft(sound[: 2 * rate])) * (np.fft.rfftfreq(2 * rate, 1 / rate)[: rate + 1] < 400)
    assert abs(np.fft.rfftfreq(2 * rate, 1 / rate)[spectrum.argmax()] - 330) < 20
