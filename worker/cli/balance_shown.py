"""A balance as people read it: where the credits are, what becomes of them, and where they went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from worker.cli.output import cell, facts, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.store.reads_accounts import Balance

#: Signs of a full bar.
_BAR = 24


def balance(shown: Balance) -> Iterator[RenderableType]:
    """Credits by source with their share of what is spendable, then the subscription, the forecast and the spending."""
    subscription, topup, grants = shown.subscription, shown.topup, shown.grants
    yield table(
        ["credits", "available", "held", "frozen", "until", ""],
        [
            *_source("subscription", shown, subscription.available, subscription.held, None, subscription.expires_at),
            *_source("top-up", shown, topup.available, topup.held, topup.frozen or None, topup.frozen_until),
            *_source("grants", shown, grants.available, grants.held, None, grants.expires_at),
        ],
        right=["available", "held", "frozen"],
    )
    yield facts(
        [
            ("spendable", shown.spendable),
            ("debt", shown.debt or None),
            ("plan", shown.plan and f"{shown.plan} ({shown.status})"),
            ("plan from then on", shown.next_plan),
            ("next refill", shown.next_refill_at or _why_none(shown)),
            ("forecast", _forecast(shown)),
        ]
    )
    if shown.spent:
        yield "\nspent in the last 30 days"
        most = max(one.credits for one in shown.spent)
        yield table(
            ["kind", "jobs", "credits", ""],
            [(one.kind, one.jobs, one.credits, _bar(one.credits, most)) for one in shown.spent],
            right=["jobs", "credits"],
        )


def _source(
    name: str, shown: Balance, available: int, held: int, frozen: int | None, until: object
) -> Iterator[tuple[object, ...]]:
    yield name, available, held, frozen, until, _bar(available, shown.spendable)


def _bar(part: int, whole: int) -> str:
    return "█" * -(-part * _BAR // whole) if whole else ""


def _why_none(shown: Balance) -> str:
    if shown.status == "active":
        return "waits for its renewal to be reported"
    return {"none": "none: no subscription", "lapsed": "none: the subscription has lapsed"}.get(
        shown.status, f"none: cancelled, active until {cell(shown.active_until)}"
    )


def _forecast(shown: Balance) -> str | None:
    forecast = shown.forecast
    if forecast is None:
        return None
    return f"{forecast.expires_unused:,} expire unused at {cell(forecast.at)}, if spending goes on as it did"
