"""`fermata accounts …`: who has credits, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from worker.cli import balance_shown, opening, values
from worker.cli.options import Actor, Json
from worker.cli.output import cell, facts, present, say, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Books, Desk
    from worker.erasing import Erased
    from worker.store.limits import AccountLimits, AsPlanned
    from worker.store.purchases import ChargedBack, Credited
    from worker.store.reads_accounts import JournalPage
    from worker.store.reads_events import EventsPage
    from worker.store.subscriptions import Subscribed

app = cyclopts.App(name="accounts", help="Accounts, their subscriptions and their credits.")

Reference = Annotated[
    str | None,
    Parameter(
        name="--reference",
        help="Yours, such as a purchase's number: the same one twice is done once. Default: a new one.",
    ),
]


Last = Annotated[
    str | None, Parameter(name="--last", help="Only so many of the latest, 1 to 1000, in the order they happened.")
]


@app.command
def create(account: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """Make an account. Harmless if it is there already.

    Parameters
    ----------
    account: str
        1 to 128 letters, digits or . _ : @ / -
    """
    who = values.actor_of(actor)
    made = opening.with_books(lambda books: books.store.accounts.create(account, who))
    line = f"account {account} {'made' if made else 'was there already'}"
    return present({"account": account, "created": made}, json, [line])


@app.command
def subscribe(
    account: str,
    plan: str,
    /,
    *,
    renewal: Annotated[str, Parameter(help="automatic, or external: each cycle waits for `renewed`.")] = "automatic",
    grace_days: Annotated[str, Parameter(help="0 to 27 days that an external renewal may be late.")] = "0",
    reference: Reference = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Begin a subscription now: its first month's credits are there at once.

    Parameters
    ----------
    plan: str
        One of `fermata plans show`.
    """
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    grace = values.whole("grace_days", grace_days, 0, 27)
    done = opening.with_books(
        lambda books: books.store.accounts.subscribe(account, plan, step, who, renewal=renewal, grace_days=grace)
    )
    return present(_document(done), json, _subscribed(done))


@app.command
def change(account: str, plan: str, /, *, reference: Reference = None, json: Json = False, actor: Actor = None) -> int:
    """Another plan: a larger one at once, a smaller one from the next cycle on.

    A larger one adds what it brings more to the running cycle. The plan it has takes back a change that was to come.
    """
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    done = opening.with_books(lambda books: books.store.accounts.change(account, plan, step, who))
    return present(_document(done), json, _subscribed(done))


