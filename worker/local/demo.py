"""`fermata demo`: the whole system for a minute, on real audio, and a report in which every figure must be right.

Five jobs of one account: a song that ends on its last whole bar and so costs less than was held, a voice that is
converted, a mix of both that is split, an input that is damaged in the store, and a song that is too dear.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import uuid_utils.compat as uuids

from config.settings import Settings, load
from worker.artifacts.folder import FolderStore
from worker.boot import opened_client
from worker.client import Client, JobRequest
from worker.credits.states import ENDED, JobState
from worker.local.processes import ProcessError, open_log, spawn, stop
from worker.local.system import LocalServers, environment_for, local_servers, migrated
from worker.local.up import environment_of_children, role_of
from worker.store.audit import Audit, audit
from worker.store.reads import Reads
from worker.store.reads_accounts import Balance
from worker.store.reads_jobs import JobShown
from worker.store.reads_receipts import Receipt

#: Apart from the folder of `up`, so that both may run at once.
DATA_DIR = Path(".fermata/demo")
VOICE = Path(__file__).parents[2] / "tasks" / "samples" / "voice-librivox.flac"
PLAN, PACK = "starter", "small"
ACTOR = "demo"

#: Seconds for all jobs to end. They take about ten on two processors.
DEADLINE_SECONDS = 120.0
_LOOK_SECONDS = 0.1

WORKERS = (
    ("scheduler", ["scheduler"]),
    ("worker-1", ["worker", "generation", "stem_split"]),
    ("worker-2", ["worker", "vocal_conversion"]),
)


class DemoError(Exception):
    """The demo could not be played to its end. The message says why."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a job must have come to, at the prices we ship."""

    state: JobState
    quoted: int
    reserved: int
    charged: int
    outputs: int


@dataclass(slots=True)
class Played:
    """One job of the demo, from what was expected to what became of it."""

    title: str
    expected: Expected
    job_id: UUID
    #: As it was seen last, and once it has ended.
    seen: JobShown | None = None
    shown: JobShown | None = None
    receipt: Receipt | None = None
    files: list[Path] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long its attempts ran."""
        attempts = self.receipt.attempts if self.receipt else ()
        return sum((one.ended_at - one.started_at).total_seconds() for one in attempts)

    @property
    def problems(self) -> list[str]:
        """Each figure that is not as expected."""
        if self.shown is None:
            return [f"{self.title}: never ended"]
        shown, expected = self.shown, self.expected
        return [
            f"{self.title}: {name} is {got}, expected {want}"
            for name, got, want in (
                ("state", shown.state.value, expected.state.value),
                ("quoted", shown.quoted, expected.quoted),
                ("reserved", shown.reserved, expected.reserved),
                ("charged", shown.charged, expected.charged),
                ("refunded", shown.refunded, expected.reserved - expected.charged),
                ("artifacts", len(self.files), expected.outputs),
            )
            if got != want
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo showed."""

    jobs: Sequence[Played]
    before: Balance
    after: Balance
    audit: Audit
    folder: Path
    logs: Path
    seconds: float

    @property
    def problems(self) -> list[str]:
        """Everything that is not as it must be; empty is what exit code 0 means."""
        charged = sum(job.expected.charged for job in self.jobs)
        balances = [
            ("subscription after", self.after.subscription.available, self.before.subscription.available - charged),
            ("top-up after", self.after.topup.available, self.before.topup.available),
            ("held after", self.after.subscription.held + self.after.topup.held, 0),
        ]
        return [
            *(problem for job in self.jobs for problem in job.problems),
            *(f"{name} is {got}, expected {want}" for name, got, want in balances if got != want),
            *(f"audit: {violation.rule}: {violation.what}" for violation in self.audit.violations),
        ]


#: Told of the jobs so far, every tenth of a second.
Watch = Callable[[Sequence[Played]], None]


