"""Traces: the spans of a job, submit → dispatch → claim → run → settle, in one trace across processes.

Off unless `FERMATA_OTLP_URL` says where spans go: then nothing is imported for them (redis-py looks at OpenTelemetry's
metrics by itself where they are installed, which takes 2 MB). The job's row carries
the span that submitted it, so whoever moves the job finds its trace, also days later and after a crash. A span has
ids, numbers and words of our own tables; never a request, and no message that may quote what somebody sent.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from os import getpid
from types import MappingProxyType
from typing import Any, Protocol

import structlog

from config.settings import Settings, SettingsError

log = structlog.get_logger(__name__)

#: Seconds between two deliveries of spans, for one delivery, and for the last one of a process that ends.
_DELIVERY_SECONDS, _TIMEOUT_SECONDS, CLOSE_SECONDS = 1.0, 5.0, 3.0
#: What a span may say of something: nothing that has to be turned into text first.
Fact = str | int | float | bool

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_arrived: ContextVar[str | None] = ContextVar("traceparent", default=None)


class Span(Protocol):
    """A step that is under way."""

    @property
    def traceparent(self) -> str | None:
        """As W3C writes it: what a further step names as its parent."""

    def say(self, **facts: Fact | None) -> None:
        """Note what became known of it."""

    def failed(self, why: str) -> None:
        """It did not do what it was for. `why`: a word of our own tables."""


@dataclass(frozen=True, slots=True)
class _Unseen:
    """Tracing is off: further steps still belong to the trace that came in."""

    traceparent: str | None

    def say(self, **facts: Fact | None) -> None:
        pass

    def failed(self, why: str) -> None:
        pass


class _Seen:
    """A span of OpenTelemetry's."""

    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def say(self, **facts: Fact | None) -> None:
        for name, value in facts.items():
            if value is not None:
                self._span.set_attribute(f"fermata.{name}", value)

    def failed(self, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, why))


#: What makes spans in this process, and what brings them away.
_tracer: Any = None
_provider: Any = None


def configure(settings: Settings, process: str) -> None:
    """Set up tracing for this process, once, after its logs. `process`: api, scheduler, worker or command.

    Raises `SettingsError` where it is wanted and OpenTelemetry is not installed.
    """
    global _tracer, _provider
    if settings.otlp_url is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise SettingsError(
            "FERMATA_OTLP_URL is given, but OpenTelemetry is not installed: install the extra `otel`"
        ) from None
    host = socket.gethostname()
    about = {"service.name": f"fermata-{process}", "host.name": host, "service.instance.id": f"{host}-{getpid()}"}
    # A provider of our own: what other libraries would tell of themselves is theirs, and may quote anything.
    _provider = TracerProvider(
        resource=Resource(about),
        sampler=ParentBased(TraceIdRatioBased(settings.trace_share)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(
        endpoint=settings.otlp_url, headers=settings.otlp_header_pairs, timeout=_TIMEOUT_SECONDS
    )
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000 * _DELIVERY_SECONDS))
    _tracer = _provider.get_tracer("fermata")


def close() -> None:
    """Send what is left, for `CLOSE_SECONDS` at most: a collector that is away keeps no process from ending."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is None:
        return
    last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    last.start()
    last.join(CLOSE_SECONDS)
    if last.is_alive():
        log.warning("the last spans were not delivered", seconds=CLOSE_SECONDS)


def is_on() -> bool:
    """Whether this process makes spans."""
    return _tracer is not None


def arrived_with(traceparent: bytes) -> None:
    """What the request under way says of its trace. What can't be one is passed over, as W3C has it."""
    text = traceparent.decode("ascii", "replace")
    if trace_id_of(text) is not None:
        _arrived.set(text)


def arrived() -> str | None:
    """The traceparent of the request under way."""
    return _arrived.get()


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace that a traceparent belongs to; None for what is none."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None or traceparent is None or traceparent.startswith("ff"):
        return None
    return found[1] if found[1].strip("0") and found[2].strip("0") else None


@contextmanager
def span(
    name: str, parent: str | None, facts: Mapping[str, Fact] = MappingProxyType({}), began: int | None = None
) -> Iterator[Span]:
    """A step of the trace of `parent`, or of a new trace; ends with the block, failed if that raises.

    `began`: when it did, in nanoseconds since 1970, where that was before now.
    """
    if _tracer is None:
        yield _Unseen(parent)
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # None: whatever span of the caller's own is under way in this process, if any.
    above = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    made = _tracer.start_span(name, above, start_time=began)
    seen = _Seen(made)
    seen.say(**facts)
    try:
        yield seen
    except BaseException as error:
        seen.failed(type(error).__name__)  # never its message
        raise
    finally:
        made.end()
