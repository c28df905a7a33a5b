"""Whatever is wrong with what was typed: exit code 2, the field named on one line, nothing written or reserved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli_support import Answer, Fermata, silence

HUGE = "9" * 40
NO_JOB = "0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"
SONG = ("jobs", "submit", "generation", "--account", "ada")
PAID = (*SONG, "--param", "seconds=20")
ASKED = (*PAID, "--param", "prompt=x")

#: Arguments, and how the line on stderr begins.
TYPED = [
    # amounts
    (("accounts", "grant", "ada", "0"), "amount: must be a whole number from 1 to 1,000,000,000,000"),
    (("accounts", "grant", "ada", "-5"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "1.5"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "1e3"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "ten"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "NaN"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", ""), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "٣"), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", HUGE), "amount: must be a whole number from 1"),
    (("accounts", "grant", "ada", "1000000000001"), "amount: must be a whole number from 1"),
    (("accounts", "topup", "ada", "-1"), "amount: must be a whole number from 1"),
    (("accounts", "topup", "ada"), "credits: give either a number of credits or a pack"),
    (("accounts", "topup", "ada", "5", "--pack", "small"), "credits: give either a number of credits or a pack"),
    ((*ASKED, "--max-credits", "-1"), "max_credits: must be a whole number from 0 to 1,000,000,000,000"),
    ((*ASKED, "--max-credits", "7"), "max_credits: the quote is 8 credits, above the 7 allowed"),
    # who and what is not there
    (("accounts", "balance", "nobody"), "account: no account 'nobody'"),
    (("accounts", "journal", "nobody"), "account: no account 'nobody'"),
    (("accounts", "grant", "nobody", "5"), "account: no account 'nobody'"),
    (("accounts", "topup", "nobody", "5"), "account: no account 'nobody'"),
    (("accounts", "subscribe", "nobody", "creator"), "account: no account 'nobody'"),
    (("accounts", "subscribe", "ada", "gold"), "plan: no plan 'gold'; there are creator, label, starter"),
    (("accounts", "topup", "ada", "--pack", "huge"), "pack: no pack 'huge'; there are large, medium, small"),
    (("accounts", "create", "a b"), "account: an id has 1 to 128 letters"),
    (("accounts", "create", "a" * 129), "account: an id has 1 to 128 letters"),
    (("accounts", "create", ""), "account: an id has 1 to 128 letters"),
    (("accounts", "create", "\x1b[31m"), "account: an id has 1 to 128 letters"),
    (("accounts", "balance", "ada\udcff"), "account: an id has 1 to 128 letters"),
    (("jobs", "submit", "generatoin", "--account", "ada"), "kind: no such kind (known: "),
    (("jobs", "submit", "generation", "--account", "nobody", *ASKED[5:]), "account: no account 'nobody'"),
    (("jobs", "show", NO_JOB), f"job: no job {NO_JOB}"),
    # as files from other systems have them
    *(
        (("jobs", verb, strange), "job: must be an id such as ")
        for verb in ("show", "cancel")
        for strange in (f"{NO_JOB}\r", f"\ufeff{NO_JOB}", f"{NO_JOB}\r\n{NO_JOB}")
    ),
    (("jobs", "receipt", NO_JOB), f"job: no job {NO_JOB}"),
    (("jobs", "cancel", NO_JOB), f"job: no job {NO_JOB}"),
    (("jobs", "retry", NO_JOB), f"job: no job {NO_JOB}"),
    (("jobs", "show", "12"), "job: must be an id such as"),
    (("jobs", "cancel", NO_JOB, "--reason", "x" * 501), "reason: must be 1 to 369 printable characters"),
    (("jobs", "list", "--account", "nobody"), "account: no account 'nobody'"),
    (("jobs", "list", "--state", "done"), "state: no state 'done'; there are "),
    (("jobs", "list", "--limit", "-1"), "limit: must be a whole number from 1 to 1,000"),
    (("jobs", "list", "--limit", "1001"), "limit: must be a whole number from 1 to 1,000"),
    (("jobs", "list", "--after", "x"), "after: must be an id such as"),
    (("jobs", "list", "--kind", "x\ny"), "kind: must be 1 to 64 printable characters"),
    (("accounts", "journal", "ada", "--after", HUGE), "after: must be a whole number from 0"),
    (("artifacts", "get", NO_JOB), f"artifact: no artifact {NO_JOB}"),
    (("artifacts", "list", "--account", "nobody"), "account: no account 'nobody'"),
    (("prices", "show", "--book", "99"), "book: there is no such book"),
    (("prices", "show", "--book", HUGE), "book: must be a whole number from 1"),
    (("prices", "show", "--at", "2001-01-01T00:00:00Z"), "at: no book yet"),
    (("prices", "show", "--at", "yesterday"), "at: must be a time such as"),
    (("prices", "show", "--book", "1", "--at", "2199-01-01T00:00:00Z"), "at: give either a book or a time"),
    (("prices", "diff", "1", "99"), "book: there is no such book"),
    (("prices", "diff", "0"), "book: must be a whole number from 1"),
    (("prices", "withdraw", "2", "--note", "x", "--as", "x" * 129), "as: must be 1 to 128 printable characters"),
    (("prices", "withdraw", "2", "--note", "a\nb", "--as", "mia"), "note: must be 1 to 500 printable characters"),
    (("prices", "revert", "99", "--note", "x", "--as", "mia"), "book: there is no such book"),
    (("prices", "rehearse", "pyproject.toml", "--since", "1y"), "since: must be a length of time such as 90m, 12h"),
    (("prices", "rehearse", "pyproject.toml", "--since", "0d"), "since: must be a length of time such as 90m, 12h"),
    (("prices", "rehearse", "pyproject.toml", "--since", "999999w"), "since: must be a length of time such as 90m"),
    (("prices", "quote", "generatoin"), "kind: no such kind (known: "),
    (("queues", "--watch", "--json"), "watch: goes with no --json"),
    # fields of a request
    ((*PAID,), "prompt: is required"),
    ((*SONG, "--param", "prompt=x", "--param", "seconds=0"), "seconds: must be between"),
    ((*SONG, "--param", "prompt=x", "--param", "seconds=NaN"), "seconds: must be a number, not text"),
    ((*SONG, "--param", "prompt=x", "--param", f"seconds={HUGE}"), "seconds: must be between"),
    ((*ASKED, "--param", "seed=1.5"), "seed: must be a whole number"),
    ((*ASKED, "--param", "seed=true"), "seed: must be a whole number"),
    ((*ASKED, "--param", "model=studoi"), "model: must be"),
    ((*ASKED, "--param", "modle=studio"), "modle: is not a known field (did you mean model?)"),
    ((*ASKED, "--param", "prompt=y"), "param 'prompt': is given twice"),
    ((*ASKED, "--param", "loose"), "param: must be written name=value (given 'loose')"),
    ((*PAID, "--param", f"prompt={'x' * 100_000}"), "prompt: "),
    ((*PAID, "--param", "prompt=a\x1b[31m"), "prompt: must not contain control characters"),
    ((*PAID, "--param", "prompt=\udcff"), "prompt: must be valid Unicode, without lone surrogates"),
    ((*PAID, "--param", "prompt=a\x00b"), "prompt: must not contain NUL characters"),
    ((*PAID, "--param", "prompt= "), "prompt: "),
    ((*ASKED, "--metadata", r'note="a\u0000b"'), "metadata: must not contain NUL characters"),
    ((*ASKED, "--metadata", f"note={'x' * 70_000}"), "metadata: has 1 name and 70,011 bytes; at most 100 and 8,192"),
    (
        (*ASKED, *(word for number in range(101) for word in ("--metadata", f"{number}=x"))),
        "metadata: has 101 names and 901 bytes; at most 100 and 8,192",
    ),
    ((*ASKED, "--input", f"{'x' * 70_000}={NO_JOB}"), "params: the request has 70,"),
    ((*ASKED, "--metadata", "note=\udcff"), "metadata: must be JSON"),
    ((*ASKED, "--on-insufficient", "pray"), "on_insufficient: must be refuse or wait"),
    ((*ASKED, "--run-at", "2199-01-01T00:00:00"), "run_at: must carry a time zone"),
    ((*ASKED, "--run-at", "tomorrow"), "run_at: must be a time such as"),
    ((*ASKED, "--ends-by", "0001-01-01T00:00:00+00:00"), "ends_by: must be between the years"),
    ((*ASKED, "--ends-by", "2024-01-01T00:00:00Z"), "ends_by: must be in the future"),
    (
        (*ASKED, "--run-at", "2199-01-02T00:00:00Z", "--ends-by", "2199-01-01T00:00:00Z"),
        "ends_by: must be after run_at",
    ),
    ((*ASKED, "--key", ""), "key: must be 1 to 255 printable characters"),
    ((*ASKED, "--key", "k" * 256), "key: must be 1 to 255 printable characters"),
    ((*ASKED, "--input", f"voice={NO_JOB}"), f"inputs.voice: the account has no artifact {NO_JOB}"),
    (
        ("jobs", "submit", "vocal_conversion", "--account", "ada", "--input", f"voice={NO_JOB}"),
        f"inputs.voice: the account has no artifact {NO_JOB}",
    ),
    (("jobs", "submit", "vocal_conversion", "--account", "ada"), "inputs.voice: is required"),
    # words for the books
    (("accounts", "grant", "ada", "5", "--note", "a\nb"), "note: must be 1 to 500 printable characters on one line"),
    (("accounts", "grant", "ada", "5", "--note", "x" * 501), "note: must be 1 to 500 printable characters"),
    (("accounts", "grant", "ada", "5", "--reference", ""), "reference: must be 1 to 255 printable characters"),
    (("accounts", "grant", "ada", "5", "--reference", "a\x07"), "reference: must be 1 to 255 printable characters"),
    (("accounts", "grant", "ada", "5", "--as", "x" * 129), "as: must be 1 to 128 printable characters"),
    (("accounts", "grant", "ada", "5", "--expires-at", "2020-01-01T00:00:00Z"), "expires_at: must be in the future"),
    (("accounts", "grant", "ada", "5", "--expires-at", "2199-01-01"), "expires_at: must carry a time zone"),
    # usage
    (("accounts", "grant", "ada"), 'Command "accounts grant" parameter AMOUNT requires an argument.'),
    (("accounts", "grant", "ada", "5", "--nope"), "Unknown option: --nope."),
    (("accounts", "grnat", "ada"), 'Unknown command "grnat". Did you mean "grant"?'),
    (("frobnicate",), 'Unknown command "frobnicate".'),
    (("accounts", "balance", "ada", "bob"), "Unused Tokens: ['bob']."),
    (("worker", "generatoin"), "queue: no queue 'generatoin'; did you mean generation?"),
    (("migrate", "--passwords", "x"), "passwords: goes with --roles only"),
    (("migrate", "--roles"), "passwords: --roles needs a file"),
]


def test_what_can_not_be_is_refused(fermata: Fermata, subtests: pytest.Subtests) -> None:
    """One line that names the field and the limit; exit code 2; every table as it was."""
    fermata.account("ada", 100)
    # One database for all of them, as none of them changes it.
    before = fermata.rows()
    for arguments, line in TYPED:
        with subtests.test(line=line[:60]):
            assert_refused(fermata(*arguments), line)
            assert before == fermata.rows()


def assert_refused(answer: Answer, line: str) -> None:
    """A refusal of one line, without a traceback, and nothing on stdout."""
    assert (2, "") == (answer.code, answer.out), answer.err
    assert answer.complaint.startswith(f"fermata: {line}"), answer.err
    assert answer.complaint.count("\n") == 0
    assert all(sign.isprintable() or sign == "\n" for sign in answer.err)
    assert len(answer.complaint) < 300


def lying(folder: Path) -> Path:
    """A WAV whose header claims far more than there is."""
    path = silence(folder / "lying.wav", 1)
    content = bytearray(path.read_bytes())
    content[40:44] = (1_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def truncated(folder: Path) -> Path:
    """A WAV that was cut off."""
    path = silence(folder / "truncated.wav", 2)
    path.write_bytes(path.read_bytes()[:9_000])
    return path


def text(folder: Path) -> Path:
    """No audio at all, whatever it is called."""
    (path := folder / "song.wav").write_text("la la la")
    return path


def empty(folder: Path) -> Path:
    """Nothing."""
    (path := folder / "empty.wav").touch()
    return path


def link(folder: Path) -> Path:
    """A link, which might lead anywhere by the time it is read."""
    (path := folder / "link.wav").symlink_to(silence(folder / "real.wav", 1))
    return path


def pipe(folder: Path) -> Path:
    """A pipe, which would never end."""
    os.mkfifo(path := folder / "pipe.wav")
    return path


FILES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: folder / "missing.wav", "can't be read: no such file or directory"),
    (lambda folder: folder, "must be a plain file"),
    (link, "must be a plain file"),
    (pipe, "must be a plain file"),
    (empty, "is empty"),
    (text, ""),
    (truncated, ""),
    (lying, ""),
    (lambda folder: silence(folder / "long.wav", 601), ""),
    (lambda folder: folder / ("x" * 300), "can't be read: file name too long"),
]


@pytest.mark.parametrize(("make", "problem"), FILES)
def test_a_file_that_can_not_be_used_leaves_nothing(
    fermata: Fermata, tmp_path: Path, make: Callable[[Path], Path], problem: str
) -> None:
    """Neither `artifacts put` nor a submit keeps a byte of it; the line names the file or the input."""
    fermata.account("ada", 100)
    file = make(tmp_path)
    store = tmp_path / "artifacts"
    with fermata.nothing_written(store):
        assert_refused(fermata("artifacts", "put", str(file), "--account", "ada"), f"file: {problem}")
        convert = ("jobs", "submit", "vocal_conversion", "--account", "ada")
        assert_refused(fermata(*convert, "--input", f"voice={file}"), f"inputs.voice: the file {problem}")


def test_a_second_bad_file_keeps_the_first_one_out(fermata: Fermata, tmp_path: Path) -> None:
    """All files are looked at before any is stored."""
    fermata.account("ada", 100)
    convert = ("jobs", "submit", "vocal_conversion", "--account", "ada")
    good, bad = silence(tmp_path / "good.wav", 1), text(tmp_path)
    with fermata.nothing_written(tmp_path / "artifacts"):
        answer = fermata(*convert, "--input", f"voice={good}", "--input", f"reference={bad}")
    assert_refused(answer, "inputs.reference: the file ")


def test_an_artifact_of_another_account_is_none(fermata: Fermata, tmp_path: Path) -> None:
    """Ids of others are not usable, and no different from ids that don't exist."""
    fermata.account("ada", 100)
    fermata.account("bob", 100)
    put = fermata.ok("artifacts", "put", str(silence(tmp_path / "voice.wav", 1)), "--account", "bob")
    with fermata.nothing_written():
        answer = fermata(
            *("jobs", "submit", "vocal_conversion", "--account", "ada", "--input", f"voice={put['artifact']}")
        )
    assert_refused(answer, f"inputs.voice: the account has no artifact {put['artifact']}")


