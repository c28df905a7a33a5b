"""What a type checker tells somebody who uses the client: strict, and without pydantic's plugin, which few have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXAMPLE = re.compile(r"<!-- example: run by a test -->\n```python\n(.*?)```", re.DOTALL)

#: A pipeline's module. A line that ends in `# error: CODE` is one that must be found; any other must not.
CONSUMER = """
import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fermata_client import errors
from fermata_client.answers import Job, Submitted
from fermata_client.client import AsyncFermata, Fermata, JobRequest
from fermata_client.requests import GenerationRequest, StemSplitRequest, VocalConversionRequest


def song(fermata: Fermata) -> Job:
    request = GenerationRequest(prompt="warm lofi", seconds_max=20, model="studio", title="x", peaks=True)
    later = datetime.now(UTC) + timedelta(seconds=1)
    asked = JobRequest(account="ada", request=request, key="k1", metadata={"song": 1}, run_at=later)
    job: Submitted = fermata.submit(asked)
    done = fermata.wait(job.id, timeout=60)
    if done.state == "suceeded":  # error: comparison-overlap
        print("never")
    if done.state == "queued" and done.waiting_for == "credits":
        print(done.position)
    for event in fermata.events(job.id):
        print(event.event, event.id, event.at)
    print(fermata.receipt(job.id).lots[0].charged, fermata.retry(job.id).id, done.metadata, done.created_at)
    return done


def many(fermata: Fermata) -> list[UUID]:
    told = fermata.submit_many(JobRequest(account="ada", request=StemSplitRequest()) for _ in range(3))
    for one in told:
        print(one.id)  # error: union-attr
        if isinstance(one, errors.InsufficientCredits):
            print(one.needed, one.shortfall)
    return [one.id for one in told if isinstance(one, Submitted)]


async def awaited() -> None:
    async with AsyncFermata(os.environ["FERMATA_URL"], os.environ["FERMATA_KEY"]) as fermata:
        higher = VocalConversionRequest(semitones=3)
        job = await fermata.submit(JobRequest(account="ada", request=higher, on_insufficient="wait"))
        page = await fermata.jobs("ada", state="cancelled")
        balance = await fermata.balance("ada")
        print(page.jobs[0].state, balance.topup.frozen + balance.subscription.available)
        print(balance.topup.frzen)  # error: attr-defined
        fermata.cancel(job.id)  # error: unused-coroutine
        async for event in fermata.events(job.id):
            print(event.state)
        await fermata.jobs("ada", state="canceled")  # error: arg-type


JobRequest(account="ada", request=StemSplitRequest(), on_insufficient="wiat")  # error: arg-type
StemSplitRequest(stems=("vocals", "drumz"))  # error: arg-type
GenerationRequest(prompt="x", secconds=5)  # error: call-arg
GenerationRequest()  # error: call-arg
"""


def test_who_uses_the_client_is_told_of_mistakes_and_of_nothing_else(tmp_path: Path) -> None:
    """A module of somebody else's: each misspelt word is found, each right line passes."""
    expected = [
        (number, found[1])
        for number, line in enumerate(CONSUMER.splitlines(), 1)
        if (found := re.search(r"# error: ([a-z-]+)$", line))
    ]
    assert expected == checked(tmp_path, CONSUMER)


def test_the_example_of_the_readme_passes(tmp_path: Path) -> None:
    """As it stands there."""
    (example,) = EXAMPLE.findall((ROOT / "README.md").read_text())
    assert [] == checked(tmp_path, example)


def checked(folder: Path, source: str) -> list[tuple[int, str]]:
    """The lines in which mypy finds something, and what. It knows our tree as a package that ships its types."""
    (folder / "theirs.py").write_text(source)
    command = ["mypy", "--strict", "--config-file=", "--follow-imports=silent", "--enable-error-code=unused-awaitable"]
    done = subprocess.run(
        [sys.executable, "-m", *command, f"--cache-dir={folder}", "theirs.py"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^theirs\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    return [(int(number), code) for number, code in found]
