"""`fermata accounts …` on a real database: the documents that scripts read, and steps that are done once."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.integration.cli_support import Fermata
from worker.local.waiting import finished


def test_the_latest_entries_and_events_are_had_at_once(fermata: Fermata) -> None:
    """`--last N`: however many there are before them, in the order in which they happened."""
    fermata.account("ada", 5)
    for amount in ("6", "7", "8"):
        fermata.ok("accounts", "grant", "ada", amount)
    last = fermata.ok("accounts", "journal", "ada", "--last", "2")
    assert ([7, 8], None) == ([entry["amount"] for entry in last["entries"]], last["next"])
    for verb in ("pause", "resume", "pause"):
        fermata.ok(verb, "--account", "ada")
    told = fermata.ok("accounts", "events", "ada", "--last", "2")
    assert (["resumed", "paused"], False) == ([event["what"] for event in told["events"]], told["more"])
    assert 0 == len(fermata.ok("accounts", "events", "ada", "--after", str(told["last"]))["events"])
    for verb in ("journal", "events"):
        refused = fermata("accounts", verb, "ada", "--last", "2", "--after", "1")
        assert (2, "fermata: last: goes with neither --after nor --limit") == (refused.code, refused.complaint)
        assert "no account 'nobody'" in fermata("accounts", verb, "nobody", "--last", "2").complaint


def test_a_balance_has_the_public_keys_and_figures(fermata: Fermata) -> None:
    """The document of `accounts balance`: subscription, top-up and grants apart, and what can be spent now."""
    fermata.account("ada")
    fermata.ok("accounts", "subscribe", "ada", "creator")
    fermata.ok("accounts", "topup", "ada", "--pack", "small")
    fermata.ok("accounts", "grant", "ada", "7")
    balance = fermata.ok("accounts", "balance", "ada")
    ends = balance["next_refill_at"]
    assert balance == {
        "account": "ada",
        "subscription": {"available": 1200, "held": 0, "expires_at": ends},
        "topup": {"available": 100, "held": 0, "frozen": 0, "frozen_until": None},
        "grants": {"available": 7, "held": 0, "expires_at": None},
        "spendable": 1307,
        "debt": 0,
        "next_refill_at": ends,
        "plan": "creator",
        "next_plan": None,
        "status": "active",
        "active_until": None,
        "forecast": {"at": ends, "spent_by_then": 0, "expires_unused": 1200},
        "spent": [],
    }


def test_a_balance_for_people_tells_the_sources_apart(fermata: Fermata) -> None:
    """One line a source, thousands apart, and the sum."""
    fermata.account("ada", 1500)
    lines = [" ".join(line.split()) for line in fermata("accounts", "balance", "ada").out.splitlines()]
    assert "subscription 0 0" in lines
    assert f"grants 1,500 0 {'█' * 24}" in lines
    assert "spendable 1,500" in lines
    assert "next refill none: no subscription" in lines


def test_top_ups_without_a_subscription_are_shown_frozen(fermata: Fermata) -> None:
    """Bought credits that can't be spent yet are neither hidden nor spendable."""
    fermata.account("ada")
    fermata.ok("accounts", "topup", "ada", "50")
    balance = fermata.ok("accounts", "balance", "ada")
    assert (0, 50, 0) == (balance["topup"]["available"], balance["topup"]["frozen"], balance["spendable"])


def test_a_top_up_says_that_it_cant_be_spent(fermata: Fermata) -> None:
    """Before anybody subscribes and after a lapse; and when it will be frozen. Never "expires never" where it does."""

    def told(reference: str) -> str:
        return " ".join(fermata("accounts", "topup", "ada", "50", "--reference", reference).out.split())

    fermata.account("ada")
    assert "expire never spendable not before ada subscribes" in told("t0")
    fermata.ok("accounts", "subscribe", "ada", "starter")
    assert "expire never, while ada is subscribed reference" in told("t1")
    ends = str(fermata.ok("accounts", "cancel", "ada")["active_until"])[:10]
    assert f"spendable until {ends}" in told("t2")
    fermata.ok("accounts", "cancel", "ada", "--now")
    until = str(fermata.ok("accounts", "balance", "ada")["topup"]["frozen_until"])[:10]
    assert f"expire {until}" in told("t3")
    assert "spendable not without a subscription: frozen since" in told("t3")


