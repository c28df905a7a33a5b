"""Jobs, lists of jobs and receipts as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from worker.cli.output import facts, length, pause_words, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.credits.prices import Line
    from worker.credits.refusals import Refusal
    from worker.steering import ManyDone
    from worker.store.ops import Pause
    from worker.store.reads_job_lists import JobsPage
    from worker.store.reads_jobs import JobShown
    from worker.store.reads_receipts import Receipt


def job(job: JobShown, pauses: Sequence[Pause] = ()) -> Iterator[RenderableType]:
    """One job, as it stands."""
    from worker.credits.states import ENDED

    ended = job.state in ENDED
    yield facts(
        [
            ("job", job.id),
            ("account", job.account),
            ("kind", job.kind),
            ("state", f"{job.state} (partly)" if job.partial else job.state),
            ("waits for", job.waiting_for),
            *(("paused", pause_words(pause)) for pause in pauses),
            ("reason", job.reason),
            ("message", job.message),
            *_shortfall(job.shortfall),
            ("progress", None if ended else f"{job.progress:.0%} {job.stage or ''}"),
            ("cancel asked", True if job.cancel_asked and not ended else None),
            ("attempts", job.attempts),
            ("quoted", f"{job.quoted:,} credits by book {job.book}"),
            ("reserved", job.reserved),
            ("charged", job.charged if ended else None),
            ("refunded", job.refunded if ended else None),
            ("submitted", job.created_at),
            ("runs from", job.run_at),
            ("started", job.started_at),
            ("ended", job.ended_at),
            ("ends by", None if ended else job.ends_by),
            ("retry of", job.retry_of),
            *(("output", f"{out.artifact}  {out.name}  {length(out.seconds)}") for out in job.outputs),
            *((f"request {name}", value) for name, value in job.request.items() if value is not None),
            *((f"input {name}", value) for name, value in job.inputs.items()),
            *((f"metadata {name}", value) for name, value in job.metadata.items()),
        ]
    )


def page(page: JobsPage) -> Iterator[RenderableType]:
    """Jobs, one a line."""
    yield table(
        ["job", "account", "kind", "state", "reason", "quoted", "charged", "submitted", "ended"],
        [
            (
                j.id,
                j.account,
                j.kind,
                j.state,
                j.reason,
                j.quoted,
                j.charged if j.ended_at else None,
                j.created_at,
                j.ended_at,
            )
            for j in page.jobs
        ],
        right=["quoted", "charged"],
    )
    if page.next is not None:
        yield f"more: --after {page.next}"


def receipt(shown: Receipt) -> Iterator[RenderableType]:
    """Everything that explains a price, on one page."""
    yield facts(
        [
            ("job", shown.id),
            ("account", shown.account),
            ("kind", shown.kind),
            *((f"request {name}", value) for name, value in shown.request.items() if value is not None),
            *((f"input {name}", value) for name, value in shown.inputs.items()),
            ("submitted", shown.created_at),
            ("ended", shown.ended_at),
            ("state", f"{shown.state} (partly)" if shown.partial else shown.state),
            ("reason", shown.reason),
            ("message", shown.message),
            ("in words", shown.sentence),
            ("by the book", shown.rule),
            *_shortfall(shown.shortfall),
            ("book", f"{shown.book}, plan {shown.plan or 'none'}"),
            ("outcome charges", shown.outcome),
            ("quoted", shown.quoted),
            ("reserved", shown.reserved),
            ("charged", shown.charged),
            ("refunded", shown.refunded),
            ("balance", _balances(shown)),
        ]
    )
    yield from _lines("the quote", shown.quote_lines)
    yield from _lines("the charge", shown.charge_lines)
    yield from _paid(shown)
    yield from _runs(shown)


def _balances(shown: Receipt) -> str | None:
    if shown.balance_before is None:
        return None
    after = "" if shown.balance_after is None else f", {shown.balance_after:,} after it was settled"
    return f"{shown.balance_before:,} before the hold{after}"


def _paid(shown: Receipt) -> Iterator[RenderableType]:
    """The lots that paid, what else was given, and each movement of the hold."""
    if shown.lots:
        yield "\nlots, in the order in which they pay"
        yield table(
            ["lot", "source", "expires", "reserved", "charged", "returned", "expired since", "revoked since"],
            [
                (str(p.lot), p.source, p.expires_at, p.reserved, p.charged, p.returned, p.expired, p.revoked or None)
                for p in shown.lots
            ],
            right=["lot", "reserved", "charged", "returned", "expired since", "revoked since"],
        )
    if shown.given:
        yield "\ncredits given for it"
        yield table(
            ["lot", "credits", "reason", "expires"],
            [(str(g.lot), g.credits, g.reason, g.expires_at) for g in shown.given],
            right=["lot", "credits"],
        )
    if shown.movements:
        yield "\nhow its credits moved"
        yield table(
            ["at", "move", "credits", "lot", "reason", "by"],
            [(m.at, m.move, m.amount, str(m.lot), m.reason, m.actor) for m in shown.movements],
            right=["credits", "lot"],
        )


def _runs(shown: Receipt) -> Iterator[RenderableType]:
    """The attempts, and what was measured of each output, sold or not."""
    from worker.web.dashboard.words import measures

    if shown.attempts:
        yield "\nattempts"
        yield table(
            ["attempt", "worker", "started", "ended", "ending", "message"],
            [(a.attempt, a.worker, a.started_at, a.ended_at, a.ending, a.message) for a in shown.attempts],
            right=["attempt"],
        )
    measured = [(a.attempt, part) for a in shown.attempts for part in (*a.usage, *a.rejected)]
    if measured:
        yield "\nwhat was measured"
        yield table(
            ["attempt", "output", "seconds read", "seconds written", "measures", "turned down"],
            [
                (
                    *(n, part.get("output"), part.get("seconds_in"), part.get("seconds_out")),
                    *(measures(part), part.get("rejected")),
                )
                for n, part in measured
            ],
            right=["attempt", "seconds read", "seconds written"],
        )


def _shortfall(refusal: Refusal | None) -> Iterator[tuple[str, object]]:
    """What is missing, where it is, and what would do."""
    from worker.credits.refusals import words_of

    if refusal is not None:
        yield "can't be paid", words_of(refusal)
        for hold in refusal.held_by:
            yield "held by", f"{hold.job}  {hold.credits:,} credits"


def many(done: ManyDone) -> Iterator[RenderableType]:
    """What an act on many jobs did, or would do."""
    if done.jobs:
        yield table(
            ["job", "account", "was", "quoted", "outcome", "new job", "credits"],
            [(j.id, j.account, j.state, j.quoted, j.outcome, j.new_job, j.credits or None) for j in done.jobs],
            right=["quoted", "credits"],
        )
    did = "nothing was done" if done.dry_run else f"{done.changed:,} changed, {done.turned_down:,} turned down"
    yield f"{done.matched:,} job(s) match, quoted {done.quoted:,} credits; {did}"
    if done.credits:
        yield f"{done.credits:,} credits {'would be given' if done.dry_run else 'were given'}"
    if done.total is not None and done.more:
        given = f"; {done.total_credits:,} credits would be given" if done.total_credits else ""
        yield f"{done.total:,} job(s) match in all, quoted {done.total_quoted:,} credits{given}"
    if done.more:
        yield f"more match: --all does them too, or --after {done.next} the next portion"


def _lines(title: str, lines: Sequence[Line]) -> Iterator[RenderableType]:
    if lines:
        yield f"\n{title}"
        yield table(
            ["rule", "quantity", "rate", "credits"],
            [(line.rule, line.quantity, line.rate, line.amount) for line in lines],
            right=["quantity", "rate", "credits"],
        )