@app.command
def cancel(
    account: str,
    /,
    *,
    now: Annotated[
        bool, Parameter(negative="", help="End it at once; months that are paid for ahead are given up.")
    ] = False,
    reference: Reference = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """No further month: it runs to the end of what is paid for. Each month's credits stay until its end.

    Top-ups freeze when it has ended.
    """
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    done = opening.with_books(lambda books: books.store.accounts.cancel(account, step, who, at_once=now))
    return present(_document(done), json, _subscribed(done))


@app.command
def resume(
    account: str,
    /,
    *,
    plan: Annotated[str | None, Parameter(help="Another one of `fermata plans show`.")] = None,
    reference: Reference = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Go on after a cancel or a lapse. Top-ups that are still in their grace thaw.

    An external subscription whose month is over waits for `renewed`.
    """
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    done = opening.with_books(lambda books: books.store.accounts.resume(account, step, who, plan=plan))
    return present(_document(done), json, _subscribed(done))


@app.command
def renewed(account: str, /, *, reference: Reference = None, json: Json = False, actor: Actor = None) -> int:
    """One more month was paid for, says an external billing: granted now if it is due, else in its time."""
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    done = opening.with_books(lambda books: books.store.accounts.renewed(account, step, who))
    return present(_document(done), json, _subscribed(done))


@app.command
def topup(
    account: str,
    amount: Annotated[str | None, Parameter(help="Credits; or name a pack.")] = None,
    /,
    *,
    pack: Annotated[str | None, Parameter(help="One of `fermata plans show`.")] = None,
    reference: Reference = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Credit a purchase, of a pack or of a number of credits."""
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    credits_bought = None if amount is None else values.whole("amount", amount)
    done = opening.with_books(
        lambda books: books.store.accounts.topup(account, step, who, amount=credits_bought, pack=pack)
    )
    return present(_document(done), json, _credited(done, *_spending(done)))


@app.command
def chargeback(account: str, reference: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """A purchase was taken back by the bank, and so are its credits; what was spent of them is owed.

    Parameters
    ----------
    reference: str
        The purchase's own.
    """
    account, who = values.account_id(account), values.actor_of(actor)
    done = opening.with_books(lambda books: books.store.accounts.chargeback(account, reference, who))
    return present(_document(done), json, _charged_back(done))


@app.command
def grant(
    account: str,
    amount: str,
    /,
    *,
    expires_at: Annotated[str | None, Parameter(help="When the credits end, with its zone. Default: never.")] = None,
    note: Annotated[str | None, Parameter(help="Why, for the books.")] = None,
    reference: Reference = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Give credits away.

    Parameters
    ----------
    amount: str
        Credits, a whole number.
    """
    account, who, step = values.account_id(account), values.actor_of(actor), _reference(reference)
    given = values.whole("amount", amount)
    until = None if expires_at is None else values.moment("expires_at", expires_at)
    why = None if note is None else values.line("note", note)
    done = opening.with_books(
        lambda books: books.store.accounts.grant(account, given, step, who, expires_at=until, note=why)
    )
    return present(_document(done), json, _credited(done, ("expire", done.expires_at or "never")))


@app.command
def erase(
    account: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the log of changes.")],
    confirm: Annotated[str | None, Parameter(help="The account's id once more: nothing of it comes back.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Take out what people wrote and made: prompts, words, metadata, all sound. What was paid stays in the books.

    Refused while the account has unfinished jobs. Safe to do again, and to be done again if it was interrupted.
    """
    account, who, why = values.account_id(account), values.actor_of(actor), values.line("reason", reason)
    if confirm != account:
        raise values.Misused("confirm", f"nothing of it comes back; if that is meant: --confirm {account}")

    async def work(desk: Desk) -> Erased:
        from worker.erasing import erase as erased
        from worker.store.erasing import Erasing

        return await erased(Erasing(desk.store.engine), desk.client.artifacts, desk.client.kinds, account, why, who)

    done = opening.with_desk(work)
    return present(done, json, [f"account {account} is erased: {done.artifacts:,} artifact(s) went with their files"])


@app.command
def balance(account: str, /, *, json: Json = False) -> int:
    """What an account has: from its subscription, bought, given; spendable, held and frozen.

    With what is likely to expire unused at the end of its month, and what it spent in the last 30 days."""
    account = values.account_id(account)
    shown = opening.with_books(lambda books: books.reads.balance(account))
    return present(shown, json, balance_shown.balance(shown))


@app.command
def journal(
    account: str,
    /,
    *,
    after: Annotated[str | None, Parameter(help="Go on after this number.")] = None,
    limit: Annotated[str | None, Parameter(help="1 to 1000 entries. Default: 100.")] = None,
    last: Last = None,
    json: Json = False,
) -> int:
    """Every movement of an account's credits, oldest first; with --last only the latest."""
    account = values.account_id(account)
    seq, most = values.whole("after", after or "0", 0), values.whole("limit", limit or "100", 1, 1000)
    latest = _latest(last, after, limit)

    async def work(books: Books) -> JournalPage:
        if latest is not None:
            return await books.reads.journal_end(account, latest)
        return await books.reads.journal(account, seq, most)

    page = opening.with_books(work)
    return present(page, json, _journal(page))


@app.command
def events(
    account: str,
    /,
    *,
    after: Annotated[str | None, Parameter(help="Go on after this number.")] = None,
    limit: Annotated[str | None, Parameter(help="1 to 1000 events. Default: 100.")] = None,
    last: Last = None,
    json: Json = False,
) -> int:
    """What an account was told, oldest first: ended jobs, few credits left, credits that expire, new cycles."""
    account = values.account_id(account)
    seq, most = values.whole("after", after or "0", 0), values.whole("limit", limit or "100", 1, 1000)
    latest = _latest(last, after, limit)

    async def work(books: Books) -> EventsPage:
        if latest is not None:
            return await books.reads.events_end(account, latest)
        return await books.reads.events(account, seq, most)

    page = opening.with_books(work)
    return present(page, json, _events(page))


@app.command
def limits(
    account: str,
    /,
    *,
    running_max: Annotated[
        str | None, Parameter(help="Jobs at a time, whatever the plan has; or `plan`: as that has it.")
    ] = None,
    warn_below: Annotated[
        str | None, Parameter(help="Tell the account once when fewer credits are spendable; 0: never; or `plan`.")
    ] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Set what holds for one account. Without an option: show it."""
    account, who = values.account_id(account), values.actor_of(actor)
    most = _or_plan("running_max", running_max, 1, 10**6)
    least = _or_plan("warn_below", warn_below, 0, 10**12)

    async def work(books: Books) -> AccountLimits:
        from worker.store.limits import Limits

        limits = Limits(books.store.engine)
        if most is None and least is None:
            return await limits.limits(account)
        return await limits.set_limits(account, who, running_max=most, warn_below=least)

    return present(done := opening.with_books(work), json, _limits(done))


def _or_plan(field: str, given: str | None, low: int, high: int) -> int | AsPlanned | None:
    from worker.store.limits import AS_PLANNED

    if given is None:
        return None
    return AS_PLANNED if given == "plan" else values.whole(field, given, low, high)


def _reference(given: str | None) -> str:
    import uuid_utils.compat as uuids

    if given is not None:
        return given
    made = f"cli-{uuids.uuid7()}"
    say(f"reference {made}")  # known before anything is done: it can be asked again under it
    return made


def _document(done: Subscribed | Credited | ChargedBack) -> dict[str, Any]:
    """The public names: an account is `account` in every document."""
    return {"account" if name == "account_id" else name: value for name, value in asdict(done).items()}


def _subscribed(done: Subscribed) -> Iterator[RenderableType]:
    yield facts(
        [
            ("account", done.account_id),
            ("plan", done.plan),
            ("credits", done.credits),
            ("this cycle ends", done.cycle_ends_at),
            ("next refill", done.next_refill_at or "none"),
            ("plan from then on", done.next_plan),
            ("active until", done.active_until),
            ("paid, given up from", done.given_up_from),
            ("paid, given up until", done.given_up_until),
            ("reference", done.reference),
            ("done before", True if done.replayed else None),
        ]
    )


def _spending(done: Credited) -> Iterator[tuple[str, object]]:
    """Whether a top-up can be spent and for how long, as things stand."""
    account, since, until = done.account_id, cell(done.frozen_from), cell(done.frozen_until)
    if done.paid_debt == done.credits:
        return
    if done.frozen_until is None:
        yield "expire", "never" if done.frozen else f"never, while {account} is subscribed"
        yield "spendable", f"not before {account} subscribes" if done.frozen else None
    else:
        yield "expire", f"{until}, unless {account} is subscribed then"
        if done.frozen:
            yield "spendable", f"not without a subscription: frozen since {since}"
        else:
            yield "spendable", f"until {since}, then frozen unless the subscription goes on"


def _credited(done: Credited, *how_long: tuple[str, object]) -> Iterator[RenderableType]:
    yield facts(
        [
            ("account", done.account_id),
            ("credits", done.credits),
            ("of these paid a debt", done.paid_debt or None),
            ("as sold last, by plan book", done.book if done.still_sold is False else None),
            *how_long,
            ("reference", done.reference),
            ("done before", True if done.replayed else None),
        ]
    )


def _charged_back(done: ChargedBack) -> Iterator[RenderableType]:
    yield facts(
        [
            ("account", done.account_id),
            ("purchase", done.reference),
            ("revoked", done.revoked),
            ("still held by jobs", done.held or None),
            ("owed", done.owed),
            ("done before", True if done.replayed else None),
        ]
    )


def _latest(last: str | None, after: str | None, limit: str | None) -> int | None:
    """How many of the latest are wanted; None: all, from the first one on."""
    if last is not None and (after is not None or limit is not None):
        raise values.Misused("last", "goes with neither --after nor --limit")
    return None if last is None else values.whole("last", last, 1, 1000)


def _journal(page: JournalPage) -> Iterator[RenderableType]:
    yield table(
        ["seq", "at", "move", "credits", "lot", "source", "reason", "job", "actor"],
        [(str(e.seq), e.at, e.move, e.amount, str(e.lot), e.source, e.reason, e.job, e.actor) for e in page.entries],
        right=["seq", "credits", "lot"],
    )
    if page.next is not None:
        yield f"more: --after {page.next}"


def _limits(shown: AccountLimits) -> Iterator[RenderableType]:
    def whose(own: int | None) -> str:
        return "by its plan" if own is None else "set for this account"

    yield facts(
        [
            ("account", shown.account),
            ("jobs at a time", f"{shown.running_max or 'any number'}, {whose(shown.own_running_max)}"),
            ("told below", f"{shown.warn_below or 'never'}, {whose(shown.own_warn_below)}"),
        ]
    )


def _events(page: EventsPage) -> Iterator[RenderableType]:
    yield table(
        ["seq", "at", "what", "job", "state", "reason", "charged", "more"],
        [
            (str(e.seq), e.at, e.what, e.job, e.state, e.reason, e.charged)
            + (", ".join(f"{name} {value}" for name, value in (e.body or {}).items()),)
            for e in page.events
        ],
        right=["seq", "charged"],
    )
    if page.more:
        yield f"more: --after {page.last}"
