"""`fermata prices …`: books are applied as a whole or not at all, numbered, and never changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.books import opened
from tests.integration.cli_support import Fermata, silence
from tests.integration.test_rehearsals import desk_of
from tests.servers import Database
from worker.credits.prices import PriceBookError, parse_price_book
from worker.local.waiting import finished
from worker.store.book_shelf import BookApplied, BookDraft, BookShelf, Seen, plan_shelf, price_shelf
from worker.store.errors import Overtaken, Refused

SHIPPED = resources.files("config").joinpath("prices.toml").read_text(encoding="utf-8")
LATER = "2199-01-01T00:00:00Z"
#: Without a rehearsal: what asks for one has its own tests.
MIA = ("--note", "up", "--as", "mia")
WHY = (*MIA, "--force", "a test")


def written(folder: Path, document: str) -> str:
    """A file with a draft of a book."""
    path = folder / "prices.toml"
    path.write_bytes(document.encode())
    return str(path)


def with_override(when: str) -> str:
    """The book we ship, with another condition for the first multiplier."""
    return SHIPPED.replace('\nwhen = { model = "draft" }', f"\nwhen = {{ {when} }}", 1)


def dearer(base: int) -> str:
    """The book we ship, with another base for songs."""
    return SHIPPED.replace("base = 4\n", f"base = {base}\n", 1)


def test_show_prints_the_book_as_it_was_applied(fermata: Fermata) -> None:
    """Redirected into a file it is the very document, comments included."""
    assert SHIPPED == fermata("prices", "show").out
    shown = fermata.ok("prices", "show")
    keys = {"book", "effective_at", "author", "note", "digest", "created_at", "withdrawn_at", "document"}
    assert keys == shown.keys()
    assert (1, SHIPPED) == (shown["book"], shown["document"])


def test_an_applied_book_prices_what_is_submitted_from_then_on(fermata: Fermata, tmp_path: Path) -> None:
    """It has the next number, its author and note; jobs quoted before keep their price."""
    fermata.account("ada", 100)
    song = ("generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    before = fermata.ok("jobs", "submit", *song)
    applied = fermata.ok("prices", "apply", written(tmp_path, dearer(9)), "--note", "songs up", *WHY[2:])
    assert {"book": 2, "author": "mia", "note": "songs up", "replayed": False}.items() <= applied.items()
    after = fermata.ok("jobs", "submit", *song)
    assert [(1, 8), (2, 13)] == [(job["book"], job["quoted"]) for job in (before, after)]
    assert fermata.ok("jobs", "show", before["id"])["quoted"] == 8


def test_the_same_file_twice_is_one_book(fermata: Fermata, tmp_path: Path) -> None:
    """A second `apply` answers with the first one's number."""
    file = written(tmp_path, dearer(9))
    first = fermata.ok("prices", "apply", file, *WHY)
    assert {**first, "replayed": True} == fermata.ok("prices", "apply", file, "--note", "again", "--as", "bob")
    assert [2, 1] == [book["book"] for book in fermata.ok("prices", "history")["books"]]


def test_a_book_may_be_planned(fermata: Fermata, tmp_path: Path) -> None:
    """Until its time the old one is in force; --at shows which is when."""
    applied = fermata.ok("prices", "apply", written(tmp_path, dearer(9)), *WHY, "--effective-at", LATER)
    assert (2, LATER) == (applied["book"], applied["effective_at"])
    assert fermata.ok("prices", "show")["book"] == 1
    assert fermata.ok("prices", "show", "--at", "2199-06-01T00:00:00Z")["book"] == 2
    assert fermata.ok("prices", "show", "--book", "2")["document"] == dearer(9)
    history = fermata.ok("prices", "history")["books"]
    assert [(2, False), (1, True)] == [(book["book"], book["in_force"]) for book in history]
    finished(fermata.database.advance(timedelta(days=365 * 175)))
    assert fermata.ok("prices", "show")["book"] == 2


