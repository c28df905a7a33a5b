"""What `fermata demo` shows: live progress on stderr, then the report, as tables or as one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.credits.states import JobState
from worker.local.demo import Played, Report
from worker.store.reads_accounts import Balance

_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.REFUSED: "yellow",
    JobState.CANCELLED: "yellow",
    JobState.RUNNING: "cyan",
}
_BAR_WIDTH = 24


class Screen:
    """Progress while the jobs run; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """One line of what is being done."""
        self._console.print(f"[dim]{line}[/dim]", highlight=False)

    def show(self, jobs: Sequence[Played]) -> None:
        """How far all jobs are."""
        if not self._console.is_terminal:
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("job", "state", "progress", "doing"):
            table.add_column(column)
        for job in jobs:
            seen = job.seen
            state = seen.state if seen else JobState.QUEUED
            done = 1.0 if state is JobState.SUCCEEDED else (seen.progress if seen else 0.0)
            bar = "█" * round(done * _BAR_WIDTH)
            doing = (seen.stage if seen and state is JobState.RUNNING else None) or (
                str(seen.waiting_for or "") if seen else ""
            )
            table.add_row(job.title, Text(state.value, _STYLES.get(state, "")), bar.ljust(_BAR_WIDTH, "░"), doing)
        self._live.update(table)


def print_report(report: Report) -> None:
    """The tables."""
    console = Console()
    console.print(_jobs_table(report.jobs))
    for job in report.jobs:
        console.print(f"[bold]{job.title}[/bold]", highlight=False)
        for line in _story(job):
            console.print(f"  {line}", highlight=False)
    console.print()
    console.print(_balance_table(report.before, report.after))
    verdict = "[green]the books are exact[/green]" if report.audit.ok else "[red]the books are wrong[/red]"
    console.print(f"Audit: {verdict} ({report.audit.lots} lots, {report.audit.entries} entries)")
    console.print(f"Files: {report.folder}\nLogs:  {report.logs}\nTime:  {report.seconds:.1f} s", highlight=False)
    for problem in report.problems:
        console.print(f"[red]not as expected:[/red] {problem}", highlight=False)


def print_json(report: Report) -> None:
    """One JSON document on stdout."""
    document: dict[str, Any] = {
        "jobs": [_job_document(job) for job in report.jobs],
        "balance_before": _balance_document(report.before),
        "balance_after": _balance_document(report.after),
        "audit": {
            "ok": report.audit.ok,
            "violations": [{"rule": one.rule, "what": one.what} for one in report.audit.violations],
        },
        "files": str(report.folder),
        "seconds": round(report.seconds, 1),
        "problems": report.problems,
    }
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _jobs_table(jobs: Sequence[Played]) -> Table:
    """A row a job, narrow enough for any terminal."""
    table = Table(title="Jobs", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("job", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for column in ("quoted", "reserved", "charged", "refunded", "ran"):
        table.add_column(column, justify="right", no_wrap=True)
    for job in jobs:
        shown = job.shown
        if shown is not None:
            state = Text(shown.state.value, _STYLES.get(shown.state, ""))
            figures = [str(number) for number in (shown.quoted, shown.reserved, shown.charged, shown.refunded)]
            table.add_row(job.title, state, *figures, f"{job.seconds:.1f} s")
    return table


def _story(job: Played) -> list[str]:
    """What a customer would want to know: how it ended, from which lots it was paid, what was made."""
    if job.receipt is None:
        return []
    lots = [f"lot {lot.lot} ({lot.source}): {lot.charged} of {lot.reserved} reserved" for lot in job.receipt.lots]
    return [
        job.receipt.sentence or "",
        *([f"paid from {', '.join(lots)}"] if lots else []),
        *(f"→ {path.name}" for path in job.files),
    ]


def _balance_table(before: Balance, after: Balance) -> Table:
    table = Table(title="Balance", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("subscription", str(before.subscription.available), str(after.subscription.available))
    table.add_row("top-up", str(before.topup.available), str(after.topup.available))
    table.add_row("spendable", str(before.spendable), str(after.spendable))
    return table


def _job_document(job: Played) -> dict[str, Any]:
    shown, lots = job.shown, job.receipt.lots if job.receipt else ()
    return {
        "kind": shown.kind if shown else None,
        "state": shown.state.value if shown else None,
        "quoted": shown.quoted if shown else None,
        "reserved": shown.reserved if shown else None,
        "charged": shown.charged if shown else None,
        "refunded": shown.refunded if shown else None,
        "draws": [
            {"lot": one.lot, "source": one.source, "amount": one.reserved, "charged": one.charged} for one in lots
        ],
        "seconds": round(job.seconds, 3),
        "artifacts": [str(path) for path in job.files],
    }


def _balance_document(balance: Balance) -> dict[str, Any]:
    refill, expires, frozen = (
        time and time.isoformat()
        for time in (balance.next_refill_at, balance.subscription.expires_at, balance.topup.frozen_until)
    )
    return {
        "account": balance.account,
        "subscription": {
            "available": balance.subscription.available,
            "held": balance.subscription.held,
            "expires_at": expires,
        },
        "topup": {
            "available": balance.topup.available,
            "held": balance.topup.held,
            "frozen": balance.topup.frozen,
            "frozen_until": frozen,
        },
        "spendable": balance.spendable,
        "debt": balance.debt,
        "next_refill_at": refill,
    }