def run_demo(settings: Settings, *, as_json: bool) -> int:
    """Play the demo; 0 only if every figure is as expected, 1 if not, 3 if the system could not be started."""
    from worker.local.demo_screen import Screen, print_json, print_report

    started = time.monotonic()
    settings = settings.model_copy(update={"data_dir": settings.data_dir or DATA_DIR})
    try:
        with Screen() as screen:
            screen.say("starting PostgreSQL and Valkey")
            with local_servers(settings) as servers:
                migrated(servers)
                report = asyncio.run(_play(settings, servers, screen.show, screen.say, started))
    except (ProcessError, DemoError, OSError) as error:
        sys.stderr.write(f"fermata demo: {error}\n")
        return 3
    except KeyboardInterrupt:
        sys.stderr.write("fermata demo: interrupted; everything was stopped\n")
        return 1
    (print_json if as_json else print_report)(report)
    return 1 if report.problems else 0


async def _play(
    settings: Settings, servers: LocalServers, watch: Watch, say: Callable[[str], None], started: float
) -> Report:
    ours = load(environment_for(servers))
    logs = servers.data_dir / "logs"
    folder = servers.data_dir / "files" / time.strftime("%Y%m%d-%H%M%S")
    async with opened_client(ours) as (client, store):
        await client.artifacts.prepare()
        if not isinstance(client.artifacts, FolderStore):
            raise DemoError("it damages a file to show what happens, so it wants a folder: unset FERMATA_ARTIFACTS_URL")
        account = f"demo-{uuids.uuid7().hex[-12:]}"
        await store.accounts.create(account, ACTOR)
        await store.accounts.subscribe(account, PLAN, "demo-subscription", ACTOR)
        await store.accounts.topup(account, "demo-topup", ACTOR, pack=PACK)
        reads = client.reads
        before = await reads.balance(account)
        stage = _Stage(client, client.artifacts, reads, account, watch)
        # Damaged before anybody runs, so that nobody is quicker.
        await stage.submit_damaged()
        say("starting a scheduler and two workers")
        with _processes(settings, servers, logs):
            await stage.play()
        after = await reads.balance(account)
        await stage.keep_files(folder)
        verdict = await audit(store.engine, quoted_usage=reads.quoted_usage)
    return Report(stage.jobs, before, after, verdict, folder, logs, time.monotonic() - started)


