"""`fermata plans …`: what is sold is applied as a whole or not at all, and a submit keeps to the account's plan."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from importlib import resources
from pathlib import Path

import pytest

from tests.integration.cli_support import Fermata
from worker.local.waiting import finished

SHIPPED = resources.files("config").joinpath("plans.toml").read_text(encoding="utf-8")
LATER = "2199-01-01T00:00:00Z"
SONG = ("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")


def written(folder: Path, document: str) -> str:
    """A file with a draft of a book."""
    path = folder / "plans.toml"
    path.write_bytes(document.encode())
    return str(path)


def without(plan: str) -> str:
    """The book we ship, with that plan no longer sold."""
    start = SHIPPED.index(f"[plans.{plan}]")
    after = [
        place for place in (SHIPPED.find(mark, start + 1) for mark in ("\n\n\n[plans.", "\n\n\n[packs.")) if place > 0
    ]
    return SHIPPED[:start] + SHIPPED[min(after) :]


def test_plans_and_packs_are_shown(fermata: Fermata) -> None:
    """As `config/plans.toml` has them; redirected into a file it is the very document, comments included."""
    shipped = tomllib.loads(SHIPPED)
    shown = fermata.ok("plans", "show")
    for name, plan in shipped["plans"].items():
        assert plan.items() <= {**shown["plans"][name], "models": plan.get("models", {})}.items()
    assert {name: pack["credits"] for name, pack in shipped["packs"].items()} == {
        name: pack["credits"] for name, pack in shown["packs"].items()
    }
    assert "creator" in fermata("plans", "show").out
    assert SHIPPED == fermata("plans", "show", "--document").out


def test_an_applied_book_is_sold_from_then_on(fermata: Fermata, tmp_path: Path) -> None:
    """It has the next number, author and note; twice it is one; a planned one comes into force at its time."""
    file = written(tmp_path, SHIPPED.replace("credits = 100\n", "credits = 120\n"))
    applied = fermata.ok("plans", "apply", file, "--note", "more for less", "--as", "mia")
    assert {"book": 2, "author": "mia", "note": "more for less", "replayed": False}.items() <= applied.items()
    assert {**applied, "replayed": True} == fermata.ok("plans", "apply", file, "--note", "again")
    fermata.account("ada")
    assert 120 == fermata.ok("accounts", "topup", "ada", "--pack", "small")["credits"]
    planned = fermata.ok("plans", "apply", written(tmp_path, SHIPPED), "--note", "back", "--effective-at", LATER)
    assert (3, LATER) == (planned["book"], planned["effective_at"])
    assert (2, 1) == (fermata.ok("plans", "show")["book"], fermata.ok("plans", "show", "--book", "1")["book"])
    assert 3 == fermata.ok("plans", "show", "--at", "2199-06-01T00:00:00Z")["book"]
    history = fermata.ok("plans", "history")["books"]
    assert [(3, False), (2, True), (1, False)] == [(book["book"], book["in_force"]) for book in history]
    finished(fermata.database.advance(timedelta(days=365 * 175)))
    assert 3 == fermata.ok("plans", "show")["book"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("[plans", "not TOML"),
        ("", "plans: there must be at least one plan"),
        (SHIPPED.replace('["generation", "voc', '["generatoin", "voc'), "no such kind: generatoin; did you mean"),
        (SHIPPED.replace('["draft", "standard"]', '["draft", "gold"]'), "[plans.starter.models] generation: no such"),
        (SHIPPED.replace("= 150", "= -1"), "[plans.starter] monthly_credits: must be between"),
        (SHIPPED.replace("= 150", "= 1.5"), "[plans.starter] monthly_credits: must be a whole number"),
        (SHIPPED.replace("jobs_at_a_time = 3", "jobs_at_a_tme = 3"), "did you mean jobs_at_a_time?"),
        (SHIPPED.replace('price_shown = "6 €"', ""), "[packs.small] price_shown: missing"),
    ],
)
def test_a_bad_book_is_refused_as_a_whole(fermata: Fermata, tmp_path: Path, document: str, complaint: str) -> None:
    """A line names table, key and reason; what is sold stays as it is."""
    with fermata.nothing_written():
        answer = fermata("plans", "apply", written(tmp_path, document), "--note", "new")
    assert 2 == answer.code
    assert complaint in answer.complaint
    assert 1 == fermata.ok("plans", "show")["book"]


def test_a_time_that_can_not_be_is_refused(fermata: Fermata, tmp_path: Path) -> None:
    """Nothing in the past, and no two books at once."""
    fermata.ok("plans", "apply", written(tmp_path, without("label")), "--note", "x", "--effective-at", LATER)
    with fermata.nothing_written():
        for when, complaint in ((LATER, "comes into force at that very time"), ("2020-01-01T00:00:00Z", "in the past")):
            answer = fermata("plans", "apply", written(tmp_path, SHIPPED), "--note", "x", "--effective-at", when)
            assert 2 == answer.code
            assert complaint in answer.complaint


def test_a_plan_keeps_its_accounts_to_its_kinds_and_models(fermata: Fermata, tmp_path: Path) -> None:
    """Judged at submit, before anything is stored and without burning the key; a larger plan may have it."""
    fermata.account("ada", 1000)
    fermata.ok(*SONG, "--param", "model=studio")  # no plan restricts who has none
    fermata.ok("accounts", "subscribe", "ada", "starter")
    with fermata.nothing_written():
        answer = fermata(*SONG, "--param", "model=studio", "--key", "k")
    assert (2, "fermata: model: studio is not in the plan starter, which has draft, standard for generation") == (
        answer.code,
        answer.complaint,
    )
    fermata.ok(*SONG, "--key", "k")
    only_stems = SHIPPED.replace(
        'kinds = ["generation", "vocal_conversion", "stem_split"]', 'kinds = ["stem_split"]', 1
    )
    models = only_stems.index("[plans.starter.models]")
    only_stems = only_stems[:models] + only_stems[only_stems.index("\n\n\n", models) :]
    fermata.ok("plans", "apply", written(tmp_path, only_stems), "--note", "stems only")
    with fermata.nothing_written():
        answer = fermata(*SONG)
    assert "fermata: kind: generation is not in the plan starter, which has stem_split" == answer.complaint
    # What was submitted before stays, and the same key is the same answer again.
    assert fermata.ok(*SONG, "--key", "k")["replayed"]


def test_a_plan_that_is_no_longer_sold_stays_with_its_accounts(fermata: Fermata, tmp_path: Path) -> None:
    """On its last terms; nobody else can subscribe to it."""
    fermata.account("ada")
    fermata.account("bob")
    fermata.ok("accounts", "subscribe", "ada", "starter")
    fermata.ok("plans", "apply", written(tmp_path, without("starter")), "--note", "dropped")
    fermata.ok(*SONG)
    assert 2 == fermata(*SONG, "--param", "model=studio").code
    answer = fermata("accounts", "subscribe", "bob", "starter")
    assert "fermata: plan: no plan 'starter'; there are creator, label" == answer.complaint


def test_apply_shows_what_changes_and_a_diff_shows_it_before(fermata: Fermata, tmp_path: Path) -> None:
    """Value by value, as of prices."""
    file = written(tmp_path, "# new\n" + SHIPPED.replace("credits = 100\n", "credits = 110\n"))
    line = "~ [packs.small] credits: 100 -> 110\n"
    assert f"book 1 -> the draft\n{line}" == fermata("plans", "diff", file).out
    assert [1] == [book["book"] for book in fermata.ok("plans", "history")["books"]]
    assert line in fermata("plans", "apply", file, "--note", "more").out
    told = [{"table": "packs.small", "key": "credits", "before": "100", "after": "110"}]
    # Told again it is the same answer.
    assert told == fermata.ok("plans", "apply", file, "--note", "more")["changes"]
    assert told == fermata.ok("plans", "diff", "1", "2")["changes"]
    assert "no difference but comments and layout" in fermata("plans", "diff", "2").out


def test_a_large_change_of_what_is_sold_wants_a_reason(fermata: Fermata, tmp_path: Path) -> None:
    """A few zeros too many would be bought within the minute; what is meant has its reason in the history."""
    file = written(tmp_path, SHIPPED.replace("= 150", "= 1500000").replace("credits = 100\n", "credits = 1000000\n"))
    with fermata.nothing_written():
        for when in ((), ("--effective-at", LATER)):
            answer = fermata("plans", "apply", file, "--note", "more", *when)
            assert 2 == answer.code
            for part in ("plan starter brings 1,500,000 credits a month instead of 150", "pack small", "--force"):
                assert part in answer.complaint
    assert "we mean it" == fermata.ok("plans", "apply", file, "--note", "more", "--force", "we mean it")["forced"]
    assert "forced: we mean it" in fermata("plans", "history").out
    assert 2 == fermata("plans", "apply", written(tmp_path, SHIPPED), "--note", "back").code
    assert 3 == fermata.ok("plans", "apply", written(tmp_path, SHIPPED), "--note", "back", "--force", "a slip")["book"]


def test_a_planned_plan_book_can_be_withdrawn(fermata: Fermata, tmp_path: Path) -> None:
    """One in force can't: its plans were sold; nor may what is planned behind become a large change unseen."""
    more = SHIPPED.replace("= 150", "= 175")
    fermata.ok("plans", "apply", written(tmp_path, more), "--note", "more", "--effective-at", LATER)
    still_more = written(tmp_path, SHIPPED.replace("= 150", "= 200"))
    fermata.ok("plans", "apply", still_more, "--note", "and more", "--effective-at", "2199-06-01T00:00:00Z")
    answer = fermata("plans", "withdraw", "2", "--note", "no")
    assert (2, True) == (
        answer.code,
        "the planned book 3 would then bring a large change: plan starter" in answer.complaint,
    )
    assert "fermata plans withdraw 3" in answer.complaint
    done = fermata.ok("plans", "withdraw", "3", "--note", "too much", "--as", "mia")
    assert {
        "book": 3,
        "withdrawn_by": "mia",
        "withdrawn_note": "too much",
        "standing": "withdrawn",
    }.items() <= done.items()
    fermata.ok("plans", "withdraw", "2", "--note", "no")
    assert 1 == fermata.ok("plans", "show", "--at", "2199-07-01T00:00:00Z")["book"]
    assert "withdrawn by mia: too much" in fermata("plans", "history").out
    with fermata.nothing_written():
        answer = fermata("plans", "withdraw", "1", "--note", "no")
        assert (2, True) == (answer.code, "apply the one before it again" in answer.complaint)
        assert "there is no such book" in fermata("plans", "withdraw", "9", "--note", "no").complaint


