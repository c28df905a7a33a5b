"""`python -m tests.debian COMMAND…`: run a command with the URLs of Debian's own PostgreSQL and Redis.

They are older than the ones in our wheels (Debian 12: 15 and 7.0), and the oldest we promise to run on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import may_create_databases, scratch_folder
from worker.local.binaries import DEBIAN_POSTGRES, PostgresBinaries
from worker.local.postgres import EmbeddedPostgres
from worker.local.roles import dsn
from worker.local.valkey import EmbeddedValkey

REDIS = Path("/usr/bin/redis-server")


def oldest_postgres() -> PostgresBinaries | None:
    """The oldest PostgreSQL that Debian has here; None: none is installed."""
    majors = sorted(int(folder.parent.name) for folder in DEBIAN_POSTGRES.glob("[0-9]*/bin"))
    return PostgresBinaries(DEBIAN_POSTGRES / str(majors[0]) / "bin", majors[0]) if majors else None


def main(command: list[str]) -> int:
    """The command's exit code."""
    binaries = oldest_postgres()
    if binaries is None:
        raise SystemExit("Debian's PostgreSQL is not installed: apt-get install postgresql")
    with scratch_folder() as folder:
        postgres = EmbeddedPostgres(folder / "postgres", durable=False, binaries=binaries)
        redis = EmbeddedValkey(folder / "redis", binary=REDIS)
        try:
            postgres.start()
            redis.start()
            may_create_databases(postgres)
            urls = {
                "FERMATA_DATABASE_URL": dsn(postgres.app_url),
                "FERMATA_OWNER_DATABASE_URL": dsn(postgres.owner_url),
                "FERMATA_REDIS_URL": redis.url(),
            }
            return subprocess.run(command, env={**os.environ, **urls}, check=False).returncode
        finally:
            redis.stop()
            postgres.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
