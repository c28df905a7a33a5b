"""Erase an account: prompts, words and sound are gone, from rows and from the store; the books stay exact.

What stays says nothing of a person but the ids and references that the caller gave: the journal, what was charged, and
of each request its numbers, its switches and the choices that a price depends on. `tests/personal.py` has it column by
column, docs/RUNBOOK.md for people. What was submitted, sold or put since the erasure began stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from tasks.kind import Kind
from worker.artifacts.store import ArtifactStore
from worker.pricing import request_fields
from worker.store.erasing import Erasing

_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Erased:
    """How many artifacts went with their files. Done again, there are none."""

    account: str
    artifacts: int


async def erase(
    erasing: Erasing,
    artifacts: ArtifactStore,
    kinds: Mapping[str, Kind],
    account_id: str,
    reason: str,
    actor: str,
) -> Erased:
    """Erase what people wrote and made. Files go before their rows, so that an erasure that dies can be done again.

    Raises `UnknownAccount`, `Refused` (then nothing was erased), `ArtifactError` (then it is to be done again).
    """
    await erasing.begin(account_id, actor, reason)
    kept = sorted(_choices(kinds))
    at: UUID | None = _FIRST
    while at is not None:
        at = await erasing.jobs(account_id, at, kept)
    entry: int | None = 0
    while entry is not None:
        entry = await erasing.log(account_id, entry)
    forgotten, after = 0, _FIRST
    while page := await erasing.artifacts(account_id, after):
        for _, key in page:
            await artifacts.remove(key)
        after = page[-1][0]
        forgotten += await erasing.forget(account_id, [artifact_id for artifact_id, _ in page])
    return Erased(account_id, forgotten)


def _choices(kinds: Mapping[str, Kind]) -> set[str]:
    """The fields that hold one of a few words of ours, in every kind that has them."""
    fields: dict[str, bool] = {}
    for found in request_fields(kinds).values():
        for name, values in found.items():
            fields[name] = fields.get(name, True) and values is not None
    return {name for name, is_choice in fields.items() if is_choice}
