"""Addresses in the files that pip, uv, npm, make and CI read: where packages come from is each machine's own business.

An address there sends everybody to one machine's registry, or tells strangers its name. Denied is any address, whatever
the option is called or the file: but of this machine itself, or of a name that RFC 2606 keeps for documentation.
"""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
_READ = re.compile(
    r"(?:.*/)?(?:"
    r"(?:GNU)?makefile|[^/]*\.mk|[^/]*\.(?:toml|cfg|ini|conf|lock|sh)|Pipfile|Procfile|\.pypirc|\.netrc|\.condarc|"
    r"[^/]*(?:requirements|constraints)[^/]*\.(?:txt|in)|requirements/[^/]*|\.env[^/]*|\.envrc|"
    r"\.npmrc|\.yarnrc[^/]*|package(?:-lock)?\.json|npm-shrinkwrap\.json|pnpm-[^/]*\.ya?ml|environment\.ya?ml|"
    r"(?:docker|container)file[^/]*|[^/]*\.dockerfile|\.gitlab-ci\.yml|hatch_build\.py|setup\.py|noxfile\.py"
    r")|\.(?:ci|github|gitlab|circleci)/.*|deploy/systemd/.*",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\])?[^\s\"'`<>\])]*", re.IGNORECASE)
#: A registry may also be named without a scheme, or be a folder of the machine.
_SETTING = re.compile(
    r"(?:--(?:extra-|default-)?index(?:-url)?|--find-links|--trusted-host|--registry|(?:pip|uv)_[a-z_]*index[a-z_]*|"
    r"(?:pip|uv)_find_links|pip_trusted_host|npm_config_registry|"
    r"^[ \t]*(?:export[ \t]+)?(?:[@\w]+:)?(?:(?:extra-|default-)?index(?:-url)?|find-links|trusted-host|registry|"
    r"npmRegistryServer|(?:extra_|default_)?index_url|find_links|trusted_host))"
    r"(?:[ \t]*[:?+]?=[ \t]*|[ \t]*:[ \t]+|[ \t]+)[\[\"']*([^\s\"'\],]+)",
    re.IGNORECASE | re.MULTILINE,
)
#: Of pip's own files only: elsewhere the letters mean other things.
_SHORT = re.compile(r"^[ \t]*-[if][ \t]*=?[ \t]*(\S+)", re.MULTILINE)
_BARE_HOST = re.compile(r"^[ \t]*(//[^\s/]+/\S*)|(git@[\w.-]+:\S*)", re.MULTILINE)
_VARIABLE = re.compile(r"\$|%\(")
_DOCUMENTATION = re.compile(r"(?:.*\.)?(?:example|example\.(?:com|net|org))\.?")


def is_read(path: str) -> bool:
    """Whether a tool reads this file of the tree."""
    return _READ.fullmatch(path) is not None


def read_files() -> list[Path]:
    """Those of this tree: tracked, or about to be."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(ROOT / path for path in told.split("\0") if path and is_read(path) and (ROOT / path).is_file())


def addresses(text: str, *, of_pip: bool = False) -> Iterator[str]:
    """What a file says that it must not."""
    found = [match.group() for match in _ADDRESS.finditer(text)]
    for form in (_SETTING, _BARE_HOST, *((_SHORT,) if of_pip else ())):
        found += [next(part for part in match.groups() if part) for match in form.finditer(text)]
    yield from (address for address in found if not _is_nobodys(address))


def _is_nobodys(address: str) -> bool:
    """Whether it leads nowhere but to this very machine, or is an example."""
    if _VARIABLE.match(address):
        return True
    host = _host(address)
    if _DOCUMENTATION.fullmatch(host) or host == "localhost" or _VARIABLE.match(host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(address: str) -> str:
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""