@pytest.mark.parametrize(
    ("effective_at", "complaint"),
    [
        ("2020-01-01T00:00:00Z", "effective_at: must not be in the past: a price never changes after the fact"),
        (LATER, "effective_at: book 2 comes into force at that very time"),
        ("2199-01-01T00:00:00", "effective_at: must carry a time zone, as 2026-12-01T10:00:00Z or …+01:00"),
    ],
)
def test_a_time_that_can_not_be_is_refused(fermata: Fermata, tmp_path: Path, effective_at: str, complaint: str) -> None:
    """Nothing in the past, and no two books at once."""
    fermata.ok("prices", "apply", written(tmp_path, dearer(5)), *WHY, "--effective-at", LATER)
    with fermata.nothing_written():
        answer = fermata("prices", "apply", written(tmp_path, dearer(9)), *WHY, "--effective-at", effective_at)
    assert (2, f"fermata: {complaint}") == (answer.code, answer.complaint)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("generation = [", "not TOML"),
        ("", "[generation"),
        (SHIPPED.replace("[stem_split.", "[stem_splitt."), "stem_splitt: no such kind; did you mean stem_split?"),
        (with_override('model = "studoi"'), "studoi"),
        (with_override('modle = "studio"'), "did you mean model?"),
        (with_override('plan = "gold"'), "gold"),
        (dearer(-4), "base: must be between 0 and 100000"),
        (SHIPPED.replace("base = 4\n", "base = 1e3\n"), "base: write 1e3 out"),
        (SHIPPED + '\nengine_failure = "25%"\n', 'must be "nothing": nobody is charged for our own failure'),
        (SHIPPED + "\n# \x1b[31m\n", "not TOML"),
    ],
)
def test_a_bad_book_is_refused_as_a_whole(fermata: Fermata, tmp_path: Path, document: str, complaint: str) -> None:
    """One line a problem, with table, key and reason; the book in force stays."""
    with fermata.nothing_written():
        answer = fermata("prices", "apply", written(tmp_path, document), *WHY)
    assert answer.code == 2
    assert complaint.strip("[") in answer.complaint
    assert fermata.ok("prices", "show")["book"] == 1


def test_a_book_that_came_since_the_file_began_is_not_undone(fermata: Fermata, tmp_path: Path) -> None:
    """Named by --on, the book that the file began from must still be the newest: in force, planned, not withdrawn."""
    studio = written(tmp_path, SHIPPED.replace("multiplier = 2.5", "multiplier = 2.6"))
    conversions = SHIPPED.replace("\nrate = 5\n", "\nrate = 6\n")

    def refused(on: str, complaint: str) -> None:
        with fermata.nothing_written():
            answer = fermata("prices", "apply", studio, *WHY, "--on", on)
        assert answer.code == 2
        assert answer.complaint.startswith(f"fermata: on: {complaint}")

    for wrong in ("0", "x"):
        refused(wrong, "must be a whole number from 1 to")
    refused("7", "there is no book 7")
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", conversions)
    assert 2 == fermata.ok("prices", "apply", other, "--on", "1", "--note", "in march", "--as", "ben")["book"]
    refused("1", "book 2 by ben (in march) is in force since this draft began, and one of the two would undo the other")
    # Twice the same is once, also on the book before.
    assert fermata.ok("prices", "apply", other, "--on", "1", "--note", "in march", "--as", "ben")["replayed"]
    planned = written(tmp_path / "other", conversions.replace("\nrate = 6\n", "\nrate = 7\n"))
    assert 3 == fermata.ok("prices", "apply", planned, *WHY, "--on", "2", "--effective-at", LATER)["book"]
    refused("2", "book 3 by mia (up) is planned for 2199-01-01 00:00 UTC since this draft began")
    fermata.ok("prices", "withdraw", "3", "--note", "too dear", "--as", "eve")
    refused("3", "book 3 was withdrawn by eve (too dear) since this draft began: begin anew")
    assert 4 == fermata.ok("prices", "apply", studio, *WHY, "--on", "2")["book"]
    # Not asked where nothing is said.
    assert 5 == fermata.ok("prices", "apply", other, *WHY)["book"]


