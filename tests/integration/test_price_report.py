"""What prices did, as product people read it."""

from __future__ import annotations

from datetime import timedelta

from tests.integration.books import ACTOR, opened
from tests.integration.cli_support import Fermata
from tests.integration.test_rehearsals import SHIPPED, desk_of
from tests.servers import Database
from worker.credits.outcomes import Ending
from worker.local.waiting import finished
from worker.store.price_report import Quantiles, Refunds

MONTH = timedelta(days=30)


async def past(database: Database) -> None:
    """Ten songs quoted 10 to 100 and charged half, two failures, a cancelled one, and what runs and waits."""
    async with opened(database) as store:
        await store.account("ada", 10_000)
        studio = {"request": {"model": "studio"}}
        for quoted in range(10, 101, 10):
            claimed = await store.running("ada", quoted=quoted, **studio)
            await store.settle("ada", claimed, measured=quoted // 2)
        for ending in (Ending.ENGINE_ERROR, Ending.ENGINE_ERROR, Ending.CANCELLED_RUNNING):
            await store.settle("ada", await store.running("ada", quoted=7, **studio), ending)
        await store.running("ada", quoted=30, **studio)
        again = await store.running("ada", quoted=5, **studio)
        await store.settle("ada", again, Ending.ENGINE_FAILURE, backoff_first_seconds=60)
        # These hold nothing: never claimed, refused, of no account's credits.
        await store.queued("ada", quoted=40, **studio)
        await store.accounts.create("bob", ACTOR)
        await store.claim("bob", await store.queued("bob", quoted=40, **studio))


async def test_quoted_charged_refunded_and_held(database: Database) -> None:
    """Quantiles of what was sold, refunds by reason as a part of what ran, holds as they are now."""
    await past(database)
    async with opened(database) as store:
        (line,) = (await desk_of(store).report(MONTH)).lines
    assert ("generation", "studio", 13, 10, 0) == (line.kind, line.model, line.jobs, line.sold, line.partial)
    assert (Quantiles(10, 50, 90), Quantiles(5, 25, 45)) == (line.quoted, line.charged)
    assert (0.5, round(3 / 13, 4)) == (line.margin, line.refund_rate)
    assert (
        Refunds("engine_error", 2, round(2 / 13, 4), 14),
        Refunds("cancelled_running", 1, round(1 / 13, 4), 7),
    ) == line.refunds
    assert (2, 35) == (line.held_jobs, line.held_credits)


async def test_what_a_book_keeps_of_a_hold_is_told_too(database: Database) -> None:
    """A fee for cancelling hides neither the job nor what came back: it was no sale."""
    document = SHIPPED.replace('cancelled_running = "nothing"', 'cancelled_running = "25%"')
    async with opened(database) as store:
        await store.account("ada", 100)
        await desk_of(store).apply(document, "mia", "a fee", force="a test")
        claimed = await store.running("ada", quoted=20)
        await store.settle("ada", claimed, Ending.CANCELLED_RUNNING)
        (line,) = (await desk_of(store).report(MONTH)).lines
    assert (1, 0, 1.0) == (line.jobs, line.sold, line.refund_rate)
    assert (Refunds("cancelled_running", 1, 1.0, 15, 5),) == line.refunds


async def test_only_the_time_asked_for_is_told(database: Database) -> None:
    """What ended before it is left out; what is held now is told whenever it began."""
    await past(database)
    async with opened(database) as store:
        await database.advance(timedelta(days=40))
        (line,) = (await desk_of(store).report(MONTH)).lines
    assert (0, 0, None, None, 0.0, 35) == (
        *(line.jobs, line.sold, line.quoted, line.margin),
        *(line.refund_rate, line.held_credits),
    )


def test_the_command_shows_what_a_person_should_look_at(fermata: Fermata) -> None:
    """A line for each kind and model, with a remark where most of the hold comes back."""
    assert "no job ran" in fermata("prices", "report").out
    finished(past(fermata.database))
    shown = fermata("prices", "report", "--since", "7d").out
    for part in ("5 / 25 / 45", "50.0%", "35 in 2", "most of each hold comes back, often ends without a sale", "15.4%"):
        assert part in shown, shown
    found = fermata.ok("prices", "report")
    assert {"since", "until", "lines"} == found.keys()
    assert {"p10": 5, "p50": 25, "p90": 45} == found["lines"][0]["charged"]