@pytest.mark.parametrize("to", ["", "nowhere/x.wav", ".", "a\x00b"])
def test_a_place_that_can_not_be_written_is_refused(
    fermata: Fermata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """`artifacts get --to` names a file in a folder that is there."""
    fermata.account("ada")
    put = fermata.ok("artifacts", "put", str(silence(tmp_path / "voice.wav", 1)), "--account", "ada")
    monkeypatch.chdir(tmp_path)
    answer = fermata("artifacts", "get", put["artifact"], "--to", to)
    assert_refused(answer, "to: must be a file in a folder that is there")


def test_no_words_of_a_customer_become_a_path(
    fermata: Fermata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However an artifact is called, it is fetched under its id."""
    fermata.account("ada")
    put = fermata.ok(
        *("artifacts", "put", str(silence(tmp_path / "voice.wav", 1)), "--account", "ada", "--name", "../../escape")
    )
    (home := tmp_path / "home").mkdir()
    monkeypatch.chdir(home)
    got = fermata.ok("artifacts", "get", put["artifact"])
    assert f"{put['artifact']}.wav" == got["file"]
    assert [f"{put['artifact']}.wav"] == [path.name for path in home.iterdir()]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder / "missing.toml", "must be a file that is there"),
        (lambda folder: folder, "must be a plain file"),
        (pipe, "must be a plain file"),
        (
            lambda folder: silence(folder / "audio.toml", 300, 48_000),
            "has 28,800,044 bytes; at most 1,000,000 are read",
        ),
    ],
)
def test_a_document_that_can_not_be_read_is_refused(
    fermata: Fermata, tmp_path: Path, make: Callable[[Path], Path], problem: str
) -> None:
    """`prices apply` reads plain text files of a sane size."""
    with fermata.nothing_written():
        assert_refused(
            fermata("prices", "apply", str(make(tmp_path)), "--note", "x", "--as", "mia"), f"file: {problem}"
        )


def test_a_document_that_is_no_text_is_refused(fermata: Fermata, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are not guessed at."""
    (path := tmp_path / "prices.toml").write_bytes(b"\xff\xfe")
    with fermata.nothing_written():
        assert_refused(
            fermata("prices", "apply", str(path), "--note", "x", "--as", "mia"), "file: is not text in UTF-8"
        )
