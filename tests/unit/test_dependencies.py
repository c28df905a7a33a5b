"""What we install is what we chose: each package by its version, nothing from an address, nothing loaded later."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dependencies import needed, pinned


def test_every_package_that_is_installed_is_pinned() -> None:
    """Whatever `pip install -c constraints.txt '.[dev]'` brings along has its version there; installers aside."""
    assert set() == needed("fermata-worker", frozenset({"dev"})) - pinned().keys() - {
        "fermata-worker",
        "pip",
        "setuptools",
    }


@pytest.mark.parametrize(
    "line",
    ["six", "six>=1", "six @ https://example.com/six.whl", "six==1 --hash=sha256:0", "-i https://example.com", "six=="],
)
def test_a_pin_is_a_name_and_a_version(line: str, tmp_path: Path) -> None:
    """No address and no range: the file says what runs, wherever it is fetched from."""
    (path := tmp_path / "constraints.txt").write_text(f"msgspec==0.22.0\n{line}\n")
    with pytest.raises(ValueError, match=r"is not name==version"):
        pinned(path)
