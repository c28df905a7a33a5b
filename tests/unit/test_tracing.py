"""What a traceparent is, that tracing costs nothing while it is off, and whose span a client's request names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, suppress

import httpx2
import pytest
import structlog
from opentelemetry import trace

from config.settings import SettingsError, load
from fermata_client.client import Fermata
from fermata_client.errors import FermataError
from worker import tracing
from worker.logs import configure

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"cc-{TRACE}-{SPAN}-00", TRACE),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_traceparent_is_one(given: str | None, expected: str | None) -> None:
    """As W3C writes it; anything else is passed over."""
    assert expected == tracing.trace_id_of(given)


def test_what_delivers_spans_is_not_loaded_while_it_is_off() -> None:
    """A worker's memory is its models'. The same process loads it once a collector is named."""
    program = (
        "import sys, worker.boot, worker.processes, worker.queue.process\n"
        "from config.settings import load\n"
        "from worker import tracing\n"
        "tracing.configure(load({}), 'worker')\n"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.proto', 'google.protobuf', 'requests')\n"
        "print(tracing.is_on(), [name for name in heavy if name in sys.modules])\n"
        "tracing.configure(load({'FERMATA_OTLP_URL': 'http://127.0.0.1:9/v1/traces'}), 'worker')\n"
        "print(tracing.is_on(), len([name for name in heavy if name in sys.modules]))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert ["False []", "True 4"] == said.splitlines()


def test_without_the_extra_its_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, as for any setting."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"FERMATA_OTLP_URL .* extra `otel`"):
        tracing.configure(load({"FERMATA_OTLP_URL": "http://127.0.0.1:9/v1/traces"}), "worker")
    assert not tracing.is_on()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FERMATA_OTLP_URL", "127.0.0.1:4318"),
        ("FERMATA_OTLP_URL", "http://me:hunter2@collector/v1/traces"),
        ("FERMATA_OTLP_HEADERS", "hunter2"),
        ("FERMATA_OTLP_HEADERS", "a key=hunter2"),
        ("FERMATA_OTLP_HEADERS", "x-key=hunter2\r\nx: y"),
        ("FERMATA_TRACE_SHARE", "1.5"),
        ("FERMATA_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_setting_is_refused_without_its_value(name: str, value: str) -> None:
    """Its name is said, and no secret."""
    with pytest.raises(SettingsError, match=name) as refusal:
        load({name: value})
    assert "hunter2" not in str(refusal.value)


def test_headers_for_the_collector_come_by_name() -> None:
    """A value may have signs of equality in it."""
    settings = load({"FERMATA_OTLP_HEADERS": "authorization=Basic Zm9v==, x-team=music"})
    assert {"authorization": "Basic Zm9v==", "x-team": "music"} == settings.otlp_header_pairs
    assert "Zm9v" not in repr(settings)


@pytest.mark.usefixtures("logs_restored")
@pytest.mark.parametrize(("chosen", "is_json"), [("json", True), ("console", False), ("auto", True)])
def test_the_form_of_logs_is_a_setting(chosen: str, is_json: bool) -> None:
    """`auto` asks whether somebody sits at a terminal: nobody does here."""
    with redirect_stderr(io.StringIO()) as said:
        configure(load({"FERMATA_LOG_FORMAT": chosen}))
        structlog.get_logger(f"form-{chosen}").info("submitted", job_id="j-1")
    line = said.getvalue()
    assert is_json == line.startswith("{")
    assert ("submitted", "j-1") == (json.loads(line)["event"], json.loads(line)["job_id"]) if is_json else "j-1" in line
    assert "\x1b" not in line


def test_a_client_names_the_span_that_its_caller_is_in() -> None:
    """Where OpenTelemetry is at work there; else nothing is said of traces."""
    sent: list[str | None] = []

    def turned_down(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.headers.get("traceparent"))
        return httpx2.Response(404)

    context = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), False, trace.TraceFlags(1))
    with Fermata("http://here", "fmt_x", transport=httpx2.MockTransport(turned_down)) as client:
        for caller in (trace.INVALID_SPAN, trace.NonRecordingSpan(context)):
            with trace.use_span(caller), suppress(FermataError):
                client.balance("ada")
    assert [None, f"00-{TRACE}-{SPAN}-01"] == sent
