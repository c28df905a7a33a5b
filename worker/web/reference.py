"""What the OpenAPI document says beside the routes' own types: problems, keys, each kind's fields, why jobs end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.kind import Kind
from worker.credits.outcomes import RULES, Ending
from worker.web.problems import ProblemDocument

_REF = "#/components/schemas/{model}"
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `fermata keys create`, or a customer's token.",
}
#: The schemas that ask for a job, and those that say why one ended.
_ASKING, _SHOWING = ("SubmitBody", "BatchItem", "QuoteBody"), ("JobShown", "JobLine", "Receipt")


def complete(document: dict[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Add all of it to what FastAPI has made of the routes."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _add(schemas, "ProblemDocument", ProblemDocument)
    _describe_keys(document)
    _describe_kinds(schemas, kinds)
    _describe_endings(schemas)


def _describe_keys(document: dict[str, Any]) -> None:
    """The routes that ask for a key are those that may answer 401."""
    document["components"]["securitySchemes"] = {"key": _KEY}
    for operations in document["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"key": []}]


def _describe_kinds(schemas: dict[str, Any], kinds: Mapping[str, Kind]) -> None:
    """`params` is one of the kinds' requests. Its last alternative keeps a generated client open for kinds to come."""
    models = {name: kind.request_model.__name__ for name, kind in kinds.items()}
    for name, kind in kinds.items():
        _add(schemas, models[name], kind.request_model)
    refs = [{"$ref": _REF.format(model=model)} for model in dict.fromkeys(models.values())]
    params = "; ".join(f"of `{name}` as `{model}` says" for name, model in models.items())
    inputs = "; ".join(f"of `{name}` {_inputs_of(kind)}" for name, kind in kinds.items())
    for body in _ASKING:
        fields = schemas[body]["properties"]
        fields["kind"]["description"] = f"What sort of job: {', '.join(f'`{name}`' for name in kinds)}."
        fields["params"] |= {"description": f"What to make: {params}.", "anyOf": [*refs, {"type": "object"}]}
        fields["inputs"]["description"] = f"Artifacts by the kind's input names: {inputs}."


def _inputs_of(kind: Kind) -> str:
    named = [f"`{name}`{'' if limits.required else ' (optional)'}" for name, limits in kind.inputs.items()]
    return ", ".join(named) or "none"


def _describe_endings(schemas: dict[str, Any]) -> None:
    said = " ".join(f"`{ending}` ({rule.state}): {rule.sentence}" for ending, rule in RULES.items())
    schemas["Ending"] = {
        "title": "Ending",
        "type": "string",
        "enum": [str(ending) for ending in Ending],
        "description": f"Why a job ended, with the state that it ended in. {said} More may come.",
    }
    for shown in _SHOWING:
        reason = schemas[shown]["properties"]["reason"]
        reason["anyOf"] = [{"$ref": _REF.format(model="Ending")}, {"type": "null"}]


def _add(schemas: dict[str, Any], name: str, model: Any) -> None:
    schema = model.model_json_schema(ref_template=_REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema
