"""The command as a process: what it starts, says where, keeps to itself, and ends with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cyclopts
import pytest

from tests.integration.cli_support import ROOT, Fermata, run_command
from tests.proc import INTERRUPTIBLE
from tests.servers import Database
from tests.waiting import wait_until
from worker.cli import entry, following, opening
from worker.local.processes import spawn, stop
from worker.store.reads_jobs import WaitingFor

COMMAND = [sys.executable, "-m", "worker.cli"]
NOWHERE = "postgresql://fermata_app:CANARY-secret@127.0.0.1:1/fermata"

#: They run until they are stopped, and print nothing.
LONG_RUNNING = {"up", "api", "scheduler", "worker"}


def bare(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    return {name: value for name, value in environment.items() if not name.startswith("FERMATA_")}


def verbs(app: cyclopts.App = entry.app, *path: str) -> Iterator[tuple[tuple[str, ...], cyclopts.App]]:
    """Every verb there is."""
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        if command.default_command is None:
            yield from verbs(command, *path, name)
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in verbs()])
def test_every_verb_that_prints_has_json(path: tuple[str, ...], command: cyclopts.App) -> None:
    """And every verb says in its help what it does."""
    names = {name for argument in command.assemble_argument_collection() for name in argument.names}
    assert (path[0] not in LONG_RUNNING) is ("--json" in names)
    assert command.default_command is not None
    assert command.default_command.__doc__


@pytest.mark.parametrize(
    ("arguments", "strangers"),
    [
        (["--help"], {"pydantic", "sqlalchemy", "asyncpg", "numpy", "fastapi", "dramatiq", "redis", "tasks"}),
        (["accounts", "balance", "ada"], {"numpy", "scipy", "soundfile", "fastapi", "dramatiq", "redis", "alembic"}),
    ],
)
def test_a_verb_starts_only_what_it_needs(
    fermata: Fermata, environment: dict[str, str], arguments: list[str], strangers: set[str]
) -> None:
    """Help answers at once, and reading a balance loads neither sound nor queue nor web."""
    fermata.account("ada")
    script = (
        "import sys; from worker.cli import entry; code = entry.run(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert (0, set()) == (done.returncode, strangers & set(done.stderr.split()))


def test_stdout_has_the_document_and_nothing_else(fermata: Fermata, environment: dict[str, str]) -> None:
    """Keys, references and complaints go to stderr."""
    fermata.account("ada", 100)
    song = ("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=é", "--param", "seconds=20")
    done = run_command({**environment, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, *song, "--json")
    assert (0, f"key {done.document['key']}\n") == (done.code, done.err)
    shown = run_command({**environment, "PYTHONIOENCODING": "ascii"}, "jobs", "show", done.document["id"])
    assert (0, "") == (shown.code, shown.err)
    assert r"prompt" in shown.out


def test_a_reader_that_goes_away_is_no_error(environment: dict[str, str]) -> None:
    """`fermata … | head` ends quietly, with the verb's own exit code."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "prices", "show"], env=environment, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"FERMATA_LEASE_SECNDS": "9"}, ["FERMATA_LEASE_SECNDS", "did you mean FERMATA_LEASE_SECONDS?"]),
        ({"FERMATA_LEASE_SECONDS": "9", "FERMATA_RENEW_SECONDS": "8"}, ["FERMATA_LEASE_SECONDS", "FERMATA_RENEW_"]),
        ({"FERMATA_SLOTS": "CANARY-many"}, ["FERMATA_SLOTS"]),
        ({"FERMATA_SLOTS": "0"}, ["FERMATA_SLOTS"]),
        ({"FERMATA_DATABASE_URL": "mysql://u:CANARY-secret@h/d"}, ["FERMATA_DATABASE_URL", "postgresql://"]),
        ({"FERMATA_REDIS_URL": "http://:CANARY-secret@h"}, ["FERMATA_REDIS_URL", "redis://"]),
        ({"FERMATA_ARTIFACTS_URL": "ftp://u:CANARY-secret@h/x"}, ["FERMATA_ARTIFACTS_URL"]),
        ({"FERMATA_ARTIFACTS_URL": ""}, ["FERMATA_ARTIFACTS_URL", "not given"]),
        ({"FERMATA_EXTRA_KINDS": "nowhere:kind"}, ["nowhere:kind"]),
        ({"FERMATA_ENGINES": "/nowhere/engines.toml"}, ["/nowhere/engines.toml", "no such file"]),
        (
            {"FERMATA_FAILPOINTS": "x", "FERMATA_ENVIRONMENT": "development"},
            ["FERMATA_FAILPOINTS", "FERMATA_ENVIRONMENT"],
        ),
    ],
)
def test_settings_that_can_not_be_are_named(
    fermata: Fermata, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], named: list[str]
) -> None:
    """Exit code 2 and a line with every name concerned, but no value of a secret."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = fermata("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    assert (2, "") == (done.code, done.out)
    assert all(name in done.complaint for name in named), done.err
    assert "CANARY" not in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", [("accounts", "balance", "ada"), ("migrate",), ("scheduler",), ("worker",)])
def test_without_settings_the_line_says_what_to_do(
    fermata: Fermata,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: tuple[str, ...],
) -> None:
    """Start `fermata up`, or name the servers."""
    for name in environment.keys() - bare(environment).keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    done = fermata(*verb)
    assert (2, "") == (done.code, done.out)
    assert "FERMATA_DATABASE_URL" in done.complaint
    assert done.complaint.endswith("not given; set it, or start `fermata up` in this folder")


def up_file(environment: Mapping[str, str], folder: Path, mode: int) -> dict[str, str]:
    """As `fermata up` leaves it, with a shell that knows only where."""
    (folder / "data").mkdir()
    (file := folder / "data" / "env").write_text(
        "".join(f"export {name}='{environment[name]}'\n" for name in environment if name.endswith("_URL"))
    )
    file.chmod(mode)
    return {**bare(environment), "FERMATA_DATA_DIR": str(folder / "data"), "FERMATA_ENVIRONMENT": "test"}


def test_a_running_up_is_found_by_its_file(fermata: Fermata, environment: dict[str, str], tmp_path: Path) -> None:
    """In another shell nothing has to be set."""
    fermata.account("ada", 5)
    done = run_command(up_file(environment, tmp_path, 0o600), "accounts", "balance", "ada", "--json")
    assert (0, 5) == (done.code, done.document["spendable"]), done.err


def test_a_file_that_others_can_read_is_not_used(environment: dict[str, str], tmp_path: Path) -> None:
    """It could lead to somebody else's servers."""
    done = run_command(up_file(environment, tmp_path, 0o644), "accounts", "balance", "ada")
    assert (2, "") == (done.code, done.out)
    assert "must be ours, and readable by us alone" in done.complaint


