"""A kind that does nothing, so that what is measured is ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tasks.kind import AudioInfo, Context, InputFile, InputLimits, Request, RunLimits, Usage


class NullRequest(Request):
    """Nothing is asked."""


class Null:
    """Ends at once and makes no output; its price is the job's base."""

    name: ClassVar[str] = "null"
    request_model: ClassVar[type[Request]] = NullRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: NullRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """No outputs."""
        return ()

    async def run(
        self, request: NullRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        """Nothing."""