def test_the_author_must_be_named(fermata: Fermata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By --as or FERMATA_ACTOR; a login is not enough for what customers pay."""
    monkeypatch.delenv("FERMATA_ACTOR", raising=False)
    file = written(tmp_path, dearer(9))
    with fermata.nothing_written():
        for verb in (("apply", file), ("withdraw", "1"), ("revert", "1")):
            answer = fermata("prices", *verb, "--note", "up")
            assert (2, "fermata: as: say who does this, for the history: --as NAME, or FERMATA_ACTOR") == (
                answer.code,
                answer.complaint,
            )
    monkeypatch.setenv("FERMATA_ACTOR", "ben")
    assert fermata.ok("prices", "apply", file, "--note", "up", "--force", "x")["author"] == "ben"


def test_a_book_that_is_not_in_force_yet_can_be_withdrawn(fermata: Fermata, tmp_path: Path) -> None:
    """It never comes into force, its time is free again, and the history says who took it back and why."""
    planned = ("--effective-at", LATER)
    fermata.ok("prices", "apply", written(tmp_path, dearer(5)), *WHY, *planned)
    done = fermata.ok("prices", "withdraw", "2", "--note", "too dear", "--as", "ben")
    assert {"book": 2, "withdrawn_by": "ben", "withdrawn_note": "too dear", "in_force": False}.items() <= done.items()
    assert fermata.ok("prices", "show", "--at", "2199-06-01T00:00:00Z")["book"] == 1
    assert fermata.ok("prices", "apply", written(tmp_path, dearer(6)), *WHY, *planned)["book"] == 3
    # A second time it is the first answer again.
    assert done == fermata.ok("prices", "withdraw", "2", "--note", "again", "--as", "eve")
    told = fermata("prices", "history").out
    assert "withdrawn by ben: too dear" in told
    assert ["planned", "withdrawn", "in force"] == [
        next(word for word in ("planned", "withdrawn", "in force", "past") if f"UTC  {word} " in line)
        for line in told.splitlines()[1:]
    ], told


def test_a_book_that_was_in_force_is_not_withdrawn(fermata: Fermata, tmp_path: Path) -> None:
    """Jobs may have been priced by it, before another followed it too."""
    fermata.ok("prices", "apply", written(tmp_path, dearer(5)), *WHY)
    with fermata.nothing_written():
        for book, problem in (("1", "is in force since"), ("2", "is in force since"), ("9", "there is no such book")):
            answer = fermata("prices", "withdraw", book, *MIA)
            assert answer.code == 2
            assert problem in answer.complaint


def test_an_old_book_is_put_in_force_again_as_a_new_one(fermata: Fermata, tmp_path: Path) -> None:
    """The same document under a new number; the history says whose it is."""
    fermata.ok("prices", "apply", written(tmp_path, dearer(9)), *WHY)
    done = fermata.ok("prices", "revert", "1", "--note", "a slip", "--as", "ben")
    assert {"book": 3, "author": "ben", "reverts_to": 1, "replayed": False}.items() <= done.items()
    assert fermata("prices", "show").out == SHIPPED
    assert [3, 2, 1] == [book["book"] for book in fermata.ok("prices", "history")["books"]]
    assert "the document of book 1" in fermata("prices", "history").out
    assert fermata.ok("prices", "revert", "1", "--note", "again", "--as", "ben")["replayed"]


def test_a_price_may_name_a_plan_that_is_not_sold_any_more(fermata: Fermata, tmp_path: Path) -> None:
    """Whoever has it keeps it, and its price: the next book may say so, and a revert may bring it back."""
    (draft := tmp_path / "label.toml").write_text(with_override('plan = "label"'))
    fermata.ok("prices", "apply", str(draft), *WHY)
    plans = fermata.ok("plans", "show")["document"]
    head, _, rest = plans.partition("[plans.label]\n")
    (cut := tmp_path / "plans.toml").write_text(head + rest[rest.index("[packs.") :])
    fermata.ok("plans", "apply", str(cut), *MIA)
    assert "label" not in fermata.ok("plans", "show")["plans"]
    draft.write_text(draft.read_text().replace("base = 4\n", "base = 4.1\n", 1))
    assert 3 == fermata.ok("prices", "apply", str(draft), *WHY)["book"]
    assert 4 == fermata.ok("prices", "apply", written(tmp_path, SHIPPED), *WHY)["book"]
    assert 5 == fermata.ok("prices", "revert", "2", *MIA)["book"]
    # A plan that is to come may have its price before.
    (cut := tmp_path / "plans.toml").write_text(plans.replace("[plans.label]", "[plans.studio_house]"))
    fermata.ok("plans", "apply", str(cut), *MIA, "--effective-at", LATER)
    draft.write_text(draft.read_text().replace('plan = "label"', 'plan = "studio_house"'))
    assert 6 == fermata.ok("prices", "apply", str(draft), *WHY)["book"]
    draft.write_text(draft.read_text().replace('plan = "studio_house"', 'plan = "studio_hous"'))
    assert "did you mean studio_house?" in fermata("prices", "apply", str(draft), *WHY).complaint


def test_a_diff_says_what_changes_value_by_value(fermata: Fermata, tmp_path: Path) -> None:
    """Between two books, or between the one in force and a draft; comments are no change."""
    draft = written(tmp_path, "# cheaper\n" + dearer(9).replace("multiplier = 2.5", "multiplier = 3"))
    assert [
        {"table": "generation.output", "key": "base", "before": "4", "after": "9"},
        {"table": 'generation.overrides if model = "studio"', "key": "multiplier", "before": "2.5", "after": "3"},
    ] == fermata.ok("prices", "diff", draft)["changes"]
    fermata.ok("prices", "apply", draft, *WHY)
    assert "~ [generation.output] base: 9 -> 4\n" in fermata("prices", "diff", "1").out
    assert "~ [generation.output] base: 4 -> 9\n" in fermata("prices", "diff", "1", "2").out
    assert "at most: generation costs +" in fermata("prices", "diff", "1", "2").out
    assert "no difference but comments and layout" in fermata("prices", "diff", "2", "2").out
    refused = fermata("prices", "diff", written(tmp_path, dearer(-1)))
    assert (2, "fermata: [generation.output] base: must be between 0 and 100000") == (refused.code, refused.complaint)


def test_the_bounds_of_a_price_are_settings(fermata: Fermata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no price may be above is a slip of the finger in one shop and a price in another."""
    monkeypatch.setenv("FERMATA_PRICE_CREDITS_MAX", "4")
    refused = fermata("prices", "apply", written(tmp_path, dearer(5)), *WHY)
    assert "base: must be between 0 and 4" in refused.complaint


@pytest.mark.parametrize(("bases", "numbers"), [((5, 6, 7), {2, 3, 4}), ((7, 7, 7), {2})])
async def test_books_applied_at_once_are_numbered_in_turn(
    database: Database, bases: tuple[int, ...], numbers: set[int]
) -> None:
    """Different files each get a number and none is left out; the same file is one book."""
    drafts = [parse_price_book(dearer(base)) for base in bases]
    async with opened(database) as store:
        shelf = price_shelf(store.engine)
        applied = await asyncio.gather(
            *(shelf.apply(BookDraft(draft.document, draft.digest, "mia", "up")) for draft in drafts)
        )
        history = await shelf.history()
    assert numbers == {book.book for book in applied}
    assert {1, *numbers} == {book.book for book in history}


async def test_the_plans_that_a_price_may_name_are_read_again_when_there_are_more(database: Database) -> None:
    """By a desk that lives as long as its process."""
    async with opened(database) as store:
        desk, plans = desk_of(store), plan_shelf(store.engine)
        named = with_override('plan = "choir"')
        for _ in range(2):
            with pytest.raises(PriceBookError, match="no such value 'choir'"):
                await desk.read(named)
        sold = (await plans.shown()).document.replace("[plans.label]", "[plans.choir]")
        await plans.apply(BookDraft(sold, "digest", "mia", "a choir"))
        assert named == (await desk.read(named)).document
        assert named == (await desk.read(named)).document


async def test_of_drafts_that_began_from_one_book_the_first_alone_is_applied(database: Database) -> None:
    """However close together they come: none is undone by the next."""
    drafts = [parse_price_book(dearer(base)) for base in (5, 6, 7)]
    async with opened(database) as store:
        shelf = price_shelf(store.engine)
        answers = await asyncio.gather(
            *(shelf.apply(BookDraft(draft.document, draft.digest, "mia", "up", seen=Seen(1))) for draft in drafts),
            return_exceptions=True,
        )
        assert [2, 1] == [line.book for line in await shelf.history()]
    assert 1 == sum(isinstance(answer, BookApplied) for answer in answers)
    assert 2 == sum(isinstance(answer, Overtaken) for answer in answers)


async def test_a_trial_writes_nothing(database: Database) -> None:
    """It is refused where the draft would be, and else let in without a number; the draft may still be applied."""
    book = parse_price_book(dearer(5))
    draft = BookDraft(book.document, book.digest, "mia", "up", seen=Seen(1))
    async with opened(database) as store:
        shelf = price_shelf(store.engine)
        assert 0 == (await shelf.apply(draft, trial=True)).book
        assert [1] == [line.book for line in await shelf.history()]
        with pytest.raises(Refused, match="there is no book 7"):
            await shelf.apply(replace(draft, seen=Seen(7)), trial=True)
        assert 2 == (await shelf.apply(draft)).book


@pytest.mark.parametrize("shelf_of", [price_shelf, plan_shelf])
async def test_plans_and_prices_stand_on_shelves_of_one_make(
    database: Database, shelf_of: Callable[[AsyncEngine], BookShelf]
) -> None:
    """Both are applied, planned, withdrawn, compared and shown in the same way."""
    async with opened(database) as store:
        shelf = shelf_of(store.engine)
        first = (await shelf.shown()).document
        later = datetime(2199, 1, 1, tzinfo=UTC)
        draft = BookDraft(first + "\nnew = 1\n", "digest", "mia", "up", later)
        assert 2 == (await shelf.apply(draft)).book
        with pytest.raises(Refused, match="book 2 comes into force at that very time"):
            await shelf.apply(replace(draft, digest="other"))
        assert (await shelf.withdraw(2, "mia", "no")).withdrawn_note == "no"
        assert [(2, False), (1, True)] == [(line.book, line.in_force) for line in await shelf.history()]
        assert first == (await shelf.shown(at=later)).document


def test_a_quote_has_its_lines_and_stores_nothing(fermata: Fermata, tmp_path: Path) -> None:
    """What it would cost at most, rule by rule; a file is measured where it lies."""
    with fermata.nothing_written(tmp_path / "artifacts"):
        quote = fermata.ok("prices", "quote", "generation", "--param", "prompt=x", "--param", "seconds=60")
        split = fermata.ok("prices", "quote", "stem_split", "--input", f"mix={silence(tmp_path / 'm.wav', 3)}")
    assert {"kind", "total", "book", "lines"} == quote.keys()
    assert {"rule", "quantity", "rate", "amount"} == quote["lines"][0].keys()
    assert (16, 20) == (quote["total"], split["total"])
