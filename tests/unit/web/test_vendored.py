"""What the dashboard brings from elsewhere: each file as it was published, named with version and licence."""

from __future__ import annotations

import tomllib
from hashlib import sha256
from pathlib import Path

import pytest

from worker.web.dashboard.frame import HERE

FOLDERS = (HERE / "vendor", Path(__file__).parents[2] / "browser" / "vendor")
LISTED = [
    (folder, entry)
    for folder in FOLDERS
    if folder.is_dir()
    for entry in tomllib.loads((folder / "VENDORED.toml").read_text())["file"]
]


@pytest.mark.parametrize(
    ("folder", "entry"), LISTED, ids=lambda value: value["name"] if isinstance(value, dict) else ""
)
def test_a_file_is_what_the_list_says(folder: Path, entry: dict[str, str]) -> None:
    """Its sum is that of the published file, and its licence lies beside it."""
    assert entry["sha256"] == sha256((folder / entry["name"]).read_bytes()).hexdigest()
    assert (folder / entry["licence_file"]).read_text().strip()
    assert entry["version"]
    assert entry["licence"]


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder.is_dir()], ids=lambda path: path.parent.name)
def test_no_file_is_missing_from_the_list(folder: Path) -> None:
    """What nobody listed was not looked at."""
    listed = {entry["name"] for where, entry in LISTED if where == folder}
    licences = {entry["licence_file"] for where, entry in LISTED if where == folder}
    assert listed | licences | {"VENDORED.toml"} == {path.name for path in folder.iterdir()}
