"""Small providers of sound, on a port of their own: they speak Cog's or ACE-Step's HTTP, and fail when told to.

What they answer with is real audio. `faults` go wrong one after the other, each at the first request that fits.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import soundfile

RATE = 44_100


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request whose method and path begin with `at`, as "GET /predictions"."""

    at: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Close the connection in the middle of the answer's body.
    cut: bool = False
    #: Do what was asked, but say nothing until the provider is closed.
    stall: bool = False


@dataclass(slots=True)
class Heard:
    """One request as it came."""

    line: str  # "PUT /predictions/ID"
    headers: Mapping[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Job:
    """Work that the provider has taken on."""

    given: Mapping[str, Any]
    looks: int = 0
    #: Where to say that it is done.
    webhook: str | None = None
    cancelled: bool = False
    failed: bool = False


class Provider:
    """What all of them have: a port, faults, a memory of what was asked."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.heard: list[Heard] = []
        self.jobs: dict[str, Job] = {}
        #: Looks at a job before it is done. None: it is never done.
        self.looks_needed: int | None = 2
        #: Seconds of sound per second asked, and its loudest sample.
        self.stretch, self.peak = 1.0, 0.5
        #: Stretches of the next sounds, before `stretch` holds again.
        self.stretches: list[float] = []
        #: Outputs that are not given.
        self.withheld = 0
        self.made = 0
        #: Nobody is answered.
        self.dead = False
        self.at_once = self.most_at_once = 0
        self.closed = threading.Event()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def asked(self, line: str) -> list[Heard]:
        """The requests whose method and path begin so."""
        with self.lock:
            return [one for one in self.heard if one.line.startswith(line)]

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> tuple[int, Any]:
        """A status, and a body: bytes as they are, all else as JSON."""
        raise NotImplementedError

    def sound(self, seconds: float, hertz: float = 440) -> bytes:
        """A tone as a FLAC file."""
        self.made += 1
        stretch = self.stretches.pop(0) if self.stretches else self.stretch
        frames = np.arange(round(seconds * stretch * RATE))
        tone = self.peak * np.sin(frames * (2 * np.pi * hertz / RATE))
        file = io.BytesIO()
        soundfile.write(file, np.stack([tone, tone], axis=1), RATE, format="FLAC")
        return file.getvalue()

    def die(self) -> None:
        """As a service that was killed: nobody is answered, and all that it knew is gone."""
        with self.lock:
            self.dead = True
            self.jobs.clear()

    def _fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if line.startswith(fault.at):
                self.faults.remove(fault)
                return fault
        return None

    def _handler(provider) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                parts = urlsplit(self.path)
                line = f"{self.command} {parts.path}"
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if provider.dead:
                    self.close_connection = True
                    return
                with provider.lock:
                    provider.heard.append(Heard(line, dict(self.headers.items()), json.loads(body) if body else None))
                    provider.at_once += 1
                    provider.most_at_once = max(provider.most_at_once, provider.at_once)
                    fault = provider._fault(line)
                try:
                    self.reply(line, parts.path, parse_qs(parts.query), json.loads(body) if body else None, fault)
                finally:
                    with provider.lock:
                        provider.at_once -= 1

            def reply(
                self, line: str, path: str, query: Mapping[str, list[str]], body: Any, fault: Fault | None
            ) -> None:
                if fault is not None and fault.status:
                    self.send(fault.status, b"{}", fault.headers)
                    return
                with provider.lock:
                    status, answer = provider.answer(self.command, path, query, body)
                if fault is not None and fault.stall:
                    provider.closed.wait(30)
                    return
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send(status, content, fault.headers if fault else {}, cut=fault is not None and fault.cut)

            def send(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

            do_GET = do_PUT = do_POST = serve  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


class CogProvider(Provider):
    """A model behind Cog. Polled, it is as Replicate's service; held, as plain Cog."""

    health = "READY"
    #: Whether it says that a prediction is done before it has even answered that it took it on.
    hasty = False
    #: Where it says that its results lie; None: with itself.
    results: list[str] | None = None

    def say_done(self, name: str, **query: str) -> int:
        """POST the prediction to its webhook, with its query changed so; the status that came back."""
        webhook = self.jobs[name].webhook
        assert webhook is not None
        parts = urlsplit(webhook)
        asked = urlencode({**{key: values[0] for key, values in parse_qs(parts.query).items()}, **query})
        body = json.dumps(self._prediction(name, self.jobs[name])).encode()
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("POST", f"{parts.path}?{asked}", body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> tuple[int, Any]:
        match [method, *path.strip("/").split("/")]:
            case ["GET", "health-check"]:
                return 200, {"status": self.health}
            case ["PUT", "predictions", name]:
                job = self.jobs.setdefault(name, Job(body["input"], webhook=body.get("webhook")))
                if self.hasty:
                    self.say_done(name)
                while self.looks_needed is not None and not body.get("async") and job.looks < self.looks_needed:
                    job.looks += 1
                return 200, self._prediction(name, job)
            case ["GET", "predictions", name]:
                if name not in self.jobs:
                    return 404, {}
                self.jobs[name].looks += 1
                return 200, self._prediction(name, self.jobs[name])
            case ["POST", "predictions", name, "cancel"]:
                self.jobs[name].cancelled = True
                return 200, {}
            case ["GET", "files", name, output]:
                return 200, self.sound(float(self.jobs[name].given["seconds"]), 220 * (1 + len(output)))
        return 404, {}

    def _prediction(self, name: str, job: Job) -> dict[str, Any]:
        if job.failed:
            return {"id": name, "status": "failed", "error": "out of cheese"}
        if self.looks_needed is None or job.looks < self.looks_needed:
            return {"id": name, "status": "processing"}
        names = list(job.given.get("stems", [f"song-{n}" for n in range(job.given.get("variants", 1))]))
        files = {one: f"/files/{name}/{one}" for one in names[: len(names) - self.withheld]}
        output = files if "stems" in job.given else self.results or list(files.values())
        return {"id": name, "status": "succeeded", "output": output, "metrics": {"predict_time": 1.25}}


class AceStepProvider(Provider):
    """An ACE-Step server."""

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> tuple[int, Any]:
        match [method, path]:
            case ["POST", "/release_task"]:
                task = f"task-{len(self.jobs) + 1}"
                self.jobs[task] = Job(body)
                return 200, {"data": {"task_id": task}, "code": 200}
            case ["POST", "/query_result"]:
                found = [(task, self.jobs[task]) for task in body["task_id_list"] if task in self.jobs]
                return 200, {"data": [self._status(task, job) for task, job in found], "code": 200}
            case ["GET", "/v1/audio"]:
                task = query["path"][0].split("/")[1]
                return 200, self.sound(float(self.jobs[task].given["audio_duration"]))
        return 404, {}

    def _status(self, task: str, job: Job) -> dict[str, Any]:
        job.looks += 1
        if job.failed:
            return {"task_id": task, "status": 2, "result": "[]"}
        if self.looks_needed is None or job.looks < self.looks_needed:
            return {"task_id": task, "status": 0, "result": "[]"}
        songs = [{"file": f"/v1/audio?path=/{task}/{n}.flac"} for n in range(job.given["batch_size"] - self.withheld)]
        return {"task_id": task, "status": 1, "result": json.dumps(songs)}


@contextmanager
def running(provider: Provider) -> Iterator[Provider]:
    """Serve until the end of the block."""
    thread = threading.Thread(target=provider.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        provider.closed.set()
        provider.server.shutdown()
        provider.server.server_close()
        thread.join(5)