def test_a_flag_that_does_not_fit_a_role_is_named_as_it_was_typed(fermata: Fermata) -> None:
    """Not by the column that it is stored in."""
    done = fermata("keys", "create", "ops", "--label", "Kim", "--accounts", "ada")
    assert (2, "") == (done.code, done.out)
    assert "fermata: accounts: is for billing, pipeline, viewer" in done.complaint


@pytest.mark.parametrize("state", WaitingFor)
def test_what_a_job_waits_for_is_said_in_words(state: WaitingFor) -> None:
    """As a person would, whatever it is."""
    assert "_" not in (words := following._WAITS_FOR[state])
    assert words not in ("paused", "not dispatched", "run at")


def test_a_port_that_is_taken_is_named_with_its_setting(environment: dict[str, str]) -> None:
    """What the operating system says alone names neither."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_command({**environment, "FERMATA_API_PORT": port}, "api")
    assert 0 != done.code
    assert "FERMATA_API_PORT" in done.err, done.err
    assert port in done.err


def test_a_file_that_a_killed_up_left_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    """Not a variable that nobody has set."""
    left = up_file({**environment, "FERMATA_DATABASE_URL": NOWHERE}, tmp_path, 0o600)
    done = run_command(left, "accounts", "balance", "ada")
    assert (3, "") == (done.code, done.out)
    assert f"its address is from {tmp_path / 'data' / 'env'}" in done.complaint
    assert "FERMATA_DATABASE_URL" not in done.complaint


@pytest.mark.parametrize("level", ["info", "debug"])
@pytest.mark.parametrize("verb", [("accounts", "balance", "ada"), ("audit",), ("migrate",), ("queues", "--json")])
def test_a_server_that_can_not_be_reached_is_exit_code_3(
    fermata: Fermata, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], level: str
) -> None:
    """In one line; where details are asked for, they hold no secret either."""
    monkeypatch.setenv("FERMATA_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("FERMATA_OWNER_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("FERMATA_LOG_LEVEL", level)
    done = fermata(*verb)
    assert (3, "") == (done.code, done.out), done.err
    assert done.complaint.startswith("fermata: PostgreSQL is out of reach")
    assert "CANARY" not in done.err
    assert ("Traceback" in done.err) is (level == "debug")


def test_a_wrong_password_is_a_setting(environment: dict[str, str]) -> None:
    """Not an outage: waiting would not help."""
    url = environment["FERMATA_DATABASE_URL"]
    wrong = url.replace(url.split(":")[2].split("@")[0], "CANARY-wrong")
    done = run_command({**environment, "FERMATA_DATABASE_URL": wrong, "FERMATA_LOG_LEVEL": "debug"}, "audit")
    assert "CANARY" not in done.err
    assert (2, "fermata: the role or the password in FERMATA_DATABASE_URL is wrong") == (done.code, done.complaint)


@pytest.mark.parametrize("process", ["worker", "scheduler"])
def test_in_production_nothing_starts_on_a_clock_that_can_be_set(environment: dict[str, str], process: str) -> None:
    """The tests' own database has such a clock: leases and expiry there are a matter of opinion."""
    done = run_command({**environment, "FERMATA_ENVIRONMENT": "production"}, process)
    assert 2 == done.code, done.err
    assert "fermata_now() is not the migration's own" in done.err
    assert "Traceback" not in done.err


