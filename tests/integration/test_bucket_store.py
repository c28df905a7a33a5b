"""Audio in a bucket of a real S3-compatible server: whole or not at all, checked, bounded, in clear words."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx2
import pytest
import uuid_utils.compat as uuids

from config.settings import load
from tests.buckets import KEY_ID, SECRET, Bucket, running_bucket, url_of, wire_to
from tests.integration.books import opened
from tests.integration.cli_support import files_in
from tests.integration.test_doctor import unwell
from tests.servers import Database
from worker.artifacts.bucket import BucketStore
from worker.artifacts.places import store_at
from worker.artifacts.store import (
    ArtifactError,
    ArtifactStore,
    DamagedArtifact,
    Leftover,
    StoreUnavailable,
    StoreUnwritable,
)
from worker.doctor import Status, artifact_checks
from worker.duties.sweep import Sweep
from worker.store.artifacts import Artifacts

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(3 * 1024 * 1024 + 17)
DIGEST = hashlib.sha256(CONTENT).digest()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """An S3-compatible server of this test's own."""
    with running_bucket() as running:
        yield running


@asynccontextmanager
async def a_store(folder: Path, **settings: str) -> AsyncIterator[ArtifactStore]:
    """A store by these settings, with work in the folder."""
    given = {"artifacts_key_id": KEY_ID, "artifacts_secret": SECRET, **settings}
    store = store_at(load({}, scratch_dir=folder / "scratch", **given))
    try:
        yield store
    finally:
        await store.close()


async def kept(store: ArtifactStore, folder: Path, number: int = 1) -> str:
    """An input of ada's; its storage key."""
    (source := folder / "source").write_bytes(CONTENT)
    draft = await store.draft(source, UUID(int=number))
    key = await store.keep(draft, "ada")
    await store.drop(draft)
    return key


async def test_what_was_put_comes_back(bucket: Bucket, tmp_path: Path) -> None:
    """A file is kept whole, with the sha256 that the server holds too, and read whole or in part."""
    async with a_store(tmp_path, **bucket.settings) as store:
        await store.prepare()
        key = await kept(store, tmp_path)
        await store.fetch(key, DIGEST, tmp_path / "copy")
        part = b"".join([block async for block in store.read(key, 1_000_000, 2_500_000)])
        nothing = [block async for block in store.read(key, 5, 5)]
    assert CONTENT == (tmp_path / "copy").read_bytes()
    assert CONTENT[1_000_000:2_500_000] == part
    assert [] == nothing
    assert [f"audio/{key}"] == bucket.listed()
    head = bucket.client().head_object(Bucket=bucket.name, Key=f"audio/{key}", ChecksumMode="ENABLED")
    assert DIGEST == base64.b64decode(head["ChecksumSHA256"])
    assert [] == files_in(tmp_path / "scratch")


async def test_a_link_opens_one_file_for_a_while(bucket: Bucket, tmp_path: Path) -> None:
    """Signed as today's servers ask for it, by a key that it doesn't hold; whoever has it fetches without one."""
    async with a_store(tmp_path, **bucket.settings) as store:
        key = await kept(store, tmp_path)
        url = await store.link(key, 600.5)
    assert url is not None
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert ("AWS4-HMAC-SHA256", "601") == (asked["X-Amz-Algorithm"], asked["X-Amz-Expires"])
    assert len(asked["X-Amz-Signature"]) == 64
    assert SECRET not in url
    async with httpx2.AsyncClient() as http:
        assert CONTENT == (await http.get(url)).content


async def test_a_damaged_or_missing_file_is_called_one(bucket: Bucket, tmp_path: Path) -> None:
    """Then no other attempt helps, and nothing lies at the target."""
    async with a_store(tmp_path, **bucket.settings) as store:
        key = await kept(store, tmp_path)
        bucket.client().put_object(Bucket=bucket.name, Key=f"audio/{key}", Body=b"other")
        with pytest.raises(DamagedArtifact, match="checksum"):
            await store.fetch(key, DIGEST, tmp_path / "copy")
        await store.remove(key)
        await store.remove(key)  # no error where it is gone
        with pytest.raises(DamagedArtifact, match="gone"):
            await store.fetch(key, DIGEST, tmp_path / "copy")
    assert [str(tmp_path / "source")] == files_in(tmp_path)


