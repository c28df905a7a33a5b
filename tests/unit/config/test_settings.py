"""Settings are read once, refused by name when misspelt or contradictory, and never shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr, ValidationError

from config.settings import OTHER_NAMES, SECRET_FILES, Settings, SettingsError, contradictions, load
from worker.queue.connection import connect

SECRET = "hunter2-and-more"


def problems_of(environ: dict[str, str], **overrides: Any) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(SettingsError) as refusal:
        load(environ, **overrides)
    return str(refusal.value).splitlines()


def test_nothing_given_is_a_usable_development_setup() -> None:
    """The defaults contradict nothing, and name no server."""
    settings = load({})
    assert ("development", None, None) == (settings.environment, settings.database_url, settings.redis_url)
    assert [] == contradictions(settings)


def test_each_variable_sets_its_field() -> None:
    """Whatever the case of its name; other programs' variables are none of ours."""
    settings = load({"FERMATA_SLOTS": "7", "fermata_lease_seconds": "45.5", "PATH": "/bin", "NOTFERMATA_SLOTS": "9"})
    assert (7, 45.5) == (settings.slots, settings.lease_seconds)


def test_an_empty_variable_is_as_good_as_none() -> None:
    """`FERMATA_SLOTS=` in a compose file means the default."""
    assert load({}).slots == load({"FERMATA_SLOTS": ""}).slots


def test_a_given_environment_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process was started with does not leak into settings read from a mapping."""
    monkeypatch.setenv("FERMATA_SLOTS", "77")
    assert Settings.model_fields["slots"].default == load({}).slots
    assert load().slots == 77


def test_overrides_go_before_the_environment() -> None:
    """A flag on the command line beats the variable."""
    assert 5 == load({"FERMATA_SLOTS": "7"}, slots=5).slots


@pytest.mark.parametrize(
    ("name", "meant"),
    [("FERMATA_SLOT", "FERMATA_SLOTS"), ("FERMATA_DATABSE_URL", "FERMATA_DATABASE_URL"), ("FERMATA_LEASE", None)],
)
def test_a_misspelt_variable_is_refused_by_name(name: str, meant: str | None) -> None:
    """With the nearest known name, and never its value: it may be a secret with a wrong name."""
    (problem,) = problems_of({name: SECRET})
    assert problem.startswith(f"{name}: no such setting")
    assert meant is None or f"did you mean {meant}?" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_names_that_are_read_elsewhere_are_known(name: str) -> None:
    """They are no fields, and no mistakes either."""
    load({name: "anything"})


def test_where_a_client_finds_the_api_is_no_mistake() -> None:
    """README's examples of the client have both set, in the shell in which the command is typed too."""
    load({"FERMATA_URL": "http://127.0.0.1:8700", "FERMATA_KEY": SECRET})


