"""`fermata artifacts …`: audio files in and out of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from worker.cli import opening, values
from worker.cli.options import Actor, Json
from worker.cli.output import facts, length, present, size, table

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from rich.console import RenderableType

    from worker.cli.opening import Desk
    from worker.store.reads_artifacts import ArtifactPlace, ArtifactReads, ArtifactShown, ArtifactsPage

app = cyclopts.App(name="artifacts", help="Audio files: what customers put in, and what jobs made.")

#: What a fetched file is called when nobody says: our own id, never a customer's words.
_SUFFIXES = {
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/aiff": ".aiff",
    "application/json": ".json",
}


@app.command
def put(
    file: str,
    /,
    *,
    account: Annotated[str, Parameter(help="Whose file it is.")],
    name: Annotated[str | None, Parameter(help="What people call it. Default: the file's name.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Copy an audio file into the store and measure it. Its id is what requests name."""
    from pathlib import Path

    account, who = values.account_id(account), values.actor_of(actor)
    called = None if name is None else values.line("name", name, 200)

    async def work(desk: Desk) -> ArtifactPlace:
        facts_ = await desk.client.put(account, Path(file), who, called)
        return await _reads(desk).place(facts_.artifact_id)

    shown = opening.with_desk(work).shown
    return present(shown, json, _one(shown))


@app.command(name="list")
def list_(
    *,
    account: str,
    limit: Annotated[str, Parameter(help="1 to 1000.")] = "50",
    after: Annotated[str | None, Parameter(help="Go on after this artifact.")] = None,
    json: Json = False,
) -> int:
    """An account's artifacts, the newest first."""
    account, most = values.account_id(account), values.whole("limit", limit, 1, 1000)
    place = None if after is None else values.identifier("after", after)

    async def work(books: opening.Books) -> ArtifactsPage:
        from worker.store.reads_artifacts import ArtifactReads

        return await ArtifactReads(books.store.engine).artifacts(account, most, place)

    page = opening.with_books(work)
    return present(page, json, _page(page))


@app.command
def get(
    artifact: str,
    /,
    *,
    to: Annotated[str | None, Parameter(help="The file to write. Default: the artifact's id, in this folder.")] = None,
    force: Annotated[bool, Parameter(negative="", help="Replace the file if it is there.")] = False,
    json: Json = False,
) -> int:
    """Fetch an artifact; its checksum is checked on the way."""
    artifact_id = values.identifier("artifact", artifact)
    shown, target = opening.with_desk(lambda desk: _fetched(desk, artifact_id, to, force=force))
    return present({"artifact": artifact_id, "file": str(target), "bytes": shown.bytes}, json, [f"wrote {target}"])


async def _fetched(desk: Desk, artifact_id: UUID, to: str | None, *, force: bool) -> tuple[ArtifactShown, Path]:
    found = await _reads(desk).place(artifact_id)
    own_name = f"{artifact_id}{_SUFFIXES.get(found.shown.media_type, '.audio')}"
    target = _target(own_name if to is None else to, force=force)
    # Under a name of its own until it is whole and its checksum fits.
    draft = target.with_name(f".fermata-{artifact_id.hex}")
    try:
        await desk.client.artifacts.fetch(found.storage_key, bytes.fromhex(found.shown.sha256), draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_name(f"{draft.name}.part").unlink(missing_ok=True)
    return found.shown, target


def _target(to: str, *, force: bool) -> Path:
    """Where to write: never over a file that is there, unless that was said."""
    from pathlib import Path

    target = Path(to)
    if "\0" in to or target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise values.Misused("to", "must be a file in a folder that is there and can be written")
    if target.exists() and not force:
        raise values.Misused("to", "is there already; --force replaces it")
    return target


def _reads(desk: Desk) -> ArtifactReads:
    from worker.store.reads_artifacts import ArtifactReads

    return ArtifactReads(desk.store.engine)


def _one(shown: ArtifactShown) -> Iterator[RenderableType]:
    yield facts(
        [
            ("artifact", shown.artifact),
            ("name", shown.name),
            ("length", length(shown.seconds)),
            ("sound", f"{shown.media_type}, {shown.sample_rate:,} Hz, {shown.channels} channel(s)"),
            ("size", size(shown.bytes)),
            ("sha256", shown.sha256),
        ]
    )


def _page(page: ArtifactsPage) -> Iterator[RenderableType]:
    yield table(
        ["artifact", "name", "length", "size", "job", "put"],
        [(a.artifact, a.name, length(a.seconds), size(a.bytes), a.job, a.created_at) for a in page.artifacts],
        right=["length", "size"],
    )
    if page.next is not None:
        yield f"more: --after {page.next}"
