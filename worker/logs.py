"""Logs on stderr: an event a line, as JSON or for people to read. No secret is ever an argument."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from config.settings import Settings
from worker.redaction import redacted


class _Forgiving:
    """A stream whose reader may go away: no job fails because nobody reads the log any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def leave_to_host() -> None:
    """For our code inside somebody else's process: what it logs goes through `logging`, as that process has set it up.

    A host with a configuration of its own for structlog keeps it; nothing of ours is printed of its own accord.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            redacted,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def configure(settings: Settings) -> None:
    """Set up logging for this process, once."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.raiseExceptions = False  # of handlers: the same for what libraries log
    readable = sys.stderr.isatty() if settings.log_format == "auto" else settings.log_format == "console"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer()
    )
    # Tracebacks become text first: what they quote is looked through like the rest.
    plain: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, redacted]
    structlog.configure(
        processors=[*shared, *plain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Forgiving(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library: their warnings only, in the same shape.
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *plain, renderer],
        foreign_pre_chain=shared,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
