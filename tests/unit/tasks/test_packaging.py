"""What a worker pays for knowing the kinds, and what comes with the package."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tasks
from tasks.engines.embedded.unet import WEIGHTS, VocalNetwork
from tasks.engines.embedded.weights import rebuild

ROOT = Path(tasks.__file__).parent

LOADED = """
import sys
import tasks.registry, tasks.audio, tasks.validation, tasks.engines.child
tasks.registry.registry()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_the_worker_loads_no_numeric_library() -> None:
    """Only children pay for numpy, scipy, libsndfile and WORLD: an idle worker stays small."""
    path = str(ROOT.parent)
    told = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    modules, kilobytes = told.stdout.splitlines()
    assert not {"numpy", "scipy", "soundfile", "pyworld"} & set(modules.split())
    assert int(kilobytes) < 60_000


def test_tasks_knows_nothing_of_the_worker() -> None:
    """What a job is never imports how it is metered."""
    for module in ROOT.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) worker\b", module.read_text(), re.MULTILINE), module


def test_the_weights_are_those_of_the_notice() -> None:
    """Attribution and checksum lie beside the file."""
    notice = WEIGHTS.with_name("NOTICE").read_text()
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in notice
    assert "Deezer" in notice
    assert "Tuan Nguyen & Sean Bailey" in notice
    assert "Permission is hereby granted, free of charge" in notice


def test_the_weights_quantize_to_themselves() -> None:
    """The rebuild script's arithmetic gives the shipped numbers from their own values."""
    network = VocalNetwork()
    rebuilt = rebuild.quantized(network._weights)
    with np.load(WEIGHTS) as shipped:
        assert set(shipped.files) == set(rebuilt)
        for name in shipped.files:
            assert np.allclose(shipped[name], rebuilt[name], atol=1e-7), name


def test_the_rebuild_reads_arrays_and_nothing_else() -> None:
    """A checkpoint that names anything else is refused before it could run."""
    with pytest.raises(pickle.UnpicklingError, match=r"names os\.system"):
        rebuild.ArraysOnly(io.BytesIO(b"cos\nsystem\n.")).load()


def test_the_sample_voice_is_there_with_its_licence() -> None:
    """The demo and the tests have one real voice, seven seconds of it."""
    assert soundfile.info(ROOT / "samples" / "voice-librivox.flac").duration == pytest.approx(7.1)
    assert "public domain" in (ROOT / "samples" / "README.md").read_text()
