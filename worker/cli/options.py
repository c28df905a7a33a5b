"""The options that many verbs share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

#: On every verb that prints.
Json = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="One JSON document on stdout, nothing else.")
]
#: On every verb that writes.
Actor = Annotated[
    str | None,
    Parameter(name="--as", env_var="FERMATA_ACTOR", help="Who does this, for the journal. Default: cli:<your login>."),
]
#: On the verbs that change prices or plans.
Author = Annotated[
    str | None,
    Parameter(name="--as", env_var="FERMATA_ACTOR", help="Who does this, for the history. Must be given."),
]
Note = Annotated[str, Parameter(help="Why, for the history.")]
#: Repeatable: `--param a=1 --param b=2`.
Params = Annotated[
    tuple[str, ...],
    Parameter(
        name="--param", negative="", show_default=False, help="A field of the request, as name=value; repeat it."
    ),
]
Inputs = Annotated[
    tuple[str, ...],
    Parameter(
        name="--input", negative="", show_default=False, help="An input, as name=FILE or name=ARTIFACT; repeat it."
    ),
]
