"""Where prices meet the kinds of jobs: what a book may name, and what a request was quoted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from tasks.kind import AudioInfo, Kind, RefusedRequest, Request
from tasks.validation import parse
from worker.credits.prices import Usage
from worker.store.reads_receipts import QuotedUsage
from worker.store.submits import ArtifactFacts

#: What an override can compare a field with.
_SCALARS = frozenset({str, int, float, bool})


def request_fields(kinds: Mapping[str, Kind]) -> dict[str, dict[str, Collection[object] | None]]:
    """For each kind the fields that a price may depend on, with their values; None where any may come."""
    return {name: fields_of(kind.request_model) for name, kind in kinds.items()}


def models_of(kinds: Mapping[str, Kind]) -> dict[str, tuple[str, ...]]:
    """The models that each kind can be asked for; none for kinds that have none."""
    return {
        name: tuple(str(model) for model in fields_of(kind.request_model).get("model") or ())
        for name, kind in kinds.items()
    }


def fields_of(model: type[Request]) -> dict[str, Collection[object] | None]:
    """The fields of one request that hold single values. Lists are left out: nothing equals them."""
    found: dict[str, Collection[object] | None] = {}
    for name, field in model.model_fields.items():
        leaves = leaves_of(field.annotation) - {NoneType}
        if all(not isinstance(leaf, type) for leaf in leaves):
            found[name] = [value for leaf in leaves for value in get_args(leaf)]
        elif leaves == {bool}:
            found[name] = (True, False)
        elif all(leaf in _SCALARS or get_origin(leaf) is Literal for leaf in leaves):
            found[name] = None
    return found


def leaves_of(annotation: Any) -> set[Any]:
    """The alternatives of an annotation: types, and `Literal[…]`s as they stand."""
    if get_origin(annotation) in (Union, UnionType):
        return {leaf for part in get_args(annotation) for leaf in leaves_of(part)}
    if hasattr(annotation, "__metadata__"):  # Annotated
        return leaves_of(annotation.__origin__)
    return {annotation}


def quoted_usage_of(kinds: Mapping[str, Kind]) -> QuotedUsage:
    """What receipts ask of the kinds: the most that a stored request could use, None where its kind is gone."""

    def quoted_usage(
        name: str, request: Mapping[str, Any], inputs: Mapping[str, ArtifactFacts]
    ) -> Sequence[Usage] | None:
        kind = kinds.get(name)
        if kind is None:
            return None
        infos = {key: AudioInfo(facts.frames, facts.sample_rate, facts.channels) for key, facts in inputs.items()}
        try:
            most = kind.usage(parse(kind, request), infos)
        except (RefusedRequest, KeyError):  # the kind has changed since
            return None
        return [Usage(usage.seconds_in, usage.seconds_out) for usage in most]

    return quoted_usage
