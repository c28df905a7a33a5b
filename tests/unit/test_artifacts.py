"""Fetching an input: what is wrong with the input, and what only with our disk."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from worker.artifacts.folder import FolderStore
from worker.artifacts.store import DamagedArtifact, StoreUnwritable, UnreadableSource

CONTENT = b"half a second of silence"
DIGEST = hashlib.sha256(CONTENT).digest()


@pytest.fixture
async def stored(tmp_path: Path) -> tuple[FolderStore, str]:
    """A store with one input in it."""
    store = FolderStore(tmp_path / "store")
    await store.prepare()
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    key = await store.keep(await store.draft(source, UUID(int=1)), "ada")
    return store, key


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def _as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(b"other"), _as_a_folder, _as_a_link, _as_a_pipe],
    ids=["gone", "changed", "a folder", "a link", "a pipe"],
)
async def test_a_damaged_input_is_called_one(
    stored: tuple[FolderStore, str], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """Whatever became of the file, no other attempt can help."""
    store, key = stored
    damage(store.path(key))
    with pytest.raises(DamagedArtifact):
        await store.fetch(key, DIGEST, tmp_path / "copy")


async def test_a_damaged_input_takes_nobodys_place(stored: tuple[FolderStore, str], tmp_path: Path) -> None:
    """What was at the target stays, and no half copy lies beside it."""
    store, key = stored
    store.path(key).write_bytes(b"other")
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(DamagedArtifact):
        await store.fetch(key, DIGEST, tmp_path / "copy")
    assert b"mine" == (tmp_path / "copy").read_bytes()
    assert [] == _parts(tmp_path)


async def test_a_disk_that_takes_nothing_is_no_damage(stored: tuple[FolderStore, str], tmp_path: Path) -> None:
    """Where the copy can't be written, the input may be fine: another attempt may help."""
    store, key = stored
    (tmp_path / "no folder").touch()
    with pytest.raises(OSError, match="no folder"):
        await store.fetch(key, DIGEST, tmp_path / "no folder" / "copy")


async def test_a_sound_input_is_copied(stored: tuple[FolderStore, str], tmp_path: Path) -> None:
    """The copy has the same bytes."""
    store, key = stored
    await store.fetch(key, DIGEST, tmp_path / "copy")
    assert CONTENT == (tmp_path / "copy").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
async def test_a_store_that_takes_no_more_is_our_failure(
    stored: tuple[FolderStore, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full, read-only or broken disk of ours says nothing against the file, and keeps nothing of it."""
    store, _ = stored

    def fails(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreUnwritable, match=os.strerror(code).lower()):
        await store.draft(tmp_path / "source", UUID(int=2))
    assert ["00000000-0000-0000-0000-000000000001"] == [path.name for path in store.root.glob("inputs/*/*")]


async def test_a_file_that_can_not_be_read_is_the_files_fault(stored: tuple[FolderStore, str], tmp_path: Path) -> None:
    """It was taken away between the look at it and the copy."""
    store, _ = stored
    with pytest.raises(UnreadableSource):
        await store.draft(tmp_path / "gone", UUID(int=2))
