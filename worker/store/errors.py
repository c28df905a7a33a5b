"""The errors that leave the store. No SQLAlchemy or asyncpg exception does.

StoreError
├── LedgerUnavailable      PostgreSQL can't be reached or is too busy: nothing was decided; wait and try again
│   ├── LedgerUnfit        it answers, but can't do that as it stands: an operator's to mend; wait, and say so loudly
│   ├── AccountBusy        others hold the account: somebody else's job may have the slot meanwhile
│   └── MigrationWaited    a table was in use all the time: nothing was changed; end who is in the way, migrate again
├── OutcomeUnknown         the answer of a COMMIT was lost: read the row to learn what happened
├── UnknownAccount         no such account: create it first
├── UnknownJob             no such job in this account
├── UnknownArtifact        no such artifact
├── UnknownKey             no such key of the API
├── UnknownWebhook         no such endpoint
├── UnknownVoice           no such voice, nor ever one
├── RefusedByDatabase      a CHECK, or a value that fits nowhere, stopped a bug of ours: nothing was written; report it
├── InsufficientCredits    the account can't pay what was asked for: it takes credits, then ask again
├── Conflict               the same reference or key with another body: use a new one
└── Refused                the request can't be done as asked: says which field, and why
    ├── NotInPlan          the account's plan doesn't allow it: a larger plan would
    ├── NoPrice            the book in force doesn't price that kind: nobody sells it now
    └── Overtaken          somebody else changed the books since the draft began: begin anew from what is there now
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StoreError(Exception):
    """The root of what the store raises."""


class LedgerUnavailable(StoreError):
    """PostgreSQL can't be reached, or a lock was not to be had. Nothing was written."""


class LedgerUnfit(LedgerUnavailable):
    """PostgreSQL can't do it as it stands: for rights, tables, a disk or a pooler. Nothing was written."""


class AccountBusy(LedgerUnavailable):
    """An operation that has no time to wait met its account busy for too long. Nothing was written."""


class MigrationWaited(LedgerUnavailable):
    """A migration gave way to others for as long as it has patience. It was rolled back; says who was in the way."""


class OutcomeUnknown(StoreError):
    """The connection broke around a COMMIT. The caller reads the row by its token."""


class RefusedByDatabase(StoreError):
    """The schema turned an operation away that our own guards had let through."""

    @classmethod
    def of(cls, error: BaseException) -> RefusedByDatabase:
        """Names the constraint, never a value."""
        cause = getattr(getattr(error, "orig", None), "__cause__", None)
        constraint = getattr(cause or error, "constraint_name", None) or type(cause or error).__name__
        return cls(f"the database refused it: {constraint}")


class UnknownAccount(StoreError):
    def __init__(self, account_id: str) -> None:
        super().__init__(f"account: no account {account_id!r}; create it with `fermata accounts create`")
        self.account_id = account_id


class UnknownJob(StoreError):
    def __init__(self, job_id: object) -> None:
        super().__init__(f"job: no job {job_id}")
        self.job_id = job_id


class UnknownArtifact(StoreError):
    def __init__(self, artifact_id: object) -> None:
        super().__init__(f"artifact: no artifact {artifact_id}")


class UnknownKey(StoreError):
    def __init__(self, given: object) -> None:
        super().__init__(f"key: no key {given}")


class InsufficientCredits(StoreError):
    """The account's credits, less what its queued jobs will take, don't cover a job. Nothing was stored.

    `frozen`: credits that were bought and can't be spent, as the account has no active subscription; None: it has one.
    """

    def __init__(
        self,
        account_id: str,
        needed: int,
        available: int,
        smallest_pack: Mapping[str, Any] | None,
        frozen: int | None = None,
    ) -> None:
        super().__init__(
            f"the job needs {needed:,} credits, the account has {available:,} for it{_frozen_words(frozen)}"
        )
        self.account_id = account_id
        self.needed = needed
        self.available = available
        self.smallest_pack = smallest_pack
        self.frozen = frozen or 0


def _frozen_words(frozen: int | None) -> str:
    if frozen is None:
        return ""
    if not frozen:
        return "; bought credits would not do without an active subscription"
    return f", and {frozen:,} bought ones, frozen until it has an active subscription: subscribe or resume it"


class UnknownWebhook(StoreError):
    def __init__(self, webhook_id: object) -> None:
        super().__init__(f"webhook: no endpoint {webhook_id}; `fermata webhooks list` shows all")
        self.webhook_id = webhook_id


class UnknownVoice(StoreError):
    def __init__(self, name: str) -> None:
        super().__init__(f"voice: no voice {name!r}")


class Conflict(StoreError):
    """The same key or reference was used before with something else."""

    def __init__(self, field: str, value: str, problem: str) -> None:
        super().__init__(f"{field}: {value!r} {problem}")
        self.field = field
        self.value = value


class Refused(StoreError):
    """What was asked is not possible; nothing was written."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotInPlan(Refused):
    """The account's plan doesn't have the kind or the model. Nothing was written."""


class NoPrice(Refused):
    """The book in force has no price for a kind of job. Never priced at 0."""


class Overtaken(Refused):
    """A draft of a book began before another one was put in force or planned, which it would silently undo."""