def test_every_problem_is_told_at_once() -> None:
    """One line each, misspelt names and bad values together."""
    problems = problems_of({"FERMATA_SLOT": "1", "FERMATA_RENEW_SECONDS": "soon", "FERMATA_BATCH_MAX": "0"})
    assert ["FERMATA_SLOT", "FERMATA_RENEW_SECONDS", "FERMATA_BATCH_MAX"] == [line.split(":")[0] for line in problems]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FERMATA_DATABASE_URL", f"mysql://u:{SECRET}@h/d"),
        ("FERMATA_DATABASE_URL", SECRET),
        ("FERMATA_OWNER_DATABASE_URL", f"http://{SECRET}"),
        ("FERMATA_REDIS_URL", f"amqp://:{SECRET}@h"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h:99999/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h:0/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h:-1/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h:port/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h/d?port=99999"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@/d?host=h:99999"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}/x@h/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}#x@h/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@x@h/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@[h/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@/d"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h/d\n"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@{'h' * 64}/d"),
        ("FERMATA_OWNER_DATABASE_URL", f"postgresql://u:{SECRET}@h:65536/d"),
        ("FERMATA_REDIS_URL", f"redis://:{SECRET}@h:99999/0"),
        ("FERMATA_REDIS_URL", f"rediss://:{SECRET}@:6379/0"),
        ("FERMATA_REDIS_URL", f"unix://:{SECRET}@"),
        ("FERMATA_REDIS_URL", f"redis://h/0?password={SECRET}"),
        ("FERMATA_REDIS_URL", f"redis://h/0?db={SECRET}"),
        ("FERMATA_REDIS_URL", f"redis://h/0?protocol={SECRET}"),
        ("FERMATA_REDIS_URL", f"redis://h/0?ssl_ca_certs={SECRET}"),
        ("FERMATA_REDIS_URL", f"rediss://h/0?ssl_check_hostname={SECRET}"),
        ("FERMATA_REDIS_URL", f"unix:///s?pasword={SECRET}"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h/d?sslmode={SECRET}"),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h/d?sslmode="),
        ("FERMATA_DATABASE_URL", f"postgresql://u:{SECRET}@h/d?sslmod={SECRET}"),
        ("FERMATA_SLOTS", SECRET),
        ("FERMATA_ENVIRONMENT", SECRET),
        ("FERMATA_NAMESPACE", SECRET.upper()),
        ("FERMATA_LOG_LEVEL", SECRET),
    ],
)
def test_a_bad_value_is_named_and_never_shown(name: str, value: str) -> None:
    """Neither in the message nor in what was behind it."""
    with pytest.raises(SettingsError) as refusal:
        load({name: value})
    assert str(refusal.value).startswith(f"{name}: ")
    chained: BaseException | None = refusal.value
    while chained is not None:
        assert SECRET.lower() not in f"{chained!s} {chained!r}".lower()
        chained = chained.__cause__ or chained.__context__


def test_secrets_stay_out_of_every_representation() -> None:
    """A log line with the whole settings gives nothing away."""
    settings = load(
        {"FERMATA_DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "FERMATA_REDIS_URL": f"redis://:{SECRET}@h"}
    )
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown
    assert settings.database_url is not None
    assert f"postgresql+asyncpg://u:{SECRET}@h/d" == settings.database_url.get_secret_value()


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0?protocol=3",
        "redis://h?db=1",
        "unix:///run/redis.sock?db=1",
        "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required&ssl_check_hostname=true",
    ],
)
def test_what_a_url_of_redis_may_hold_our_client_can_use(url: str) -> None:
    """And what it may not was refused before the client met it."""
    given = load({"FERMATA_REDIS_URL": url}).redis_url
    assert given is not None
    connect(given.get_secret_value()).connection_pool.make_connection()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_any_usual_postgresql_url_is_taken(scheme: str) -> None:
    """As hosters write it; our driver is put in."""
    url = load({"FERMATA_DATABASE_URL": f"{scheme}://h/d"}).database_url
    assert url is not None
    assert "postgresql+asyncpg://h/d" == url.get_secret_value()


def test_encryption_is_asked_for_in_one_word() -> None:
    """However a URL has it, what all our connections read is libpq's `sslmode`."""
    for word in ("ssl", "sslmode"):
        url = load({"FERMATA_DATABASE_URL": f"postgresql://h/d?port=1&{word}=require"}).database_url
        assert url is not None
        assert "postgresql+asyncpg://h/d?port=1&sslmode=require" == url.get_secret_value()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("FERMATA_DATABASE_URL", "postgresql://u:p%40ss%2Fword@h:65535/d?ssl=require"),
        ("FERMATA_DATABASE_URL", "postgresql://[::1]:5432/d"),
        ("FERMATA_DATABASE_URL", "postgresql://u@/d?host=/run/postgresql&port=5433"),
        ("FERMATA_OWNER_DATABASE_URL", "postgresql://h:1/d"),
        ("FERMATA_REDIS_URL", "redis://:it's mine@10.0.0.7:6379/0"),
        ("FERMATA_REDIS_URL", "rediss://cache.example/1"),
        ("FERMATA_REDIS_URL", "unix:///run/redis.sock?db=1"),
    ],
)
def test_a_url_that_names_a_server_is_taken(name: str, url: str) -> None:
    """By its host or by its socket, with any password that is written as URLs want it."""
    load({name: url})


