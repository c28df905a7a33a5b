"""The client as others have it: its wheel alone, beside modules of their own, against a real API process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.stage import ACTOR, ROOT, Stage
from tests.integration.cli_support import silence
from worker.local.demo import VOICE
from worker.local.ports import free_port
from worker.store.api_keys import ApiKeys, NewKey, Role

#: The examples of the README, with their language.
EXAMPLE = re.compile(r"<!-- example: run by a test -->\n```(\w+)\n(.*?)```", re.DOTALL)

#: A pipeline of somebody who has a package called `config` too.
PIPELINE = """
import sys
import config
assert config.OURS, "their config is not the one that is imported"
import fermata_client
for name in ("worker", "tasks"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported: the client is not alone")
from fermata_client.client import Fermata, JobRequest
from fermata_client.requests import GenerationRequest

url, key, voice = sys.argv[1:]
with Fermata(url, key) as fermata:
    quote = fermata.quote(GenerationRequest(prompt="x", seconds=20))
    stored = fermata.upload("ada", voice)
    job = fermata.submit(
        JobRequest(account="ada", request={}, kind="reading", inputs={"recording": stored.artifact})
    )
    done = fermata.wait(job.id, timeout=60)
    fermata.download(done.outputs[0].artifact, "take.wav")
    print(done.state, quote.total > 0, fermata.balance("ada").spendable)
"""


@pytest.fixture
def theirs(wheel: Path, tmp_path: Path) -> Path:
    """Where somebody else has the client, installed alone, beside a package called `config`."""
    folder = tmp_path / "theirs"
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "__init__.py").write_text("OURS = True\n")
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel],
        capture_output=True,
        text=True,
    )
    assert 0 == installed.returncode, installed.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's own distribution, built from its own folder."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT / "fermata_client",
        capture_output=True,
        text=True,
    )
    assert 0 == built.returncode, built.stderr
    (found,) = folder.glob("fermata_client-*.whl")
    return found


def test_the_wheel_holds_the_client_and_nothing_else(wheel: Path) -> None:
    """Its modules with their types, and what it needs: pydantic and httpx2."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        metadata = packed.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"fermata_client/client.py", "fermata_client/requests.py", "fermata_client/py.typed"} <= set(names)
    assert {"fermata_client"} == {name.split("/")[0].split("-")[0] for name in names}
    needed = [line.split()[1].split("<")[0].split(">")[0] for line in metadata.splitlines() if "Requires-Dist" in line]
    assert ["httpx2", "pydantic"] == sorted(needed)


async def test_a_pipeline_elsewhere_has_its_song(stage: Stage, theirs: Path, tmp_path: Path) -> None:
    """Given only the wheel and a `config` of its own, then it quotes, uploads, submits, waits and downloads."""
    url, key = await an_api(stage), await a_key(stage)
    stage.scheduler()
    stage.worker()
    voice = silence(tmp_path / "voice.wav", 1.0)
    done = await run([sys.executable, "-S", "-c", PIPELINE, url, key, voice], tmp_path, alone(theirs))
    assert done.startswith("succeeded True ")
    assert (tmp_path / "take.wav").stat().st_size > 1000
    assert key not in "".join(process.said for process in stage.processes)


async def test_the_examples_of_the_readme_run(stage: Stage, theirs: Path, tmp_path: Path) -> None:
    """Python, curl and JavaScript as they stand there, where curl and node are; the two that share a key, one job."""
    environment = {"FERMATA_URL": await an_api(stage), "FERMATA_KEY": await a_key(stage), "PATH": os.environ["PATH"]}
    stage.scheduler()
    stage.worker()
    shutil.copy(VOICE, tmp_path / "take-3.wav")
    told = {}
    for language, source in EXAMPLE.findall((ROOT / "README.md").read_text()):
        match language:
            case "python":
                await run([sys.executable, "-S", "-c", source], tmp_path, alone(theirs) | environment)
            case "sh" if shutil.which("curl"):
                told[language] = json.loads(await run(["sh", "-c", source], tmp_path, environment))
            case "js" if shutil.which("node"):
                node = ["node", "--input-type=module", "-e", source]
                told[language] = json.loads(await run(node, tmp_path, environment))
    assert (tmp_path / "voice.wav").stat().st_size > 1000
    assert len({job["id"] for job in told.values()}) <= 1
    assert 1 + bool(told) == await stage.value("SELECT count(*) FROM jobs")


async def run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> str:
    """What a program says that must succeed, run in a folder with this environment and no other."""
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90)
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def alone(theirs: Path) -> dict[str, str]:
    """For Python without `site`, whose .pth files lead to this very tree: the libraries and what was installed."""
    return {"PYTHONPATH": os.pathsep.join([str(theirs), sysconfig.get_path("purelib")])}


async def a_key(stage: Stage) -> str:
    """A pipeline's key."""
    return (await ApiKeys(stage.store.engine).create(NewKey(Role.PIPELINE, "theirs", None), ACTOR)).key


async def an_api(stage: Stage) -> str:
    """A real API process; its address."""
    port = free_port()
    stage.script("api", api_port=str(port))
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        async with httpx2.AsyncClient() as http:
            try:
                return (await http.get(f"{url}/readyz")).is_success
            except httpx2.HTTPError:
                return False

    await stage.until(answers, "the API answers")
    return url
