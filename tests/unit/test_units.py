"""The systemd units: what a broken-in process of ours could still do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
#: As `systemd-analyze security` counts, from 0 (nothing) to 100: 15 as they stand, and below 30 it says OK.
EXPOSURE_MAX = 20
#: Each must say so.
WANTED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectProc": "invisible",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_NETLINK AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "~@privileged",
    "UMask": "0077",
    "User": "fermata",
}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_service_is_hardened(unit: Path) -> None:
    """An ordinary user without capabilities, who writes to its own folders only and sees nobody else's processes."""
    told = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
    assert {} == {name: told.get(name) for name, value in WANTED.items() if told.get(name) != value}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_secret_stands_in_a_unit(unit: Path) -> None:
    """Units are readable by everybody, and so are command lines: secrets come from files that are not."""
    assert not re.search(r"(?i)^Environment=.*(password|secret|_url)|://[^\s]*:[^\s]*@", unit.read_text(), re.MULTILINE)
    assert "EnvironmentFile=/etc/fermata/common.env" in unit.read_text()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_little_exposed(unit: Path, tmp_path: Path) -> None:
    """By its own count, offline; and every word of the unit is one that it knows."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    # An instance of a template has a name.
    (copy := tmp_path / unit.name.replace("@", "@one")).write_text(
        unit.read_text().replace("/opt/fermata/bin/fermata", "/bin/true")
    )
    asked = [analyze, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", str(copy)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    assert 0 == done.returncode, done.stdout[-1500:] + done.stderr
    assert "Unknown" not in done.stderr