#: What production must be told.
PRODUCTION = {
    "environment": "production",
    "database_url": "postgresql://h/d",
    "redis_url": "redis://:secret@h",
    "artifacts_url": "file:///shared",
}
#: Settings that can't both hold, and the two names that must be told.
CONTRADICTIONS = [
    ({"lease_seconds": "20", "renew_seconds": "10"}, ("LEASE_SECONDS", "RENEW_SECONDS")),
    ({"idle_transaction_seconds": "30"}, ("IDLE_TRANSACTION_SECONDS", "LEASE_SECONDS")),
    ({"lock_timeout_seconds": "15"}, ("LOCK_TIMEOUT_SECONDS", "STATEMENT_TIMEOUT_SECONDS")),
    ({"backoff_first_seconds": "301"}, ("BACKOFF_FIRST_SECONDS", "BACKOFF_MAX_SECONDS")),
    ({**PRODUCTION, "database_url": ""}, ("ENVIRONMENT", "DATABASE_URL")),
    ({**PRODUCTION, "redis_url": ""}, ("ENVIRONMENT", "REDIS_URL")),
    ({**PRODUCTION, "artifacts_url": ""}, ("ENVIRONMENT", "ARTIFACTS_URL")),
    *(
        ({**PRODUCTION, "redis_url": url}, ("ENVIRONMENT", "REDIS_URL"))
        for url in ("redis://h", "redis://10.0.0.7:6379/0", "redis://user@h", "redis://127.0.0.1.example")
    ),
    *(
        ({**PRODUCTION, name.lower(): f"postgresql://u:p@{rest}"}, ("ENVIRONMENT", name))
        for name in ("DATABASE_URL", "OWNER_DATABASE_URL")
        for rest in ("h/d?sslmode=disable", "10.0.0.7/d?ssl=disable", "/d?host=/run/pg,h&sslmode=disable")
    ),
]


@pytest.mark.parametrize(("given", "names"), CONTRADICTIONS)
def test_a_contradiction_names_both_sides(given: dict[str, str], names: tuple[str, str]) -> None:
    """At its very edge, in one line that says which two."""
    (problem,) = problems_of({f"FERMATA_{name.upper()}": value for name, value in given.items()})
    for name in names:
        assert f"FERMATA_{name}" in problem


@pytest.mark.parametrize(
    "given",
    [
        {"lease_seconds": 20.001, "renew_seconds": 10},
        {"idle_transaction_seconds": 29.9},
        {"lock_timeout_seconds": 14.9},
        {"backoff_first_seconds": 300},
        PRODUCTION,
        {**PRODUCTION, "redis_url": "redis://127.0.0.1:6379/0"},
        {**PRODUCTION, "redis_url": "redis://[::1]:6379"},
        {**PRODUCTION, "redis_url": "redis://localhost"},
        {**PRODUCTION, "redis_url": "rediss://h"},  # may ask for a certificate
        {**PRODUCTION, "redis_url": "unix:///run/redis.sock"},
        {**PRODUCTION, "database_url": "postgresql://localhost/d?sslmode=disable"},
        {**PRODUCTION, "database_url": "postgresql://u@/d?host=/run/postgresql&sslmode=disable"},
        {**PRODUCTION, "database_url": "postgresql://h/d?sslmode=verify-full&sslrootcert=/etc/ca.pem"},
        {"redis_url": "redis://h", "database_url": "postgresql://h/d?sslmode=disable"},  # no production
    ],
)
def test_just_beside_a_contradiction_is_fine(given: dict[str, Any]) -> None:
    """The rules refuse no more than they must."""
    load({}, **given)


def bounds_of(name: str) -> tuple[Any, Any]:
    """A number's lowest and highest value, None where there is no bound."""
    marks = Settings.model_fields[name].metadata
    lowest = [mark.ge for mark in marks if getattr(mark, "ge", None) is not None]
    highest = [mark.le for mark in marks if getattr(mark, "le", None) is not None]
    return (lowest or [None])[0], (highest or [None])[0]


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_that_hold(name: str) -> None:
    """Below the lowest, above the highest, and what is no number at all is refused; so are nan and infinity."""
    lowest, highest = bounds_of(name)
    assert lowest is not None
    bad = [str(lowest - 1), "nan", "inf", "-inf", "many"] + ([] if highest is None else [str(highest + 1)])
    for value in bad:
        (problem,) = problems_of({f"FERMATA_{name.upper()}": value})
        assert problem.startswith(f"FERMATA_{name.upper()}: ")