async def test_an_upload_that_breaks_is_sent_again(bucket: Bucket, tmp_path: Path) -> None:
    """Two cuts in the middle, and the file is there, whole."""
    async with wire_to(bucket.port) as wire, a_store(tmp_path, artifacts_url=bucket.url_by(wire.port)) as store:
        wire.cuts, wire.after_bytes = 2, 1024 * 1024
        key = await kept(store, tmp_path)
        assert (2, 0) == (wire.cut, wire.cuts)
        await store.fetch(key, DIGEST, tmp_path / "copy")


async def test_an_upload_that_can_not_be_finished_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """The store says that it took nothing, and it holds nothing: no file, and no half upload that costs money."""
    async with wire_to(bucket.port) as wire, a_store(tmp_path, artifacts_url=bucket.url_by(wire.port)) as store:
        wire.cuts, wire.after_bytes = 1000, 1024 * 1024
        with pytest.raises(StoreUnwritable, match="does not answer"):
            await kept(store, tmp_path)
    assert [] == bucket.listed()
    assert "Uploads" not in bucket.client().list_multipart_uploads(Bucket=bucket.name)


async def test_a_download_that_breaks_is_taken_up_where_it_broke(bucket: Bucket, tmp_path: Path) -> None:
    """Every byte comes once."""
    async with wire_to(bucket.port) as wire, a_store(tmp_path, artifacts_url=bucket.url_by(wire.port)) as store:
        key = await kept(store, tmp_path)
        wire.answers, wire.cuts, wire.after_bytes = True, 2, 2 * 1024 * 1024
        found = b"".join([block async for block in store.read(key)])
        # The second connection had only a third of it left to carry: it was not cut.
        assert 1 == wire.cut
    assert CONTENT == found


async def test_a_download_that_always_breaks_ends(bucket: Bucket, tmp_path: Path) -> None:
    """It tells nothing of the file: another attempt may help."""
    async with wire_to(bucket.port) as wire, a_store(tmp_path, artifacts_url=bucket.url_by(wire.port)) as store:
        key = await kept(store, tmp_path)
        wire.answers, wire.cuts, wire.after_bytes = True, 1000, 10_000
        with pytest.raises(StoreUnavailable):
            await store.fetch(key, DIGEST, tmp_path / "copy")
    assert not (tmp_path / "copy.part").exists()


