"""Prices as product people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from worker.cli.output import facts, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.client import Quote
    from worker.credits.rehearsal import Outcome, Row
    from worker.overcharges import Overcharged, OverchargedJob
    from worker.store.price_report import PriceLine, PriceReport, Quantiles
    from worker.store.rehearsals import Rehearsed

#: Signs of the longest bar.
_BAR = 32

#: From here on a person should look: most of the hold comes back, or so many jobs end without a sale.
_MARGIN_LARGE, _REFUNDS_MANY = 0.5, 0.1


def quote(quoted: Quote) -> Iterator[RenderableType]:
    """What a job costs at most, rule by rule."""
    yield table(
        ["rule", "quantity", "rate", "credits"],
        [(line.rule, line.quantity, line.rate, line.amount) for line in quoted.lines],
        right=["quantity", "rate", "credits"],
    )
    yield facts([("at most", f"{quoted.total:,} credits by book {quoted.book_id}")])


def rehearsal(found: Rehearsed) -> Iterator[RenderableType]:
    """What past jobs would have cost, the largest first, with bars."""
    outcome = found.outcome
    yield facts(
        [
            ("rehearsal", found.rehearsal),
            ("document", f"sha256 {found.digest[:16]}…"),
            ("ended from", found.since),
            ("until", found.until),
            ("jobs", f"{_count(outcome.jobs, 'job')} of {_count(outcome.accounts, 'account')}"),
            ("against", f"book {found.against} and what was charged"),
            ("without a price", outcome.unpriced or None),
            ("credits", f"{outcome.before:,} -> {outcome.after:,} {_percent(outcome.before, outcome.after)}".rstrip()),
        ]
    )
    if not outcome.jobs:
        yield "\nno job ended in that time: a large change is not let in by this; look further back with --since"
    longest = max((max(row.before, row.after) for row in outcome.kinds), default=0)
    for title, rows in (("kind", outcome.kinds), ("model", outcome.models), ("plan", outcome.plans)):
        yield from _rows(title, rows, longest)
    if outcome.kinds:
        yield "\n█ before and after  ▒ more  ░ less"
    yield from _people(outcome)


def overcharged(found: Overcharged) -> Iterator[RenderableType]:
    """What a wrong book took too much, and what was given back."""
    yield facts(
        [
            ("jobs under", f"book {found.book}, {found.looked_at:,} that ran"),
            ("compared with", f"book {found.under}"),
            (
                "overcharged",
                f"{_count(found.jobs, 'job')} of {_count(found.accounts, 'account')}, {found.credits:,} credits",
            ),
            ("without a price", found.unpriced or None),
            (
                "given now",
                f"{found.given:,} credits{_before(found)}" if found.compensated else "nothing: this was a look",
            ),
            ("to give", None if found.compensated else f"{found.to_give:,} credits{_before(found)}"),
            ("not ended yet", _unfinished(found)),
        ]
    )
    if found.worst:
        yield f"\nthose with most too much: {len(found.worst):,} of {found.jobs:,}"
        last = "given" if found.compensated else "to give"
        yield table(
            ["job", "account", "kind", "charged", "would", "too much", last],
            [(*_overcharged_row(job), job.given if found.compensated else job.to_give) for job in found.worst],
            right=["charged", "would", "too much", last],
        )
    if found.to_give:
        yield "\nto give it back, once per job: the same again with --compensate --reason WHY --as NAME"
    if found.unfinished:
        yield (
            f"\njobs under book {found.book} that have not ended keep it: once they have ended, the same again finds "
            "them; a queued one may be cancelled (`fermata jobs cancel JOB`) and asked for anew"
        )


def _overcharged_row(job: OverchargedJob) -> tuple[object, ...]:
    return str(job.job), job.account, job.kind, job.charged, job.would, job.difference


def _before(found: Overcharged) -> str:
    """What those jobs had already, and how much of it was for something else than their price."""
    if not found.given_before:
        return ""
    other = found.given_before - found.mended_before
    return f"; {found.given_before:,} were given before" + (f", {other:,} of them not for the price" if other else "")


def _unfinished(found: Overcharged) -> str | None:
    if not found.unfinished:
        return None
    return f"{_count(found.unfinished, 'job')}, quoted {found.unfinished_quoted:,} credits"


def report(found: PriceReport) -> Iterator[RenderableType]:
    """Each kind and model on a line, then why credits came back."""
    yield facts([("ended from", found.since), ("until", found.until)])
    if not found.lines:
        yield "no job ran"
        return
    yield ""
    yield table(
        ["kind", "model", "ran", "sold", "quoted 10/50/90 %", "charged 10/50/90 %", "unused", "refunded", "held", ""],
        [_report_row(line) for line in found.lines],
        right=["ran", "sold", "quoted 10/50/90 %", "charged 10/50/90 %", "unused", "refunded", "held"],
    )
    reasons = [(line.kind, line.model, one) for line in found.lines for one in line.refunds]
    if reasons:
        yield "\nwhy jobs ended without a sale"
        yield table(
            ["kind", "model", "reason", "jobs", "of those that ran", "returned", "charged"],
            [
                (kind, model, one.reason, one.jobs, f"{one.rate:.1%}", one.credits, one.charged)
                for kind, model, one in reasons
            ],
            right=["jobs", "of those that ran", "returned", "charged"],
        )


def _report_row(line: PriceLine) -> tuple[object, ...]:
    remarks = [
        "most of each hold comes back" if (line.margin or 0) >= _MARGIN_LARGE else "",
        "often ends without a sale" if line.refund_rate >= _REFUNDS_MANY else "",
    ]
    return (
        *(line.kind, line.model, line.jobs, line.sold, _spread(line.quoted), _spread(line.charged)),
        "" if line.margin is None else f"{line.margin:.1%}",
        f"{line.refund_rate:.1%}",
        f"{line.held_credits:,} in {line.held_jobs:,}" if line.held_jobs else "",
        ", ".join(filter(None, remarks)),
    )


def _spread(found: Quantiles | None) -> str:
    return "" if found is None else f"{found.p10:,} / {found.p50:,} / {found.p90:,}"


def _rows(title: str, rows: Sequence[Row], longest: int) -> Iterator[RenderableType]:
    if rows:
        yield ""
        yield table(
            [title, "jobs", "before", "after", "change", ""],
            [(r.name, r.jobs, r.before, r.after, _percent(r.before, r.after), _bar(r, longest)) for r in rows],
            right=["jobs", "before", "after", "change"],
        )


def _bar(row: Row, longest: int) -> str:
    """What stays the same in full, and then what is added or gone."""
    if not longest:
        return ""
    low, high = (round(_BAR * part / longest) for part in sorted((row.before, row.after)))
    return "█" * low + ("▒" if row.after > row.before else "░") * (high - low)


def _people(outcome: Outcome) -> Iterator[RenderableType]:
    """What a month buys, who pays more or less, who would have run out."""
    if outcome.months:
        yield "\nwhat one month's credits buy, in jobs as they were"
        yield table(
            ["plan", "kind", "credits", "before", "after"],
            [(m.plan, m.kind, m.credits, m.jobs_before, m.jobs_after) for m in outcome.months],
            right=["credits", "before", "after"],
        )
    if outcome.movers:
        more = _count(outcome.accounts_dearer, "account")
        yield f"\n{more} would pay more, {outcome.accounts_cheaper:,} less; most of all"
        yield table(
            ["account", "jobs", "before", "after", "change"],
            [(m.account, m.jobs, m.before, m.after, _percent(m.before, m.after)) for m in outcome.movers],
            right=["jobs", "before", "after", "change"],
        )
    yield f"\n{_count(outcome.accounts_run_out, 'account')} would have run out"
    if outcome.run_out:
        yield table(
            ["account", "jobs unpaid", "from"],
            [(r.account, r.jobs, r.first_at) for r in outcome.run_out],
            right=["jobs unpaid"],
        )


def _percent(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else "new" if after else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