def test_bought_credits_stay_frozen_for_as_long_as_is_set(fermata: Fermata, monkeypatch: pytest.MonkeyPatch) -> None:
    """FERMATA_FROZEN_DAYS: so long they are shown, and thaw with a resume; then they are gone."""
    monkeypatch.setenv("FERMATA_FROZEN_DAYS", "45")
    for account in ("ada", "bob"):
        fermata.account(account)
        fermata.ok("accounts", "subscribe", account, "starter")
        fermata.ok("accounts", "topup", account, "70")
        fermata.ok("accounts", "cancel", account, "--now")
    shown = fermata.ok("accounts", "balance", "ada")
    lasts = datetime.fromisoformat(shown["topup"]["frozen_until"]) - datetime.fromisoformat(shown["active_until"])
    assert (70, timedelta(days=45)) == (shown["topup"]["frozen"], lasts)
    finished(fermata.database.advance(timedelta(days=44)))
    fermata.ok("accounts", "resume", "ada")
    assert 70 == fermata.ok("accounts", "balance", "ada")["topup"]["available"]
    finished(fermata.database.advance(timedelta(days=2)))
    fermata.ok("accounts", "resume", "bob")
    assert 0 == fermata.ok("accounts", "balance", "bob")["topup"]["available"]


def test_an_end_at_once_names_the_paid_months_that_it_gives_up(fermata: Fermata) -> None:
    """And so does the resume after it; an end that gives up nothing has no word of it."""
    fermata.account("ada")
    fermata.ok("accounts", "subscribe", "ada", "starter", "--renewal", "external")
    assert "given up" not in fermata("accounts", "cancel", "ada").out
    fermata.ok("accounts", "resume", "ada")
    paid = fermata.ok("accounts", "renewed", "ada")
    for step in (("cancel", "ada", "--now"), ("resume", "ada")):
        told = fermata("accounts", *step).out
        for name, moment in (("from", paid["cycle_ends_at"]), ("until", paid["active_until"])):
            assert f"paid, given up {name} {moment[:10]}" in " ".join(told.split())


def test_an_account_is_made_once(fermata: Fermata) -> None:
    """Making it again is harmless and says so."""
    assert fermata.ok("accounts", "create", "ada") == {"account": "ada", "created": True}
    assert fermata.ok("accounts", "create", "ada") == {"account": "ada", "created": False}


def test_the_same_reference_is_one_purchase(fermata: Fermata) -> None:
    """A purchase, a grant and a subscription asked twice under their reference are done once."""
    fermata.account("ada")
    for step in (
        ("topup", "ada", "50", "--reference", "order-1"),
        ("grant", "ada", "5", "--reference", "gift-1"),
        ("subscribe", "ada", "starter", "--reference", "sub-1"),
    ):
        first, second = fermata.ok("accounts", *step), fermata.ok("accounts", *step)
        assert second == {**first, "replayed": True}
        assert first["replayed"] is False
    assert fermata.ok("accounts", "balance", "ada")["spendable"] == 205


def test_a_reference_is_made_and_told_before_anything_is_done(fermata: Fermata) -> None:
    """Whoever loses the answer can ask again under the reference that stderr named."""
    fermata.account("ada")
    answer = fermata("accounts", "topup", "ada", "50", "--json")
    assert answer.err == f"reference {answer.document['reference']}\n"


