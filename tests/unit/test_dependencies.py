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

from tests.addresses import ROOT, addresses, is_read, read_files
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


def test_no_file_that_a_tool_reads_names_a_registry() -> None:
    """Where packages come from is each machine's own business."""
    found = {
        str(path.relative_to(ROOT)): told
        for path in read_files()
        if (told := list(addresses(path.read_text(errors="replace"), of_pip=path.suffix in (".txt", ".in"))))
    }
    assert {} == found
    names = {str(path.relative_to(ROOT)) for path in read_files()}
    assert {".ci/run", "Makefile", "constraints.txt", "constraints-torch.txt", "hatch_build.py"} < names
    assert {"pyproject.toml", "fermata_client/pyproject.toml"} < names


@pytest.mark.parametrize(
    "path",
    [
        *("Makefile", "deploy/GNUmakefile", "rules.mk", "pyproject.toml", "a/pyproject.toml", "setup.cfg", "tox.ini"),
        *("pip.conf", "deploy/pip.conf", "pip.ini", "uv.toml", "uv.lock", "Pipfile", "poetry.lock", "constraints.txt"),
        *("constraints-torch.txt", "requirements.txt", "requirements-dev.txt", "dev-requirements.in", "a/b.sh"),
        *("requirements/dev.txt", ".ci/run", ".github/workflows/ci.yml", ".gitlab-ci.yml", ".npmrc", "ui/.npmrc"),
        *("package.json", "package-lock.json", "pnpm-lock.yaml", ".yarnrc.yml", "Dockerfile", "deploy/Dockerfile.ci"),
        *(".pypirc", ".env", "hatch_build.py", "environment.yml"),
    ],
)
def test_a_file_that_a_tool_reads_is_looked_at(path: str) -> None:
    """By its name, wherever it stands."""
    assert is_read(path)
    assert not is_read("docs/OPERATIONS.md")
    assert not is_read("tests/addresses.py")


@pytest.mark.parametrize(
    "line",
    [
        "pip install --index-url https://mirror.invalid/simple six",
        "pip install --extra-index-url=https://mirror.invalid/simple six",
        "pip install --index-url file:///srv/simple six",
        "pip install --find-links /srv/wheels six",
        "pip install --trusted-host mirror.invalid six",
        "pip install -i http://10.0.0.7:8080/simple six",
        "pip install git+ssh://git@mirror.invalid/six",
        "pip install git+ssh://git@example.com@mirror.invalid/six",
        "pip install http://localhost@mirror.invalid/six.whl",
        "pip install http://localhost.mirror.invalid/six.whl",
        "pip install HTTPS://MIRROR.INVALID/six.whl",
        "pip install http://[2001:db8::7]/six.whl",
        "export PIP_INDEX_URL := https://mirror.invalid/simple",
        "export PIP_EXTRA_INDEX_URL=mirror.invalid/simple",
        "UV_DEFAULT_INDEX=https://mirror.invalid/simple uv sync",
        "export UV_INDEX = mirror.invalid",
        "UV_INDEX_URL ?= mirror.invalid",
        "PIP_FIND_LINKS=/srv/wheels pip install six",
        "# see https://mirror.invalid/simple",
        '[[tool.uv.index]]\nurl = "https://mirror.invalid/simple"',
        '[[tool.poetry.source]]\nurl = "https://mirror.invalid/simple"',
        "dependencies = ['six @ https://mirror.invalid/six.whl']",
        "[global]\nindex-url = mirror.invalid/simple",
        "[global]\nextra-index-url =\n    https://mirror.invalid/simple",
        "[global]\ntrusted-host = mirror.invalid",
        "[global]\nfind_links = /srv/wheels",
        "[easy_install]\nindex_url = mirror.invalid/simple",
        "registry=https://mirror.invalid/npm/",
        "@ours:registry=mirror.invalid",
        "//mirror.invalid/:_authToken=x",
        "npmRegistryServer: mirror.invalid",
        "npm ci --registry mirror.invalid",
        '"resolved": "https://mirror.invalid/a.tgz"',
        '"a": "git@mirror.invalid:a/b.git"',
    ],
)
def test_an_address_is_seen_whatever_it_is_called(line: str) -> None:
    """One line of any of them is enough, with a scheme or without, or a folder of the machine."""
    assert [] != list(addresses(f"six==1.17.0\n{line}\n"))


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("-i mirror.invalid/simple", True),
        ("-f /srv/wheels", True),
        ("--index-url /srv/simple", True),
        ("-i http://127.0.0.1:8080/simple", False),
        ("-r other.txt", False),
    ],
)
def test_pips_short_options_are_seen_where_they_mean_it(line: str, seen: bool) -> None:
    """In its own files."""
    assert seen is bool(list(addresses(f"{line}\n", of_pip=True)))


@pytest.mark.parametrize(
    "line",
    [
        "pip install --index-url http://localhost:8080/simple six",
        "pip install -i http://127.0.0.1/simple six",
        "pip install http://[::1]:8080/six.whl",
        "index-url = https://pypi.example/simple",
        "trusted-host = localhost",
        'Homepage = "https://www.example.com/fermata"',
        "pip install --index-url $(MIRROR) six",
        "curl http://$HOST:8080/metrics",
        "psql postgresql://fermata@localhost/fermata",
        "ruff check --fix -i index.py",
    ],
)
def test_this_machine_and_examples_are_nobodys_registry(line: str) -> None:
    """Loopback, the names that are kept for documentation, and what a variable says."""
    assert [] == list(addresses(f"{line}\n"))


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
