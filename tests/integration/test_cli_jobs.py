"""`fermata jobs …` and `artifacts …` on a real database, without workers: what is asked, shown, listed and stopped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.integration.cli_support import ROOT, Answer, Fermata, files_in, silence

SONG = ("generation", "--account", "ada", "--param", "prompt=rain", "--param", "seconds=20")

SUBMITTED_KEYS = {"id", "account", "kind", "state", "quoted", "book", "replayed"}
SHOWN_KEYS = SUBMITTED_KEYS | {
    *("attempts", "reserved", "charged", "refunded", "partial", "reason", "waiting_for", "outputs", "progress"),
}


def submitted(fermata: Fermata, *more: str) -> dict[str, object]:
    """A song of Ada's."""
    document: dict[str, object] = fermata.ok("jobs", "submit", *SONG, *more)
    return document


def test_a_submit_answers_with_the_public_keys(fermata: Fermata) -> None:
    """What scripts rely on: the id, the quote, the book, whether it was asked before."""
    fermata.account("ada", 100)
    answer = fermata("jobs", "submit", *SONG, "--json")
    job = answer.document
    assert SUBMITTED_KEYS | {"key"} == job.keys()
    assert ("ada", "generation", "queued", 8, 1, False) == tuple(
        job[name] for name in ("account", "kind", "state", "quoted", "book", "replayed")
    )
    assert f"key {job['key']}\n" == answer.err


def test_the_same_key_is_the_same_job(fermata: Fermata) -> None:
    """Asked again under its key a job is not made twice; another request under it is a conflict."""
    fermata.account("ada", 100)
    first, second = submitted(fermata, "--key", "k1"), submitted(fermata, "--key", "k1")
    assert second == {**first, "replayed": True}
    with fermata.nothing_written():
        answer = fermata("jobs", "submit", *SONG, "--param", "seed=7", "--key", "k1")
    assert answer.code == 2
    assert answer.complaint.startswith("fermata: key: 'k1' was used before for another request")


def test_a_shown_job_says_what_it_waits_for(fermata: Fermata) -> None:
    """No worker is alive, so that is what keeps it; a start time of its own comes first."""
    fermata.account("ada", 100)
    shown = fermata.ok("jobs", "show", str(submitted(fermata)["id"]))
    assert shown.keys() >= SHOWN_KEYS
    assert shown["waiting_for"] == "no_worker"
    later = submitted(fermata, "--run-at", "2199-01-01T00:00:00Z", "--ends-by", "2199-01-02T00:00:00Z")
    assert fermata.ok("jobs", "show", str(later["id"]))["waiting_for"] == "run_at"
    assert "waits for" in fermata("jobs", "show", str(later["id"])).out


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        (("--param", "prompt=123", "--param", "seconds=20"), {"prompt": "123", "seconds": 20.0}),
        (("--param", "prompt=null", "--param", "seconds=20.5"), {"prompt": "null", "seconds": 20.5}),
        (("--param", 'prompt="hi"', "--param", "seconds=20"), {"prompt": '"hi"'}),
        (("--param", "prompt=a=b", "--param", "seconds=20"), {"prompt": "a=b"}),
        (("--param", "prompt=x", "--param", "seconds=20", "--param", "seed=42"), {"seed": 42}),
        (("--param", "prompt=x", "--param", "seconds=20", "--param", "model=draft"), {"model": "draft"}),
    ],
)
def test_a_param_has_the_type_of_its_field(fermata: Fermata, typed: tuple[str, ...], stored: dict[str, object]) -> None:
    """Text is taken as it stands, whatever it looks like; numbers are numbers."""
    fermata.account("ada", 100)
    job = fermata.ok("jobs", "submit", "generation", "--account", "ada", *typed)
    assert fermata.ok("jobs", "show", job["id"])["request"].items() >= stored.items()


def test_a_list_is_json_or_words_with_commas(fermata: Fermata, tmp_path: Path) -> None:
    """`stems=drums,bass` and `stems=["drums","bass"]` ask the same."""
    fermata.account("ada", 100)
    mix = silence(tmp_path / "mix.wav", 2)
    split = ("stem_split", "--account", "ada", "--input", f"mix={mix}", "--key", "k")
    first = fermata.ok("jobs", "submit", *split, "--param", "stems=drums,bass")
    second = fermata.ok("jobs", "submit", *split, "--param", 'stems=["drums","bass"]')
    assert (10, True, first["id"]) == (first["quoted"], second["replayed"], second["id"])


