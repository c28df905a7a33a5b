"""Quality gates: what an output must be to be sold, by the settings of its kind. Pure.

An output that doesn't pass ends its attempt as `quality_gate`; what that means stands in the table of endings: one
more attempt on the same hold, then the credits return.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field

from fermata_client.requests import Number
from tasks.kind import Output, Request


def _off(value: object) -> object:
    return None if value == "off" else value


class Gates(Request):
    """The gates of one kind. Each may be "off"."""

    #: Fails what is nowhere louder than this, in dB of full scale.
    silent_db: Annotated[Number | None, BeforeValidator(_off)] = Field(None, ge=-200, le=0)
    #: Fails what has more samples at full scale than this, in a million.
    clipped_ppm: Annotated[Number | None, BeforeValidator(_off)] = Field(None, ge=0, le=1_000_000)
    #: Fails what is shorter than was asked by more than this, in seconds.
    short_seconds: Annotated[Number | None, BeforeValidator(_off)] = Field(0.1, ge=0, le=600)


def problem_with(output: Output, least_seconds: Decimal | None, gates: Gates) -> str | None:
    """What keeps an output from being sold, in words with what was measured and the limit; None if nothing does.

    `least_seconds`: how long it has to be; None if any length is right.
    """
    peak_db, clipped_ppm = measured(output.measures, "peak_db"), measured(output.measures, "clipped_ppm")
    if gates.silent_db is not None and peak_db is not None and peak_db <= gates.silent_db:
        return f"{output.name} is silent: {peak_db:g} dB at its loudest, not above {gates.silent_db:g}"
    if gates.clipped_ppm is not None and clipped_ppm is not None and clipped_ppm > gates.clipped_ppm:
        return f"{output.name} is clipped: {clipped_ppm:g} samples in a million, more than {gates.clipped_ppm:g}"
    if gates.short_seconds is not None and least_seconds is not None:
        missing = least_seconds - output.info.seconds
        if missing > Decimal(str(gates.short_seconds)):
            return f"{output.name} is too short: {output.info.seconds:.2f} of {least_seconds:.2f} seconds"
    return None


def measured(measures: Mapping[str, str], name: str) -> float | None:
    """One measure as a number, None where it was not taken."""
    try:
        return float(measures[name])
    except (KeyError, ValueError):
        return None
