"""`python -m tests.integration.frozen ACCOUNT…`: a worker that freezes inside its batch, holding these accounts.

It stops itself by SIGSTOP after it has the locks, and says what became of its batch once it is continued.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.integration.books import a_store
from worker.credits.account_ledger import NewLot
from worker.credits.lots import LotSource
from worker.credits.page import Page

#: After this long PostgreSQL ends the frozen session.
IDLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class GiveAndFreeze:
    """Credits that must never come to be: the process freezes before their COMMIT."""

    account_id: str
    job_id: None = None

    def decide(self, page: Page) -> None:
        page.ledger.grant(1_000, NewLot(LotSource.GRANT, "grant"), None, "frozen")
        if self.account_id.endswith("last"):
            os.kill(os.getpid(), signal.SIGSTOP)


async def main(url: str, accounts: Sequence[str]) -> None:
    """Freeze in one batch over all accounts; print how each operation ended."""
    async with a_store(url, idle_transaction_seconds=IDLE_SECONDS) as operations:
        answers = await asyncio.gather(
            *(operations.do(GiveAndFreeze(account)) for account in accounts), return_exceptions=True
        )
    sys.stdout.write(" ".join(sorted({type(answer).__name__ for answer in answers})))


if __name__ == "__main__":
    asyncio.run(main(os.environ["FROZEN_URL"], sys.argv[1:]))
