"""What we install is what we chose: each package by its version, nothing from an address, nothing loaded later."""

from __future__ import annotations

import json
import re
from datetime import date
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.dependencies import (
    CONSTRAINTS,
    TORCH,
    Audited,
    NotRun,
    judged,
    needed,
    page,
    pinned,
    pins_of,
    report,
)


def test_every_package_that_is_installed_is_pinned() -> None:
    """Whatever `pip install -c constraints.txt '.[dev]'` brings along has its version there; installers aside."""
    assert set() == needed("fermata-worker", frozenset({"dev"})) - pinned().keys() - {
        "fermata-worker",
        "pip",
        "setuptools",
    }


def test_what_the_extra_torch_adds_is_pinned_too() -> None:
    """Each package that it names, at a version that it takes, in a file of its own."""
    named = [Requirement(text) for text in requires("fermata-worker") or ()]
    torch = {one.name: one.specifier for one in named if one.marker and one.marker.evaluate({"extra": "torch"})}
    pins = pinned(TORCH)
    assert {"torch", "diffusers", "transformers", "demucs"} <= torch.keys()
    assert [] == [name for name, specifier in torch.items() if pins[canonicalize_name(name)] not in specifier]
    assert set() == pins.keys() & pinned(CONSTRAINTS).keys()


@pytest.mark.parametrize("file", [".ci/run", "Makefile"])
def test_no_version_is_pinned_beside_the_files(file: str) -> None:
    """What CI installs stands in one place, where the audit and these tests see it."""
    text = (CONSTRAINTS.parent / file).read_text()
    assert [] == re.findall(r"[A-Za-z0-9_.\]-]+==[0-9][\w.]*", text)


def test_pins_come_from_pips_own_report(tmp_path: Path) -> None:
    """Sorted, without addresses, ourselves or a device's build."""
    installs = [("torch", "2.13.0+cpu"), ("fermata-worker", "0.1.0"), ("setuptools", "84"), ("Einops", "0.8.2")]
    told = [{"metadata": {"name": n, "version": v}, "download_info": {"url": "http://x.example"}} for n, v in installs]
    (report := tmp_path / "report").write_text(json.dumps({"install": told}))
    assert "Einops==0.8.2\ntorch==2.13.0\n" == pins_of(report)


@pytest.mark.parametrize(
    "line",
    ["six", "six>=1", "six @ https://example.com/six.whl", "six==1 --hash=sha256:0", "-i https://example.com", "six=="],
)
def test_a_pin_is_a_name_and_a_version(line: str, tmp_path: Path) -> None:
    """No address and no range: the file says what runs, wherever it is fetched from."""
    (path := tmp_path / "constraints.txt").write_text(f"msgspec==0.22.0\n{line}\n")
    with pytest.raises(ValueError, match=r"is not name==version"):
        pinned(path)


PINS = {"msgspec": "0.22.0", "typing-extensions": "4.16.0", "ours": "1"}


def test_a_package_that_the_list_does_not_know_is_not_counted_as_clean() -> None:
    """Whether it says so or leaves it out; however its name is spelt."""
    answer = {
        "dependencies": [
            {"name": "msgspec", "version": "0.22.0", "vulns": [{"id": "CVE-1", "fix_versions": ["0.23"]}]},
            {"name": "typing_extensions", "version": "4.16.0", "vulns": []},
            {"name": "ours", "skip_reason": "not found on PyPI"},
        ]
    }
    found = judged(json.dumps(answer), "", PINS)
    assert found == Audited(("msgspec 0.22.0: CVE-1, mended in 0.23",), ("ours 1: not found on PyPI",), 3)
    assert report(found).splitlines()[-2:] == [
        "not known: ours 1: not found on PyPI",
        "audit of 2 of 3 packages: 1 known vulnerabilities, 1 not known",
    ]
    left_out = judged(json.dumps({"dependencies": answer["dependencies"][1:2]}), "", PINS)
    assert left_out.unknown == ("msgspec 0.22.0: not in the answer", "ours 1: not in the answer")


@pytest.mark.parametrize(
    "answer", ["", "[]", "{}", "null", '{"dependencies": []}', '{"dependencies": [{"vulns": []}]}']
)
def test_no_answer_is_no_audit(answer: str) -> None:
    """Nothing is green by having said nothing."""
    with pytest.raises(NotRun):
        judged(answer, "no route to host", PINS)


def test_the_page_says_what_was_found_and_nothing_of_the_machine() -> None:
    """When, of how many, what; where nothing was asked, that and why, without the address that a tool named."""
    day = date(2026, 11, 26)
    found = page(day, Audited(("six 1: CVE-1, mended in 2",), ("ours 1: not found",), 3))
    assert "WRITE=1`, on 2026-11-26." in found
    assert "\n- six 1: CVE-1, mended in 2\n" in found
    assert "\n- audit of 2 of 3 packages: 1 known vulnerabilities, 1 not known\n" in found
    with pytest.raises(NotRun, match=r"internal\.example") as reason:
        judged("", "HTTPSConnectionPool(host='internal.example', port=443): /root/.cache refused", PINS)
    not_run = page(day, reason.value)
    assert f"NOT RUN, because the list of vulnerabilities can't be reached: {len(pinned())} packages" in not_run
    assert "internal" not in not_run
    assert "/root" not in not_run
