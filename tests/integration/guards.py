"""`python -m tests.integration.guards`: writes `worker/store/audit_guarded.py` anew, after a migration."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from tests.integration.books import opened
from tests.servers import fresh_database, running_servers
from worker.store.audit_guards import guards_of
from worker.store.doctoring import known_head

GUARDED = Path(__file__).parents[2] / "worker" / "store" / "audit_guarded.py"


def module_of(guards: Mapping[str, tuple[str, str]], revision: str) -> str:
    """The module that says so."""
    lines = "".join(f'    "{name}": "{digest}",\n' for name, (digest, _) in sorted(guards.items()))
    return (
        '"""What the migrations make of functions, triggers, constraints and unique keys: digests of their content.\n\n'
        "Written by `python -m tests.integration.guards`, after each migration; a test holds it against one that is\n"
        'migrated.\n"""\n\n'
        "from __future__ import annotations\n\n"
        "from collections.abc import Mapping\n\n"
        f'#: The migration that they are of.\nREVISION = "{revision}"\n\n'
        f"GUARDED: Mapping[str, str] = {{\n{lines}}}\n"
    )


async def main() -> None:
    """Migrate a database of its own, and write down what came of it."""
    with running_servers(dict(os.environ)) as servers:
        async with fresh_database(servers) as database, opened(database) as store, store.engine.connect() as connection:
            GUARDED.write_text(module_of(await guards_of(connection), known_head()), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
