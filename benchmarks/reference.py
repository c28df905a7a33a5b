"""The yardstick: PostgreSQL's own `pgbench` on the same server, in a database of its own."""

from __future__ import annotations

import re
import subprocess

from benchmarks.server import made_database
from worker.local.binaries import find_pgbench
from worker.local.postgres import EmbeddedPostgres
from worker.local.roles import dsn
from worker.local.waiting import finished

DATABASE = "pgbench"
#: 5 million accounts, about 750 MB: more than the server's own cache, as a stock test should be.
SCALE = 50
CLIENTS = 16
THREADS = 2
NAME = f"-M prepared -c {CLIENTS} -j {THREADS}, scale {SCALE}"


class Reference:
    """A made pgbench database."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._pgbench = find_pgbench()
        self._url = dsn(postgres.url("postgres", DATABASE))
        finished(made_database(postgres.superuser_url, DATABASE))
        self._run("-i", "-q", "-s", str(SCALE))

    def tps(self, seconds: int) -> float:
        """Transactions a second over that long, without connecting."""
        output = self._run("-M", "prepared", "-n", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(seconds))
        found = re.search(r"tps = ([\d.]+)", output)
        assert found, output
        return float(found[1])

    def _run(self, *arguments: str) -> str:
        command = [str(self._pgbench), *arguments, self._url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pgbench {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout
