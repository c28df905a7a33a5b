"""Secrets stay where they belong: each is planted as a canary in a whole running system, then looked for everywhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import redis

from tests.acceptance.up import System, forking, running_system
from tests.proc import family_of
from tests.redis_text import everything_in
from tests.waiting import wait_until
from worker.local.ports import free_port

#: What a customer wrote: in the books and in the answers to that customer, nowhere else.
WORDS = "canary-words-of-a-customer"
#: What stands in Redis as others' words might: long, and much the same.
LONG = "canary song " * 100


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Secrets of a deployment, in its environment, in files of secrets, and in a provider's file."""
    secrets = {
        "bucket's key": "canary-bucket-key-id",
        "bucket's secret": "canary-bucket-secret",
        "links' secret": "canary-link-secret-of-32-characters",
        "provider's secret": "canary-provider-secret",
    }
    for name in ("bucket's secret", "links' secret", "provider's secret"):
        (tmp_path / name.split("'")[0]).write_text(secrets[name])
    (tmp_path / "engines.toml").write_text(
        '[engines.tin]\ntype = "ace_step_server"\nurl = "https://engines.invalid"\n'
        f'secret_file = "{tmp_path / "provider"}"\n[tiers.generation]\nstudio = "tin"\n'
    )
    for name, value in {
        "ARTIFACTS_KEY_ID": secrets["bucket's key"],
        "ARTIFACTS_SECRET_FILE": str(tmp_path / "bucket"),
        "LINK_SECRET_FILE": str(tmp_path / "links"),
        "ENGINES": str(tmp_path / "engines.toml"),
        "LOG_LEVEL": "debug",
        "WEBHOOK_PRIVATE_TARGETS": "true",
        "PUBLIC_URL": "https://fermata.invalid",
    }.items():
        monkeypatch.setenv(f"FERMATA_{name}", value)
    return secrets


@pytest.fixture
def system(planted: dict[str, str]) -> Iterator[System]:
    """A whole system that was given them, and says as much as it can."""
    del planted
    with running_system() as running, forking(running) as typing:
        yield typing


def test_no_secret_leaves_its_place(planted: dict[str, str], system: System) -> None:
    """Not in a process list, log, `doctor`, the metrics, answer or Redis: when all goes well, and when much fails."""
    secrets = {**planted, **_passwords(system)}
    key = json.loads(system.typed("fermata keys create admin --label canary --as test --json"))["key"]
    hook = f"http://127.0.0.1:{free_port()}/nobody"
    secrets["API key"] = key
    secrets["webhook's secret"] = json.loads(
        system.typed(
            f"fermata webhooks create {hook} --event ended --as test --json", FERMATA_WEBHOOK_PRIVATE_TARGETS="true"
        )
    )["secret"]
    system.typed("fermata accounts create ada --as test && fermata accounts grant ada 500 --as test")
    # A job whose end is told to nobody; others that wait in Redis and in the books.
    song = f"--account ada --param seconds=5 --param prompt={shlex.quote(WORDS)} --as test"
    system.typed(f"fermata jobs submit generation {song} --wait")
    tries = 'psql "$FERMATA_OWNER_DATABASE_URL" -qtAc "SELECT coalesce(max(attempts), 0) FROM deliveries"'
    wait_until(lambda: int(system.typed(tries)) > 0, "a delivery has failed", seconds=60)
    system.typed("fermata pause generation --as test")
    system.typed(f"fermata jobs submit generation {song}")

    answers = [
        httpx2.request(method, system.api + path, headers={"Authorization": f"Bearer {one}", **more}, content=body).text
        for one in (key, key[:-4] + "0000", f"fmt_{'canary' * 8}")
        for method, path, body, more in (
            ("GET", "/v1/jobs/none", b"", {}),
            ("POST", "/v1/jobs", b'{"account":', {"Idempotency-Key": "k", "Content-Type": "application/json"}),
            ("GET", "/v1/keys", b"", {}),
            ("GET", "/metrics", b"", {}),
            ("GET", "/readyz", b"", {}),
        )
    ]
    places = {
        "process list": "\n".join(_command_line(pid) for pid in [system.child.pid, *family_of(system.child.pid)]),
        "logs": _logs(system),
        "doctor": system.typed("fermata doctor --json || true"),
        "queues": system.typed("fermata queues --json"),
        "answers": "\n".join(answers),
        "Redis": _all_of_redis(system),
    }
    assert [] == [(what, place) for place, text in places.items() for what, secret in secrets.items() if secret in text]
    told = {place for place, text in places.items() if WORDS in text}
    assert told <= {"answers"}, "a customer's words stand where ops look"
    # The canaries sing: what was looked through is what was meant to be.
    assert "fermata" in places["process list"]
    assert "worker started" in places["logs"]
    assert LONG in places["Redis"]
    assert "fermata_" in places["answers"]


def _passwords(system: System) -> dict[str, str]:
    """Of every database role, and of Valkey."""
    found = {}
    for path in system.data.rglob("*.passwords"):
        for role, password in json.loads(path.read_text()).items():
            found[f"password of {role}"] = password
    assert len(found) >= 5
    found["Valkey's password"] = _redis_url(system).split("@")[0].rpartition(":")[2]
    return found


def _redis_url(system: System) -> str:
    url = re.search(r"FERMATA_REDIS_URL='?([^'\n]+)", (system.data / "env").read_text())
    assert url is not None
    return url[1]


def _logs(system: System) -> str:
    """What our processes said, and the logs of both servers."""
    files = [system.output, *system.data.rglob("*.log"), *system.data.rglob("log")]
    return "\n".join(path.read_text(errors="replace") for path in files if path.is_file())


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return ""  # it has ended meanwhile


def _all_of_redis(system: System) -> str:
    with redis.Redis.from_url(_redis_url(system)) as client:
        client.hset("canary", mapping={"song": LONG})
        return everything_in(client)