def test_settings_cannot_be_changed_once_read() -> None:
    """What was checked at the start holds until the end."""
    settings = load({})
    with pytest.raises(ValidationError):
        settings.slots = 3  # type: ignore[misc]
    assert settings.slots == load({}).slots


def test_secrets_are_typed_as_secrets() -> None:
    """A new URL of a server can't be added as plain text. Where packs are bought and where we are, is no secret;
    the collector's can't have a password in it."""
    public = {"artifacts_url", "billing_url", "otlp_url", "public_url"}
    urls = [name for name in Settings.model_fields if name.endswith("_url") and name not in public]
    assert {"database_url", "redis_url"} <= set(urls)
    for name in urls:
        assert "SecretStr" in str(get_args(Settings.model_fields[name].annotation))


def test_a_relative_data_folder_is_a_path() -> None:
    """Text in the environment, a path in the program."""
    assert Path("there") == load({"FERMATA_DATA_DIR": "there"}).data_dir


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """As a credential of systemd lies there."""
    path = tmp_path / "database_url"
    path.write_text(f"postgresql://app:{SECRET}@db/fermata\n")
    path.chmod(0o400)
    return path


def test_every_secret_may_lie_in_a_file(secret_file: Path) -> None:
    """Named by its variable with `_FILE` behind it; the line's end is none of it."""
    settings = load({"FERMATA_DATABASE_URL_FILE": str(secret_file)})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == f"postgresql+asyncpg://app:{SECRET}@db/fermata"
    secrets = {name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}
    assert {f"FERMATA_{name.upper()}_FILE" for name in secrets} == SECRET_FILES.keys()


@pytest.mark.parametrize("name", ["FERMATA_SLOTS_FILE", "FERMATA_DATABSE_URL_FILE"])
def test_only_secrets_lie_in_files(name: str, secret_file: Path) -> None:
    """A file for anything else is a misspelt variable."""
    (problem,) = problems_of({name: str(secret_file)})
    assert problem.startswith(f"{name}: no such setting")


def test_a_secret_comes_from_one_place(secret_file: Path) -> None:
    """Which of two counts, nobody would know."""
    (problem,) = problems_of(
        {"FERMATA_DATABASE_URL": "postgresql://a:b@h/d", "FERMATA_DATABASE_URL_FILE": str(secret_file)}
    )
    assert problem == "FERMATA_DATABASE_URL_FILE and FERMATA_DATABASE_URL: both are given; leave one out"


@pytest.mark.parametrize("fault", ["missing", "folder", "fifo", "empty", "binary", "large", "writable"])
def test_a_file_that_holds_no_secret_is_refused(fault: str, tmp_path: Path) -> None:
    """By its variable's name and the reason, and without a byte of what stands in it."""
    path = tmp_path / "secret"
    match fault:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.write_text("\n")
        case "binary":
            path.write_bytes(SECRET.encode() + b"\xff")
        case "large":
            path.write_text(SECRET * 1_000)
        case "writable":
            path.write_text(f"redis://:{SECRET}@r/0")
            path.chmod(0o666)
    (problem,) = problems_of({"FERMATA_REDIS_URL_FILE": str(path)})
    assert problem.startswith("FERMATA_REDIS_URL_FILE: ")
    assert SECRET not in problem


def test_what_a_file_holds_is_checked_like_a_variable(tmp_path: Path) -> None:
    """And told by the setting's name, never by its value."""
    path = tmp_path / "secret"
    path.write_text(f"mysql://a:{SECRET}@h/d")
    (problem,) = problems_of({"FERMATA_DATABASE_URL_FILE": str(path)})
    assert "FERMATA_DATABASE_URL: " in problem
    assert SECRET not in problem
