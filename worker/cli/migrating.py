"""Migrating as the owner, and making the roles of a deployment first."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from worker.cli.values import Misused
from worker.local.passwords import check_password, kept_passwords
from worker.local.roles import OWNER_ROLE, ROLES, ensure_roles
from worker.store.database import translated
from worker.store.migrate import migrate


def made_roles(superuser_url: str, passwords: str | None, database: str) -> str:
    """Make the roles and the database where they are missing; returns the owner's URL.

    The passwords are those of the file, which is made with new ones where it isn't there. They are never printed.
    """
    if passwords is None:
        raise Misused("passwords", "--roles needs a file that keeps the passwords, such as --passwords roles.json")
    kept = _kept(Path(passwords))

    async def made() -> None:
        with translated():
            await ensure_roles(superuser_url, kept, database=database)

    asyncio.run(made())
    return url_of(superuser_url, OWNER_ROLE, kept[OWNER_ROLE], database)


def migrated(owner_url: str) -> str:
    """Bring the database to the newest schema; returns its revision."""

    async def run() -> str:
        with translated():
            return await migrate(owner_url)

    return asyncio.run(run())


def url_of(url: str, role: str, password: str, database: str) -> str:
    """The same server as another role, in another database."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{quote(password, safe='')}@{place}", path=f"/{quote(database)}"))


def _kept(path: Path) -> dict[str, str]:
    if path.exists() and (not path.is_file() or path.stat().st_mode & 0o077):
        raise Misused("passwords", f"{path} must be a file that we alone can read (0600)")
    if not path.absolute().parent.is_dir():
        raise Misused("passwords", f"{path} must lie in a folder that is there")
    try:
        kept = kept_passwords(path, ROLES)
        for password in kept.values():
            check_password(password)
        return kept
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        raise Misused(
            "passwords", f"{path} is not a file of ours: it must hold a JSON object of roles and passwords"
        ) from None
    except ValueError:
        raise Misused("passwords", f"{path} holds a password that is not of printable ASCII") from None
    except OSError as error:
        raise Misused("passwords", (error.strerror or "can't be used").lower()) from None