def test_another_amount_under_the_same_reference_is_a_conflict(fermata: Fermata) -> None:
    """Nothing is credited, and the line says what the reference was used for."""
    fermata.account("ada")
    fermata.ok("accounts", "topup", "ada", "50", "--reference", "order-1")
    with fermata.nothing_written():
        answer = fermata("accounts", "topup", "ada", "60", "--reference", "order-1")
    assert answer.code == 2
    assert answer.complaint == "fermata: reference: 'order-1' was used before, for 50 credits"


def test_the_journal_is_read_a_page_at_a_time(fermata: Fermata) -> None:
    """Oldest first; `next` leads on, and is null at the end."""
    fermata.account("ada")
    for amount in ("1", "2", "3"):
        fermata.ok("accounts", "grant", "ada", amount)
    first = fermata.ok("accounts", "journal", "ada", "--limit", "2")
    second = fermata.ok("accounts", "journal", "ada", "--limit", "2", "--after", str(first["next"]))
    assert [entry["amount"] for entry in first["entries"] + second["entries"]] == [1, 2, 3]
    assert second["next"] is None
    keys = {"seq", "at", "lot", "source", "move", "amount", "job", "reason", "actor"}
    assert keys == first["entries"][0].keys()


def test_the_actor_is_who_it_was_said_to_be(fermata: Fermata) -> None:
    """`--as` goes into the journal; without it, the login of whoever runs the command."""
    fermata.account("ada")
    fermata.ok("accounts", "grant", "ada", "1", "--as", "support:zoe")
    fermata.ok("accounts", "grant", "ada", "1")
    named, login = (entry["actor"] for entry in fermata.ok("accounts", "journal", "ada")["entries"])
    assert named == "support:zoe"
    assert login.startswith("cli:")


def test_a_grant_ends_when_it_was_said_to(fermata: Fermata) -> None:
    """The time is given with its zone and shown in UTC."""
    fermata.account("ada")
    granted = fermata.ok("accounts", "grant", "ada", "9", "--expires-at", "2199-01-01T01:00:00+01:00")
    assert granted["expires_at"] == "2199-01-01T01:00:00+01:00"
    assert fermata.ok("accounts", "balance", "ada")["grants"]["expires_at"] == "2199-01-01T00:00:00Z"


def test_a_subscription_is_led_through_its_life(fermata: Fermata) -> None:
    """Each verb answers with the plan, what it granted, and what follows; people read the same."""
    fermata.account("ada")
    fermata.ok("accounts", "subscribe", "ada", "starter")
    up = fermata.ok("accounts", "change", "ada", "creator")
    assert ("creator", 1050, None) == (up["plan"], up["credits"], up["active_until"])
    down = fermata.ok("accounts", "change", "ada", "starter")
    assert ("creator", "starter", 0) == (down["plan"], down["next_plan"], down["credits"])
    fermata.ok("accounts", "cancel", "ada")
    assert "none" in fermata("accounts", "cancel", "ada", "--now").out
    assert fermata.ok("accounts", "resume", "ada", "--plan", "creator")["next_refill_at"]
    answer = fermata("accounts", "renewed", "ada")
    assert (2, True) == (answer.code, answer.complaint.startswith("fermata: subscription: it renews by itself"))
    fermata.account("bob")
    fermata.ok("accounts", "subscribe", "bob", "starter", "--renewal", "external", "--grace-days", "5")
    assert fermata.ok("accounts", "renewed", "bob", "--reference", "i-1")["next_refill_at"]


def test_a_chargeback_is_named_by_its_purchase(fermata: Fermata) -> None:
    """What it took, and what is owed; the debt stands in the balance."""
    fermata.account("ada")
    fermata.ok("accounts", "topup", "ada", "50", "--reference", "order-1")
    taken = fermata.ok("accounts", "chargeback", "ada", "order-1")
    assert {"account": "ada", "reference": "order-1", "revoked": 50, "held": 0, "owed": 0, "replayed": False} == taken
    assert fermata.ok("accounts", "balance", "ada")["topup"]["frozen"] == 0
    with fermata.nothing_written():
        assert 2 == fermata("accounts", "chargeback", "ada", "order-2").code
