"""No secret reaches a log: by the name of its field or by its looks, in texts, in objects and in tracebacks."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import structlog

from config.settings import load
from worker.logs import configure
from worker.redaction import redacted

CANARY = "fmt_abcdefghCANARYCANARYCANARYCANARY"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"event": f"key {CANARY} used"}, {"event": "key fmt_abcdefgh[hidden] used"}),
        ({"event": "x", "password": "CANARY"}, {"event": "x", "password": "[hidden]"}),
        ({"event": "x", "Authorization": "CANARY"}, {"event": "x", "Authorization": "[hidden]"}),
        ({"event": "postgresql://app:CANARY@db/fermata"}, {"event": "postgresql://app:[hidden]@db/fermata"}),
        ({"event": "redis://:CANARY@r:6379/0"}, {"event": "redis://:[hidden]@r:6379/0"}),
        ({"event": "sent whsec_CANARYcanary="}, {"event": "sent whsec_[hidden]"}),
        ({"event": "header Bearer CANARYcanary"}, {"event": "header Bearer [hidden]"}),
        (
            {"event": "x", "more": {"a": [{"secret": "CANARY"}, CANARY]}},
            {"event": "x", "more": {"a": [{"secret": "[hidden]"}, "fmt_abcdefgh[hidden]"]}},
        ),
        ({"event": ValueError(f"bad {CANARY}")}, {"event": "bad fmt_abcdefgh[hidden]"}),
        ({"event": "job done", "job_id": "fmt", "jobs": 3, "ok": True}, None),
    ],
)
def test_secrets_are_hidden_and_nothing_else(given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    """What is no secret stays as it is."""
    said = redacted(None, "info", dict(given))
    assert (given if expected is None else expected) == said
    assert "CANARY" not in repr(said)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.usefixtures("logs_restored")
def test_nothing_that_is_logged_holds_a_secret(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours and libraries', tracebacks among them, on the way that every process logs, in both forms."""
    configure(load({"FERMATA_LOG_FORMAT": form}, environment="test"))
    try:
        raise RuntimeError(f"postgresql://app:{CANARY}@db {CANARY}")
    except RuntimeError as error:
        structlog.get_logger(f"redaction-test-{form}").error("failed", exc_info=error, password=CANARY)
        logging.getLogger("a.library").warning("with %s", CANARY, exc_info=error)
    said = capsys.readouterr().err
    assert form == "console" or 2 == len([json.loads(line) for line in said.splitlines()])
    assert "RuntimeError" in said
    assert "CANARYCANARY" not in said
    assert "app:CANARY" not in said
