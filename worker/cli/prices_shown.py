"""Prices as product people read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from worker.cli.output import facts, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.client import Quote


def quote(quoted: Quote) -> Iterator[RenderableType]:
    """What a job costs at most, rule by rule."""
    yield table(
        ["rule", "quantity", "rate", "credits"],
        [(line.rule, line.quantity, line.rate, line.amount) for line in quoted.lines],
        right=["quantity", "rate", "credits"],
    )
    yield facts([("at most", f"{quoted.total:,} credits by book {quoted.book_id}")])
