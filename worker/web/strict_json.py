"""JSON bodies read strictly: no name twice, no number that is none, no depth that kills a parser."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from worker.store.json_values import problem_of_json
from worker.web.access import Allowed
from worker.web.problems import Problem

#: Values in one body: a batch of a thousand jobs has some tens each.
VALUES_MAX = 500_000
#: Where each part of the body is answered for itself, the texts in it too.
_PART_BY_PART = frozenset({"/v1/jobs/batch"})


class StrictRequest(Request):
    """A request whose `json()` takes only what every parser would read alike."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = strict_json(await self.body(), texts=self.scope["path"] not in _PART_BY_PART)
        return self._json


class StrictRoute(APIRoute):
    """A route that asks for the key first, and then reads its body strictly, and only as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()
        takes_json = self.body_field is not None
        doors = [one.call for one in self.dependant.dependencies if isinstance(one.call, Allowed)]

        async def handler(request: Request) -> Response:
            # Nobody without a key has a body read for him.
            for door in doors:
                await door.admit(request)
            if takes_json:
                _check_type(request)
            return await original(StrictRequest(request.scope, request.receive))

        return handler


def strict_json(body: bytes, *, texts: bool = True) -> Any:
    """The value of a JSON text in UTF-8. Raises `Problem` 400 for anything that is none, or is read differently."""
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_number
        )
    except UnicodeDecodeError:
        raise Problem(400, "the body must be JSON in UTF-8") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deep") from None
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is no JSON: {error.msg.lower()} at character {error.pos}") from None
    except ValueError:  # a whole number of more digits than Python reads
        raise Problem(400, "the body has a number of too many digits") from None
    if (problem := problem_of_json(value, VALUES_MAX, texts=texts)) is not None:
        # What JSON has but PostgreSQL can't hold is a field's problem; what no parser should read is the body's.
        raise Problem(400 if "nested" in problem or "finite" in problem else 422, f"the body {problem}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Problem(400, "the body has a name twice in one object: which one counts?")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Problem(400, f"the body has {name}, which is no JSON")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Problem(400, "the body has a number that is too large")
    return value


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type")
    if (
        given is None
        and "transfer-encoding" not in request.headers
        and not int(request.headers.get("content-length", 0))
    ):
        return
    given = given or ""
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise Problem(415, "the body must be application/json in UTF-8")