def test_a_file_given_as_an_input_is_stored_once(fermata: Fermata, tmp_path: Path) -> None:
    """The same bytes are the same artifact, so a submit that is repeated under its key is a replay."""
    fermata.account("ada", 100)
    voice = silence(tmp_path / "voice.wav", 2)
    convert = ("vocal_conversion", "--account", "ada", "--input", f"voice={voice}", "--key", "k")
    first, second = fermata.ok("jobs", "submit", *convert), fermata.ok("jobs", "submit", *convert)
    assert second == {**first, "replayed": True}
    artifacts = fermata.ok("artifacts", "list", "--account", "ada")["artifacts"]
    assert [("voice.wav", 2.0)] == [(artifact["name"], artifact["seconds"]) for artifact in artifacts]


def test_an_artifact_goes_in_and_comes_out_the_same(fermata: Fermata, tmp_path: Path) -> None:
    """What `get` writes has the bytes that `put` took; a file that is there is kept unless that was said."""
    fermata.account("ada")
    voice = silence(tmp_path / "voice.wav", 1)
    put = fermata.ok("artifacts", "put", str(voice), "--account", "ada", "--name", "Take 1")
    keys = ("artifact", "account", "name", "media_type", "seconds", "sample_rate", "channels", "bytes", "sha256")
    assert put.keys() >= {*keys, "job", "created_at"}
    assert hashlib.sha256(voice.read_bytes()).hexdigest() == put["sha256"]
    target = tmp_path / "out.wav"
    got = fermata.ok("artifacts", "get", put["artifact"], "--to", str(target))
    assert got == {"artifact": put["artifact"], "file": str(target), "bytes": len(voice.read_bytes())}
    assert voice.read_bytes() == target.read_bytes()
    target.write_bytes(b"mine")
    assert fermata("artifacts", "get", put["artifact"], "--to", str(target)).code == 2
    assert target.read_bytes() == b"mine"
    assert fermata("artifacts", "get", put["artifact"], "--to", str(target), "--force").code == 0
    assert voice.read_bytes() == target.read_bytes()


def test_a_disk_of_ours_that_takes_nothing_is_not_the_customers_fault(fermata: Fermata, tmp_path: Path) -> None:
    """The file is fine: exit code 3, and asked again later it may be taken."""
    fermata.account("ada")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "inputs").touch()
    answer = fermata("artifacts", "put", str(silence(tmp_path / "good.wav", 1)), "--account", "ada")
    assert 3 == answer.code
    assert answer.complaint.startswith("fermata: the artifact store can't be written: ")


def test_a_damaged_artifact_is_not_handed_out(fermata: Fermata, tmp_path: Path) -> None:
    """The answer is no, and nothing is left of it, not even where --force might replace a good file."""
    fermata.account("ada")
    put = fermata.ok("artifacts", "put", str(silence(tmp_path / "voice.wav", 1)), "--account", "ada")
    stored = next((tmp_path / "artifacts" / "inputs").rglob(put["artifact"]))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    (target := tmp_path / "out.wav").write_bytes(b"mine")
    before = files_in(tmp_path)
    answer = fermata("artifacts", "get", put["artifact"], "--to", str(target), "--force")
    assert (1, "fermata: a stored input no longer has its checksum") == (answer.code, answer.complaint)
    assert (b"mine", before) == (target.read_bytes(), files_in(tmp_path))


def test_a_cancelled_job_ends_at_once_and_only_once(fermata: Fermata) -> None:
    """Cancelling again answers no: it had ended before."""
    fermata.account("ada", 100)
    job = str(submitted(fermata)["id"])
    done = fermata.ok("jobs", "cancel", job, "--reason", "changed my mind", "--as", "zoe")
    assert done == {"id": job, "account": "ada", "state": "cancelled", "cancel_asked": False, "already_ended": False}
    again = fermata("jobs", "cancel", job, "--json")
    assert (1, True) == (again.code, again.document["already_ended"])
    shown = fermata.ok("jobs", "show", job)
    assert ("cancelled", "changed my mind", 0) == (shown["state"], shown["message"], shown["charged"])


def test_a_cancel_is_in_the_log_once(fermata: Fermata) -> None:
    """Who did it; an attempt that came too late changed nothing."""
    fermata.account("ada", 100)
    job = str(submitted(fermata)["id"])
    before = fermata.rows()["audit_log"]
    fermata.ok("jobs", "cancel", job, "--as", "zoe")
    assert 1 == fermata("jobs", "cancel", job, "--as", "eve").code
    assert before + 1 == fermata.rows()["audit_log"]


