"""How an output is finished, whichever engine made it: its format, loudness, tags, and the peaks that players draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fermata_client.requests import FinishedRequest, Format
from tasks.kind import field_of

#: The fields that say how outputs are finished: our doing, so no engine is told.
FIELDS = frozenset(FinishedRequest.model_fields)


@dataclass(frozen=True, slots=True)
class Finish:
    """A `FinishedRequest` as it travels to where sound is written."""

    format: Format
    loudness: float | None = None
    peaks: bool = False
    title: str | None = None
    #: Further tags: what made it.
    made_by: Mapping[str, str] = field(default_factory=dict)


def finish_of(kind: str, request: Any, job_id: UUID) -> Finish:
    """How the outputs of this request are finished. Their tags name the job, the tier and the seed."""
    made_by = {"job": str(job_id), "kind": kind, "model": str(request.model)}
    seed = field_of(request, "seed")
    if seed is not None:
        made_by["seed"] = str(seed)
    return Finish(request.format, request.loudness, request.peaks, request.title, made_by)
