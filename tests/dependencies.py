"""`make audit`: the versions that we pin against the known vulnerabilities, by pip-audit in an environment of its own.

Returns 1 for a known vulnerability. A package that the list knows nothing of is named as "not known": it is not clean.
Where pip-audit or its list can't be reached it says that it was not run, and why,
and returns 0: a missing network makes nothing red, and nothing green either. `--write` puts it into docs/AUDIT.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
#: What everybody installs, and what the extra `torch` adds to it.
CONSTRAINTS, TORCH = ROOT / "constraints.txt", ROOT / "constraints-torch.txt"
PAGE = ROOT / "docs" / "AUDIT.md"
#: Ourselves, and installers.
_UNPINNED = frozenset({"fermata-worker", "pip", "setuptools"})
AUDITOR = "pip-audit==2.10.1"
#: What markers ask of a Python: of this one, and of the oldest that we take.
HERE: Mapping[str, str] = {}
OLDEST: Mapping[str, str] = {"python_version": "3.11", "python_full_version": "3.11.0"}
#: Seconds that one answer of the list may take, and all of it.
ANSWER_SECONDS, AUDIT_SECONDS = 10, 300


class NotRun(Exception):
    """There was no audit. Says why; `detail` is what a tool said, which may name addresses and folders of a machine."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Audited:
    """What was found: vulnerabilities, and packages that the list could say nothing of, each with a reason."""

    vulnerable: tuple[str, ...]
    unknown: tuple[str, ...]
    asked: int


def pinned(*files: Path) -> dict[str, str]:
    """Each pinned package and its version, of both files unless some are named.

    Raises `ValueError` for a line that is more than a name and a version.
    """
    found: dict[str, str] = {}
    for file in files or (CONSTRAINTS, TORCH):
        for line in file.read_text().splitlines():
            name, equals, version = line.partition("==")
            if not equals or not version or any(sign in line for sign in "/@; "):
                raise ValueError(f"{file.name}: {line[:80]!r} is not name==version")
            found[canonicalize_name(name)] = version
    return found


def pins_of(report: Path) -> str:
    """What pip would install by its own report, as pins: no address, and of no device's build in particular."""
    told = (one["metadata"] for one in json.loads(report.read_text())["install"])
    pins = {f"{one['name']}=={one['version'].partition('+')[0]}" for one in told if one["name"] not in _UNPINNED}
    return "".join(f"{pin}\n" for pin in sorted(pins, key=str.lower))


def needed(distribution: str, extras: frozenset[str]) -> set[str]:
    """What a distribution of this environment needs with these extras, and what that needs in turn, here or on the
    oldest Python that we take."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(distribution), extras)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        name, wanted = one
        try:
            requirements = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue  # of an extra that is not installed here, or for another system
        for requirement in requirements:
            marker = requirement.marker
            if marker is None or any(
                marker.evaluate({**python, "extra": extra}) for extra in ("", *wanted) for python in (HERE, OLDEST)
            ):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found}


def audited(*files: Path) -> Audited:
    """What is known of these pins. Raises `NotRun`."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        installed = _run([str(python), "-m", "pip", "install", "--quiet", AUDITOR])
        if installed.returncode:
            raise NotRun(f"{AUDITOR} can't be installed", _last_line(installed.stderr))
        asked = [part for file in files for part in ("--requirement", str(file))]
        asked += ["--no-deps", "--disable-pip", "--format", "json", "--timeout", str(ANSWER_SECONDS)]
        done = _run([str(python), "-m", "pip_audit", *asked])
    return judged(done.stdout, done.stderr, pinned(*files))


def judged(answer: str, complaint: str, pins: Mapping[str, str]) -> Audited:
    """What pip-audit's answer says of each pin. Raises `NotRun` where it is none, or knows none of them."""
    try:
        told: dict[str, dict[str, Any]] = {
            canonicalize_name(one["name"]): one for one in json.loads(answer)["dependencies"]
        }
    except (json.JSONDecodeError, KeyError, TypeError):
        raise NotRun("the list of vulnerabilities can't be reached", _last_line(complaint)) from None
    skipped = {name: told.get(name, {"skip_reason": "not in the answer"}).get("skip_reason") for name in pins}
    unknown = tuple(f"{name} {pins[name]}: {reason}" for name, reason in skipped.items() if reason is not None)
    if len(unknown) == len(pins):
        raise NotRun("the list of vulnerabilities knows none of our packages")
    vulnerable = tuple(
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for one in told.values()
        for known in one.get("vulns", ())
    )
    return Audited(vulnerable, unknown, len(pins))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotRun(f"no answer within {AUDIT_SECONDS} s") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:200]


def report(found: Audited) -> str:
    """For people: each vulnerability, each package of which nothing is known, and how many are clean by the list."""
    lines = [*found.vulnerable, *(f"not known: {line}" for line in found.unknown)]
    looked_at = found.asked - len(found.unknown)
    unknown = f", {len(found.unknown)} not known" if found.unknown else ""
    lines.append(
        f"audit of {looked_at} of {found.asked} packages: {len(found.vulnerable)} known vulnerabilities{unknown}"
    )
    return "".join(f"{line}\n" for line in lines)


def page(day: date, result: Audited | NotRun) -> str:
    """docs/AUDIT.md: the last result, without a word of what a tool said of this machine."""
    if isinstance(result, NotRun):
        told = f"NOT RUN, because {result.why}: {len(pinned())} packages are pinned, and nothing was learnt of them."
    else:
        told = "\n".join(f"- {line}" for line in report(result).splitlines())
    return f"# Known vulnerabilities, as last looked for\n\nWritten by `make audit WRITE=1`, on {day}.\n\n{told}\n"


def main() -> int:
    """Print what is known, or that nothing was asked; with `--pins REPORT` what it pins, for `make lock`."""
    if sys.argv[1:2] == ["--pins"]:
        sys.stdout.write(pins_of(Path(sys.argv[2])))
        return 0
    result: Audited | NotRun
    try:
        result = audited(CONSTRAINTS, TORCH)
        sys.stdout.write(report(result))
    except NotRun as reason:
        result = reason
        sys.stdout.write(f"audit of {len(pinned())} packages: NOT RUN: {reason}\n")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(datetime.now(UTC).date(), result))
    return 1 if isinstance(result, Audited) and result.vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