def test_a_retry_is_a_new_job_and_asked_twice_is_one(fermata: Fermata) -> None:
    """Only an ended job can be tried again; the key is retry:JOB, so a second click is a replay."""
    fermata.account("ada", 100)
    job = str(submitted(fermata)["id"])
    assert fermata("jobs", "retry", job).complaint == (
        f"fermata: job: {job} is queued: only an ended job can be tried again"
    )
    fermata.ok("jobs", "cancel", job)
    first, second = fermata.ok("jobs", "retry", job), fermata.ok("jobs", "retry", job)
    assert f"retry:{job}" == first["key"]
    assert second == {**first, "replayed": True}
    assert job == fermata.ok("jobs", "show", first["id"])["retry_of"]


def test_a_receipt_has_the_lines_of_its_quote(fermata: Fermata) -> None:
    """Why it would cost that much, rule by rule."""
    fermata.account("ada", 100)
    receipt = fermata.ok("jobs", "receipt", str(submitted(fermata)["id"]))
    assert [("output 1", "4"), ("output 1 seconds_out", "4"), ("if model = standard", "0")] == [
        (line["rule"], line["amount"]) for line in receipt["quote_lines"]
    ]
    assert {"quoted", "reserved", "charged", "refunded", "lots", "charge_lines", "attempts"} <= receipt.keys()


def test_jobs_are_listed_by_account_state_and_kind(fermata: Fermata) -> None:
    """The newest first, a page at a time."""
    fermata.account("ada", 100)
    ids = [submitted(fermata)["id"] for _ in range(3)]
    fermata.ok("jobs", "cancel", str(ids[0]))
    queued = fermata.ok("jobs", "list", "--account", "ada", "--state", "queued", "--kind", "generation")
    assert [ids[2], ids[1]] == [job["id"] for job in queued["jobs"]]
    page = fermata.ok("jobs", "list", "--limit", "2")
    rest = fermata.ok("jobs", "list", "--limit", "2", "--after", page["next"])
    assert [ids[2], ids[1], ids[0]] == [job["id"] for job in page["jobs"] + rest["jobs"]]
    assert rest["next"] is None


def test_no_word_of_a_customer_steers_a_terminal(fermata: Fermata, tmp_path: Path) -> None:
    """Escapes, bidirectional overrides and markup are written out in tables, and harmless in JSON."""
    fermata.account("ada", 100)
    hostile = "\x1b[31mred\x07 [bold]x[/bold] \u202egnp.exe \u200b"
    job = submitted(fermata, "--metadata", f"title={hostile}")["id"]
    shown = fermata("jobs", "show", str(job))
    assert all(sign.isprintable() or sign == "\n" for sign in shown.out)
    assert r"\x1b[31mred\x07 [bold]x[/bold] \u202egnp.exe \u200b" in shown.out
    as_json = fermata("jobs", "show", str(job), "--json")
    assert as_json.out.isascii()
    assert hostile == as_json.document["metadata"]["title"]


def test_a_job_that_can_not_run_is_refused_before_its_file_is_stored(fermata: Fermata, tmp_path: Path) -> None:
    """A quote above --max-credits leaves neither job nor artifact."""
    fermata.account("ada", 100)
    voice = silence(tmp_path / "voice.wav", 130)
    answer = quiet_submit(fermata, tmp_path, f"voice={voice}", "--max-credits", "14")
    assert (2, "fermata: max_credits: the quote is 15 credits, above the 14 allowed") == (answer.code, answer.complaint)


def quiet_submit(fermata: Fermata, tmp_path: Path, given: str, *more: str) -> Answer:
    """A conversion that must leave nothing behind."""
    with fermata.nothing_written(tmp_path / "artifacts"):
        return fermata("jobs", "submit", "vocal_conversion", "--account", "ada", "--input", given, *more)


def test_the_samples_we_ship_are_taken(fermata: Fermata) -> None:
    """A recording of ours goes through the same door as a customer's."""
    fermata.account("ada", 100)
    sample = next(
        path for path in sorted((ROOT / "tasks" / "samples").iterdir()) if path.suffix in {".flac", ".wav", ".ogg"}
    )
    assert fermata.ok("artifacts", "put", str(sample), "--account", "ada")["seconds"] > 1
