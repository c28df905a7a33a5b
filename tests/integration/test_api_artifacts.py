"""Audio over HTTP: in as one streamed part, out whole or by ranges, and only to whom it belongs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.integration.api_support import Api, an_api
from tests.integration.cli_support import files_in, silence
from tests.servers import Database
from worker.web.downloads import Range, range_of
from worker.web.problems import Problem


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path, upload_bytes_max=300_000) as made:
        await made.account("ada", 1000)
        yield made


async def put(api: Api, sound: bytes, account: str = "ada", **more: object) -> httpx2.Response:
    """Upload it as a browser would."""
    files = {"file": ("take 3.wav", sound, "audio/wav")}
    return await api.ask("POST", f"/v1/artifacts?account={account}", files=files, **more)  # type: ignore[arg-type]


@pytest.fixture
def sound(tmp_path: Path) -> bytes:
    return silence(tmp_path / "take.wav", 10).read_bytes()


async def test_audio_goes_in_once_and_comes_out_the_same(api: Api, tmp_path: Path, sound: bytes) -> None:
    """Measured, named, and byte for byte what was sent; sent again it is the same artifact."""
    first, again = await put(api, sound, role="pipeline"), await put(api, sound, role="pipeline")
    assert (201, 200) == (first.status_code, again.status_code)
    shown = first.json()["artifact"]
    assert (shown, True) == (again.json()["artifact"], again.json()["replayed"])
    assert ("take 3.wav", 10.0, "audio/wav") == (shown["name"], shown["seconds"], shown["media_type"])
    path = f"/v1/artifacts/{shown['artifact']}"
    assert shown == await api.ok("GET", f"{path}/facts")
    out = await api.ask("GET", path, role="pipeline")
    assert (sound, "audio/wav", str(len(sound))) == (
        out.content,
        out.headers["Content-Type"],
        out.headers["Content-Length"],
    )
    assert [shown] == (await api.ok("GET", "/v1/artifacts?account=ada"))["artifacts"]
    assert 1 == len(files_in(tmp_path / "artifacts"))


async def test_a_job_works_on_what_was_put_in(api: Api, sound: bytes) -> None:
    """By its id, and priced by its measured length."""
    voice = (await put(api, sound)).json()["artifact"]["artifact"]
    job = await api.submit(kind="vocal_conversion", params={"semitones": 3}, inputs={"voice": voice})
    assert {"voice": voice} == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["inputs"]


async def test_a_range_is_that_part(api: Api, sound: bytes) -> None:
    """206 with its place; an If-Range of another version gets all; a known one nothing."""
    path = f"/v1/artifacts/{(await put(api, sound)).json()['artifact']['artifact']}"
    part = await api.ask("GET", path, headers={"Range": "bytes=100-199"})
    assert (206, sound[100:200]) == (part.status_code, part.content)
    assert f"bytes 100-199/{len(sound)}" == part.headers["Content-Range"]
    looked = [await api.ask("HEAD", path), await api.ask("HEAD", path, headers={"Range": "bytes=100-199"})]
    lengths = [one.headers["Content-Length"] for one in looked]
    assert ([200, 206], [str(len(sound)), "100"]) == ([one.status_code for one in looked], lengths)
    assert {(b"", part.headers["ETag"])} == {(one.content, one.headers["ETag"]) for one in looked}
    tail = await api.ask("GET", path, headers={"Range": "bytes=-44"})
    assert (206, sound[-44:]) == (tail.status_code, tail.content)
    other = await api.ask("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (200, sound) == (other.status_code, other.content)
    behind = await api.ask("GET", path, headers={"Range": f"bytes={len(sound)}-"})
    assert (416, "range_not_satisfiable", f"bytes */{len(sound)}") == (
        behind.status_code,
        behind.json()["code"],
        behind.headers["Content-Range"],
    )
    known = await api.ask("GET", path, headers={"If-None-Match": part.headers["ETag"]})
    assert (304, b"") == (known.status_code, known.content)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", Range(0, 100)),
        ("bytes=0-0", Range(0, 1)),
        ("bytes=99-", Range(99, 100)),
        ("bytes=50-1000", Range(50, 100)),
        ("bytes=-1", Range(99, 100)),
        ("bytes=-1000", Range(0, 100)),
        ("bytes=9-3", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("lines=0-1", None),
        ("bytes=" + "9" * 19 + "-", None),
    ],
)
def test_what_a_range_header_asks_for(header: str | None, expected: Range | None) -> None:
    """What can't be read as one range is answered by the whole file, as the standard allows."""
    assert expected == range_of(header, 100)


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(header: str) -> None:
    """416."""
    with pytest.raises(Problem) as refused:
        range_of(header, 100)
    assert 416 == refused.value.status_code


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def body_of(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    """A multipart body of these parts."""
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

#: The body, its headers, the status and the code.
REFUSED: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", MULTIPART, 422, "validation"),
    (b"RIFF", {"Content-Type": "audio/wav"}, 415, "unsupported_media_type"),
    (b"RIFF", {"Content-Type": "multipart/form-data"}, 415, "unsupported_media_type"),
    (b"no boundary at all", MULTIPART, 400, "bad_request"),
    (body_of(FILE + b"not audio"), MULTIPART, 422, "validation"),
    (body_of(FILE), MULTIPART, 422, "validation"),
    (body_of(FILE + b"x", end=b""), MULTIPART, 422, "validation"),
    (body_of(FILE + b"x", FILE + b"y"), MULTIPART, 422, "validation"),
    (body_of(b'Content-Disposition: form-data; name="other"\r\n\r\nx'), MULTIPART, 422, "validation"),
    (body_of(b"no-header\r\n\r\nx"), MULTIPART, 400, "bad_request"),
    (body_of(FILE + bytes(400_000)), MULTIPART, 413, "too_large"),
]


