"""A request as it is typed: fields as the kind's own types, inputs as artifacts or files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

from tasks.audio import Probed, ProbeLimits, probe
from tasks.kind import AudioInfo, Kind, RefusedRequest
from tasks.validation import check_inputs, parse
from tasks.voices import voice_of
from worker.cli import values
from worker.cli.opening import Desk
from worker.client import JobRequest, Quote, check_source, quote_of
from worker.pricing import leaves_of
from worker.store.errors import Refused
from worker.store.reads_artifacts import ArtifactReads
from worker.store.submits import SubmitView
from worker.voices import check_voice


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a request works on: artifacts by id, and files that are not in the store yet, by input name."""

    artifacts: Mapping[str, UUID]
    files: Mapping[str, Path]


def typed_params(kind: Kind, given: Sequence[str]) -> dict[str, Any]:
    """Each value as its field takes it: text as it stands, the rest as JSON where it is JSON.

    A list may also be written a,b,c. What fits no field is left as it is, for the request's own refusal.
    """
    fields = kind.request_model.model_fields
    return {
        name: _typed(fields[name].annotation, text) if name in fields else text
        for name, text in values.pairs("param", given).items()
    }


def typed_metadata(given: Sequence[str]) -> dict[str, Any]:
    """Metadata has no types of its own: JSON where it is JSON, else text."""
    return {name: _json_or_text(text) for name, text in values.pairs("metadata", given).items()}


def split_inputs(given: Sequence[str]) -> Inputs:
    """Ids are artifacts, everything else is the name of a file."""
    artifacts, files = {}, {}
    for name, text in values.pairs("input", given).items():
        try:
            artifacts[name] = UUID(text)
        except ValueError:
            files[name] = Path(text)
    return Inputs(artifacts, files)


def kind_named(desk: Desk, name: str) -> Kind:
    """The kind, or a refusal that says which there are."""
    kind = desk.client.kinds.get(name)
    if kind is None:
        raise RefusedRequest("kind", f"no such kind (known: {', '.join(sorted(desk.client.kinds))})")
    return kind


async def with_files_put(desk: Desk, asked: JobRequest, files: Mapping[str, Path], actor: str) -> JobRequest:
    """The same request with its files in the store. A file that the account put in before is not stored again.

    What would be turned down afterwards is turned down before anything is stored.
    """
    desk.client.check(asked)
    if not files:
        return asked
    probed = {name: await _probed(desk, name, path) for name, path in files.items()}
    reads = ArtifactReads(desk.store.engine)
    known = {
        name: artifact_id
        for name, found in probed.items()
        if (artifact_id := await reads.same_input(asked.account_id, bytes.fromhex(found.sha256))) is not None
    }
    fresh = {name: path for name, path in files.items() if name not in known}
    if fresh:
        quoted = (await quote(desk, asked, probed)).total
        if asked.max_credits is not None and quoted > asked.max_credits:
            raise Refused("max_credits", f"the quote is {quoted} credits, above the {asked.max_credits} allowed")
    for name, path in fresh.items():
        with _named(name):
            known[name] = (await desk.client.put(asked.account_id, path, actor)).artifact_id
    return replace(asked, inputs={**asked.inputs, **{name: str(id_) for name, id_ in known.items()}})


async def quote_files(desk: Desk, asked: JobRequest, files: Mapping[str, Path]) -> Quote:
    """What the job would cost at most; files are measured, not stored."""
    return await quote(desk, asked, {name: await _probed(desk, name, path) for name, path in files.items()})


async def quote(desk: Desk, asked: JobRequest, probed: Mapping[str, Probed]) -> Quote:
    """As `Client.quote`, with inputs that were measured but not stored."""
    kind = kind_named(desk, asked.kind)
    request = parse(kind, asked.params)
    ids = {name: values.identifier(f"inputs.{name}", text) for name, text in asked.inputs.items()}
    view = await desk.client.views.view(asked.account_id or None, list(ids.values()), voice_of(request))
    if asked.account_id:
        check_voice(asked.account_id, request, {*ids, *probed}, view)
    infos = _measured(kind, {name: found.info for name, found in probed.items()}, ids, view)
    priced = quote_of(kind, request, infos, view)
    return Quote(kind.name, priced.total, view.book_id, priced.lines)


def _measured(
    kind: Kind, files: Mapping[str, AudioInfo], ids: Mapping[str, UUID], view: SubmitView
) -> dict[str, AudioInfo]:
    stored = {}
    for name, artifact_id in ids.items():
        if artifact_id not in view.artifacts:
            raise RefusedRequest(f"inputs.{name}", f"the account has no artifact {artifact_id}")
        found = view.artifacts[artifact_id]
        stored[name] = AudioInfo(found.frames, found.sample_rate, found.channels)
    infos = {**stored, **files}
    check_inputs(kind, infos)
    return infos


async def _probed(desk: Desk, name: str, path: Path) -> Probed:
    bytes_max = desk.settings.upload_bytes_max
    with _named(name):
        check_source(path, bytes_max)
        return await probe(path, limits=ProbeLimits(bytes_max=bytes_max))


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Let refusals of a file say which input it was for."""
    try:
        yield
    except RefusedRequest as error:
        if error.field != "file":
            raise
        raise RefusedRequest(f"inputs.{name[:32]}", f"the file {error.problem}") from None


def _typed(annotation: Any, text: str) -> Any:
    leaves = leaves_of(annotation) - {NoneType}
    if leaves and all(_takes_text(leaf) for leaf in leaves):
        return text
    value = _json_or_text(text)
    if isinstance(value, str) and any(get_origin(leaf) in (tuple, list) for leaf in leaves):
        return [part.strip() for part in text.split(",")]
    return value


def _takes_text(leaf: Any) -> bool:
    return leaf is str or (get_origin(leaf) is Literal and all(isinstance(value, str) for value in get_args(leaf)))


def _json_or_text(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text