class _Stage:
    """The account's jobs, submitted and followed."""

    def __init__(self, client: Client, folder: FolderStore, reads: Reads, account: str, watch: Watch) -> None:
        self._client = client
        self._folder = folder
        self._reads = reads
        self._account = account
        self._watch = watch
        self.jobs: list[Played] = []

    async def submit_damaged(self) -> None:
        """A job whose stored input is changed behind its back: its checksum no longer fits."""
        voice = await self._client.put(self._account, VOICE, ACTOR)
        await self._submit(
            "damaged input",
            Expected(JobState.FAILED, quoted=5, reserved=5, charged=0, outputs=0),
            JobRequest(self._account, "vocal_conversion", {"semitones": 2}, {"voice": str(voice.artifact_id)}),
        )
        with self._folder.path(voice.storage_key).open("r+b") as stored:
            stored.seek(-1000, os.SEEK_END)
            stored.write(bytes(1000))

    async def play(self) -> None:
        """The other four; the last one needs the first one's song."""
        song = await self._submit(
            "song, at most 21 s",
            Expected(JobState.SUCCEEDED, quoted=9, reserved=9, charged=8, outputs=1),
            JobRequest(
                self._account,
                "generation",
                {"prompt": "warm lofi piano for a rainy evening", "seconds_max": 21, "bpm": 100, "key": "A minor"},
            ),
        )
        voice = await self._client.put(self._account, VOICE, ACTOR)
        await self._submit(
            "voice, 4 up",
            Expected(JobState.SUCCEEDED, quoted=5, reserved=5, charged=5, outputs=1),
            JobRequest(
                self._account,
                "vocal_conversion",
                {"semitones": 4, "formant": 1.1},
                {"voice": str(voice.artifact_id)},
            ),
        )
        await self._submit(
            "4 × 5 min, too dear",
            Expected(JobState.REFUSED, quoted=256, reserved=0, charged=0, outputs=0),
            JobRequest(
                self._account,
                "generation",
                {"prompt": "an opera", "seconds": 300, "variants": 4},
            ),
        )
        await self._follow(until=lambda: song.shown is not None)
        await self._submit_split(song)
        await self._follow(until=lambda: all(job.shown is not None for job in self.jobs))

    async def _submit_split(self, song: Played) -> None:
        if song.shown is None or not song.shown.outputs:
            raise DemoError(f"the song to be split was not made: {song.shown and song.shown.message}")
        outputs = await self._client.stored.read(self._account, [song.shown.outputs[0].artifact])
        path = self._folder.path(next(iter(outputs.values())).storage_key)
        mix = path.with_name("demo-mix.wav")
        await asyncio.to_thread(mix_voice_over, path, VOICE, mix)
        stored = await self._client.put(self._account, mix, ACTOR)
        mix.unlink()
        await self._submit(
            "both, in 4 stems",
            Expected(JobState.SUCCEEDED, quoted=20, reserved=20, charged=20, outputs=4),
            JobRequest(
                self._account,
                "stem_split",
                {"stems": ["vocals", "drums", "bass", "other"]},
                {"mix": str(stored.artifact_id)},
            ),
        )

    async def _submit(self, title: str, expected: Expected, asked: JobRequest) -> Played:
        submitted = await self._client.submit(asked, ACTOR)
        self.jobs.append(Played(title, expected, submitted.job_id))
        return self.jobs[-1]

    async def _follow(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not until():
            for job in self.jobs:
                if job.shown is None:
                    await self._look(job)
            self._watch(self.jobs)
            if time.monotonic() > deadline:
                raise DemoError(f"not all jobs ended within {DEADLINE_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, job: Played) -> None:
        job.seen = await self._reads.job(job.job_id)
        if job.seen.state in ENDED:
            job.shown = job.seen
            job.receipt = await self._reads.receipt(job.job_id)

    async def keep_files(self, folder: Path) -> None:
        """Copy what was made to a folder with names for people."""
        for job in self.jobs:
            outputs = job.shown.outputs if job.shown else ()
            facts = await self._client.stored.read(self._account, [output.artifact for output in outputs])
            for output in outputs:
                stored = facts[output.artifact]
                suffix = stored.media_type.rpartition("/")[2].replace("mpeg", "mp3")
                kind = job.shown.kind if job.shown else "job"
                target = folder / f"{kind}-{output.name}.{suffix}"
                await asyncio.to_thread(_copy, self._folder.path(stored.storage_key), target)
                job.files.append(target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def mix_voice_over(song: Path, voice: Path, mix: Path) -> None:
    """Write the song with the voice over it, from its second second on, at the song's rate."""
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    music, rate = soundfile.read(song, dtype="float32", always_2d=True)
    speech, speech_rate = soundfile.read(voice, dtype="float32")
    speech = resample_poly(speech, rate, speech_rate).astype(np.float32)[: len(music) - 2 * rate]
    music = 0.6 * music
    music[2 * rate : 2 * rate + len(speech)] += 0.8 * speech[:, None] / np.abs(speech).max()
    soundfile.write(mix, music / max(1.0, float(np.abs(music).max())), rate, format="WAV", subtype="PCM_16")


@contextmanager
def _processes(settings: Settings, servers: LocalServers, logs: Path) -> Iterator[None]:
    """A scheduler and the workers as real processes; they end with the block, and with us."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = environment_of_children(settings, servers)
    fermata = Path(sys.executable).with_name("fermata")
    children: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in WORKERS:
            with open_log(logs / f"{name}.log") as output:
                children.append(
                    spawn(
                        [fermata, *arguments],
                        on_parent_death=signal.SIGKILL,
                        env={**environment, **role_of(arguments[0], servers)},
                        stdout=output,
                        stderr=output,
                    )
                )
        yield
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            stop(child, [(signal.SIGTERM, 10.0)])