async def test_a_file_that_is_not_taken_leaves_nothing(api: Api, tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Neither a row nor a file, whatever was sent."""
    for body, headers, status, code in REFUSED:
        with subtests.test(body=body[:80], headers=headers):
            done = await api.ask("POST", "/v1/artifacts?account=ada", content=body, headers=headers)
            assert (status, code) == (done.status_code, done.json()["code"]), done.text
    assert [] == (await api.ok("GET", "/v1/artifacts?account=ada"))["artifacts"]
    assert [] == files_in(tmp_path / "artifacts")


async def test_a_body_without_a_length_is_cut_at_the_limit(api: Api, tmp_path: Path) -> None:
    """Counted as it comes, whatever its headers say."""

    async def endless() -> AsyncIterator[bytes]:
        yield b"--b\r\n" + FILE
        while True:
            yield bytes(65_536)

    done = await api.ask("POST", "/v1/artifacts?account=ada", content=endless(), headers=MULTIPART)
    assert (413, "too_large") == (done.status_code, done.json()["code"])
    assert [] == files_in(tmp_path / "artifacts")


async def test_the_audio_of_others_is_not_there(api: Api, sound: bytes) -> None:
    """For a bound key and a token it is as if it were unknown; and nothing can be put into their accounts."""
    await api.account("acme")
    theirs = (await put(api, sound)).json()["artifact"]["artifact"]
    ours = (await put(api, sound, "acme")).json()["artifact"]["artifact"]
    assert ours != theirs
    bound, token = await api.key("pipeline", "acme"), await api.token("acme")
    for key in (bound, token):
        assert sound == (await api.ask("GET", f"/v1/artifacts/{ours}", key=key)).content
        for path in (f"/v1/artifacts/{theirs}", f"/v1/artifacts/{theirs}/facts"):
            done = await api.ask("GET", path, key=key)
            assert (404, "unknown_artifact") == (done.status_code, done.json()["code"])
        assert 404 == (await api.ask("GET", "/v1/artifacts?account=ada", key=key)).status_code
    assert 404 == (await put(api, sound, key=bound)).status_code
    assert 403 == (await put(api, sound, "acme", key=token)).status_code
    assert [ours] == [one["artifact"] for one in (await api.ok("GET", "/v1/artifacts", key=token))["artifacts"]]


async def test_a_file_that_is_gone_is_said_to_be(api: Api, tmp_path: Path, sound: bytes) -> None:
    """410 before a byte is sent, not a short file."""
    artifact = (await put(api, sound)).json()["artifact"]["artifact"]
    shutil.rmtree(tmp_path / "artifacts" / "inputs")
    done = await api.ask("GET", f"/v1/artifacts/{artifact}")
    assert (410, "artifact_gone") == (done.status_code, done.json()["code"])