def test_a_database_without_tables_says_migrate(environment: dict[str, str]) -> None:
    """Before the first migration every verb says what is missing."""
    empty = environment["FERMATA_OWNER_DATABASE_URL"].rpartition("/")[0] + "/postgres"
    done = run_command({**environment, "FERMATA_DATABASE_URL": empty}, "accounts", "balance", "ada")
    assert (2, "") == (done.code, done.out)
    assert "run `fermata migrate`" in done.complaint


def test_a_bug_of_ours_is_one_line(
    fermata: Fermata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own exit code, and where the details are."""

    def breaks(work: object) -> object:
        raise RuntimeError("\x1b[31mboom")

    monkeypatch.setattr(opening, "with_books", breaks)
    answer = fermata("audit")
    assert (70, "") == (answer.code, answer.out)
    assert answer.err == (
        "fermata: an unexpected RuntimeError; run it again with FERMATA_LOG_LEVEL=debug for the details\n"
    )
    monkeypatch.setenv("FERMATA_LOG_LEVEL", "debug")
    detailed = fermata("audit").err
    assert r"RuntimeError: \x1b[31mboom" in detailed
    assert "\x1b" not in detailed


def test_the_environment_can_name_the_actor(fermata: Fermata, monkeypatch: pytest.MonkeyPatch) -> None:
    """FERMATA_ACTOR, unless --as says another."""
    fermata.account("ada")
    monkeypatch.setenv("FERMATA_ACTOR", "billing")
    fermata.ok("accounts", "grant", "ada", "1")
    fermata.ok("accounts", "grant", "ada", "1", "--as", "zoe")
    entries = fermata.ok("accounts", "journal", "ada")["entries"]
    assert ["billing", "zoe"] == [found["actor"] for found in entries]


@contextmanager
def deployment(environment: Mapping[str, str]) -> Iterator[None]:
    """A scheduler and a worker for songs."""
    with ExitStack() as stack:
        for verb in (["scheduler"], ["worker", "generation"]):
            child = spawn(
                [*COMMAND, *verb],
                on_parent_death=signal.SIGKILL,
                env=dict(environment),
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(stop, child, [(signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)])
        yield


def test_waiting_ends_with_the_job(fermata: Fermata, environment: dict[str, str], tmp_path: Path) -> None:
    """0 for a song, with its outputs; 1 for a job that could not be paid; the file can be fetched."""
    fermata.account("ada", 5)
    song = ("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=rain", "--param", "model=draft")
    with deployment(environment):
        done = run_command(environment, *song, "--param", "seconds=5", "--wait", "--json")
        refused = run_command(environment, *song, "--param", "seconds=60", "--wait", "--json")
    assert (0, "succeeded", 3) == (done.code, done.document["state"], done.document["charged"]), done.err
    assert (1, "refused", 0) == (refused.code, refused.document["state"], refused.document["charged"])
    assert f"job {done.document['id']} succeeded" in done.err
    (output,) = done.document["outputs"]
    assert {"artifact", "name", "seconds"} == output.keys()
    target = tmp_path / "song.wav"
    fermata.ok("artifacts", "get", output["artifact"], "--to", str(target))
    assert target.read_bytes().startswith(b"RIFF")
    assert fermata.ok("jobs", "receipt", done.document["id"])["lots"][0]["charged"] == 3


@contextmanager
def sigint_ignored() -> Iterator[None]:
    """As a shell starts what runs in the background: whoever is started in the block inherits it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_stops_waiting_leaves_the_job_as_it_is(
    fermata: Fermata, environment: dict[str, str], database: Database
) -> None:
    """Ctrl-C ends the waiting, not the job."""
    fermata.account("ada", 100)
    song = ("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    with sigint_ignored():
        waiting = subprocess.Popen(
            [*INTERRUPTIBLE, *COMMAND, *song, "--wait"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    wait_until(lambda: fermata.ok("jobs", "list")["jobs"], "a job")
    assert waiting.stderr is not None
    while b"waits for" not in waiting.stderr.readline():
        pass
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=30)
    assert (130, b"") == (waiting.returncode, out)
    assert b"Traceback" not in err
    assert [job["state"] for job in fermata.ok("jobs", "list")["jobs"]] == ["queued"]


def test_the_script_is_installed(environment: dict[str, str]) -> None:
    """`fermata --version` by its own name."""
    script = Path(sys.executable).with_name("fermata")
    done = subprocess.run([script, "--version"], env=environment, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.strip()[0].isdigit()