async def test_a_file_of_any_size_takes_little_memory(bucket: Bucket, tmp_path: Path) -> None:
    """200 MB go there and back through less than 32 MB more than 1 MB took."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import asyncio, resource, sys
from pathlib import Path
from uuid import UUID
from config.settings import load
from worker.artifacts.places import store_at
async def main():
    folder = Path({str(tmp_path)!r})
    store = store_at(load({{}}, scratch_dir=folder / "scratch", **{bucket.settings!r}))
    peaks = []
    for number, size in ((1, 1), (2, 200)):
        with (folder / "big").open("wb") as file:
            for _ in range(size):
                file.write(bytes(1024 * 1024))
        draft = await store.draft(folder / "big", UUID(int=number))
        key = await store.keep(draft, "ada")
        await store.fetch(key, bytes.fromhex(draft.sha256), folder / "copy")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    await store.close()
    print(peaks[1] - peaks[0])
asyncio.run(main())
""")
    done = await asyncio.to_thread(
        lambda: subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024


async def test_what_is_wrong_is_said_and_no_secret(bucket: Bucket, tmp_path: Path) -> None:
    """A bucket that is not there, a server that is not there: one line that says what to do."""
    async with a_store(tmp_path, artifacts_url=url_of(bucket.port, "no-such-bucket")) as store:
        with pytest.raises(StoreUnwritable, match="no such bucket: make it") as refused:
            await store.prepare()
    async with wire_to(bucket.port) as wire:
        gone = wire.port
    async with a_store(tmp_path, artifacts_url=bucket.url_by(gone)) as store:
        with pytest.raises(StoreUnwritable, match="does not answer") as away:
            await store.prepare()
        assert isinstance(store, BucketStore)
        assert not re.search(f"{SECRET}|{KEY_ID}", repr(store.place) + store.described + str(refused) + str(away))


async def test_doctor_looks_at_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """Sound, gone, and beside workers on other machines, which need no common disk."""
    settings = load({}, scratch_dir=tmp_path, **bucket.settings)
    assert unwell(await artifact_checks(settings, ["elsewhere"])) == {}
    away = settings.model_copy(update={"artifacts_url": bucket.url_by(1)})
    assert unwell(await artifact_checks(away, [])) == {"artifacts": Status.AWAY}
    assert [".probe" in key for key in bucket.listed()] == []


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://", "must be s3://bucket/prefix"),
        ("s3://Bucket!/x", "must be s3://bucket/prefix"),
        ("s3://songs/../x", "must be s3://bucket/prefix"),
        (f"s3://{KEY_ID}:{SECRET}@songs/x", "must hold no key"),
        ("s3://songs/x?endpoint=ftp://host", "endpoint must be"),
        (f"s3://songs/x?endpoint=https://a:{SECRET}@host", "endpoint must be"),
        ("s3://songs/x?endpont=https://host", "no such option 'endpont'"),
        ("gs://songs", "must be a folder"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str, problem: str) -> None:
    """With what is wrong, and nothing of what might be a secret."""
    with pytest.raises(ArtifactError, match=problem) as refused:
        store_at(load({}, artifacts_url=url))
    assert SECRET not in str(refused.value)


async def test_only_what_neither_runs_nor_was_sold_is_swept(bucket: Bucket, database: Database, tmp_path: Path) -> None:
    """Outputs in the bucket and work on this machine's disk: the rows decide, not the files."""
    async with opened(database) as store, a_store(tmp_path, **bucket.settings) as artifacts:
        account = await store.account("ada", 100)
        live, sold = await store.running(account), await store.running(account)
        await store.settle(account, sold)
        tokens = {"live": live.token, "sold": sold.token, "dead": uuids.uuid7()}
        jobs = {"live": live.job.job_id, "sold": sold.job.job_id, "dead": sold.job.job_id}
        (source := tmp_path / "song").write_bytes(CONTENT)
        for name, token in tokens.items():
            await artifacts.put_output(source, jobs[name], token, "song")
            artifacts.workdir(token).mkdir(parents=True)

        def sweep(age_seconds: float) -> Sweep:
            async def older() -> AsyncIterator[Leftover]:
                async for one in artifacts.leftovers():
                    assert 0 <= one.age_seconds < 60
                    yield Leftover(one.token, one.job_id, one.place, one.age_seconds + age_seconds)

            return Sweep(artifacts, Artifacts(store.engine), load({}), older)

        await sweep(0).run()
        assert 3 == len(bucket.listed())  # too young: a claim's answer may be under way
        await sweep(timedelta(hours=1).total_seconds()).run()
    assert {str(tokens[name]) for name in ("live", "sold")} == {key.split("/")[3] for key in bucket.listed()}
    assert [str(tokens["live"])] == os.listdir(artifacts.work)  # noqa: PTH208  names are enough


async def test_a_round_of_the_sweep_goes_on_where_the_last_one_ended(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many outputs there are, one round asks for a bounded number of them, and rounds reach all."""
    monkeypatch.setattr("worker.artifacts.bucket._PAGE", 2)
    monkeypatch.setattr("worker.artifacts.bucket._PAGES_MAX", 1)
    (source := tmp_path / "song").write_bytes(b"x")
    async with a_store(tmp_path, **bucket.settings) as store:
        tokens = [uuids.uuid7() for _ in range(5)]
        for token in tokens:
            await store.put_output(source, UUID(int=7), token, "song")
        rounds = [[one.token async for one in store.leftovers()] for _ in range(4)]
    assert [tokens[:2], tokens[2:4], tokens[4:], tokens[:2]] == rounds