def test_a_pack_that_was_paid_is_credited_though_it_is_no_longer_sold(fermata: Fermata, tmp_path: Path) -> None:
    """As it was sold last, and the answer says so; what nobody sold yet is refused."""
    fermata.account("ada")
    bought = ("accounts", "topup", "ada", "--pack")
    dearer = SHIPPED.replace("credits = 500\n", "credits = 400\n")
    for document in (dearer, without_pack(dearer, "medium")):
        fermata.ok("plans", "apply", written(tmp_path, document), "--note", "changed")
    huge = written(tmp_path, SHIPPED.replace("[packs.large]", "[packs.huge]"))
    fermata.ok("plans", "apply", huge, "--note", "later", "--effective-at", LATER)
    done = fermata.ok(*bought, "medium", "--reference", "order-1")
    assert (400, 2, False) == (done["credits"], done["book"], done["still_sold"])
    assert "as sold last, by plan book 2" in " ".join(fermata(*bought, "medium").out.split())
    again = fermata.ok(*bought, "medium", "--reference", "order-1")
    assert (400, True) == (again["credits"], again["replayed"])
    done = fermata.ok(*bought, "small")
    assert (100, 3, True) == (done["credits"], done["book"], done["still_sold"])
    assert "fermata: pack: no pack 'huge'; there are large, small" == fermata(*bought, "huge").complaint
    assert fermata.ok("audit")["ok"]


def without_pack(document: str, pack: str) -> str:
    """The document, with that pack no longer sold."""
    start = document.index(f"[packs.{pack}]")
    return document[:start] + document[document.index("[packs.", start + 1) :]
