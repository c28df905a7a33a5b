"""How a route answers: the value as JSON, by the same encoder as the command line's documents."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import Response

_encode = msgspec.json.Encoder().encode


def answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The document, whose keys are those of `fermata … --json`."""
    return Response(_encode(document), status, dict(headers) if headers else None, "application/json")
