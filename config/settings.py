"""Every setting, read once from the environment (`FERMATA_*`), frozen, checked against each other.

Nothing else reads the environment. A misspelt variable is refused by name, a contradiction names both sides,
and no message ever shows a value: some of them are secrets. Each secret may lie in a file instead, named by its
variable with `_FILE` behind it.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.servers import check_postgresql, check_redis, check_server, is_near, parts_of, says_plain

PREFIX = "FERMATA_"

#: Read by the processes themselves before settings exist, by tests, or by those who call the API as the README shows:
#: known, but no fields.
OTHER_NAMES = frozenset({"FERMATA_ACTOR", "FERMATA_FAILPOINTS", "FERMATA_KEY", "FERMATA_PARENT", "FERMATA_URL"})

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

#: A file with more is none of ours.
SECRET_BYTES_MAX = 8_192


class SettingsError(Exception):
    """The settings can't be used. The message names each variable, what is wrong and what to do; never a value."""


class Settings(BaseSettings):
    """What a deployment may change. Seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True
    )

    environment: Literal["development", "test", "production"] = "development"

    # Where the parts are. None: `demo`, `up` and the tests start their own.
    database_url: SecretStr | None = None
    #: Used by `migrate` only: the owner of the tables, so that the app's own role can't change them.
    owner_database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    #: file:///folder, a plain path, or s3://bucket/prefix?endpoint=https://host:port&region=name
    artifacts_url: str | None = None
    #: A key for the bucket. Without it, as AWS's own tools find one: role, profile, AWS_ACCESS_KEY_ID.
    artifacts_key_id: SecretStr | None = None
    artifacts_secret: SecretStr | None = None
    #: Where attempts work when audio lies in a bucket. Default: a folder of ours in the system's one for such.
    scratch_dir: Path | None = None
    #: Where embedded servers, artifacts and run files live when no URL is given.
    data_dir: Path | None = None

    namespace: str = Field("fermata", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: auto: lines for people where stderr is a terminal, JSON elsewhere.
    log_format: Literal["auto", "json", "console"] = "auto"

    # Traces. None: off. Needs the extra `otel`.
    #: Where a collector takes spans by OTLP over HTTP, as http://localhost:4318/v1/traces.
    otlp_url: str | None = Field(None, pattern=r"^https?://[^\s\"'<>@]+$")
    #: What the collector wants to be told with them, as "name=value,name=value": a key, most often.
    otlp_headers: SecretStr | None = None
    #: Of the traces that begin with us: which share is kept. What comes in with a traceparent is kept as it says.
    trace_share: float = Field(1, ge=0, le=1)

    # A worker process
    slots: int = Field(2, ge=1, le=512)
    lease_seconds: float = Field(30, ge=0.5, le=600)
    renew_seconds: float = Field(10, ge=0.1, le=300)
    outage_max_seconds: float = Field(300, ge=1, le=3600)
    drain_seconds: float = Field(20, ge=0, le=3600)
    run_seconds: float = Field(900, ge=0.1, le=86_400)
    run_memory_bytes: int = Field(3 * 1024**3, ge=64 * 1024**2)
    progress_seconds: float = Field(1, ge=0.05, le=60)
    failures_max: int = Field(3, ge=1, le=20)
    backoff_first_seconds: float = Field(2, ge=0, le=3600)
    backoff_max_seconds: float = Field(300, ge=0, le=86_400)
    #: Further kinds as "module:object", comma separated, beside those we ship.
    extra_kinds: str = ""
    #: A TOML document that says which engine makes which tier; see docs/ENGINES.md. None: the embedded ones.
    engines: Path | None = None

    # Group commit
    batch_max: int = Field(500, ge=1, le=5000)
    busy_alone_seconds: float = Field(0.1, ge=0, le=10)

    # The scheduler
    dispatch_tick_seconds: float = Field(1, ge=0.01, le=60)
    reap_tick_seconds: float = Field(2, ge=0.05, le=60)
    cycles_tick_seconds: float = Field(5, ge=0.05, le=3600)
    expire_tick_seconds: float = Field(30, ge=0.05, le=3600)
    sweep_tick_seconds: float = Field(300, ge=0.05, le=86_400)
    notify_tick_seconds: float = Field(60, ge=0.05, le=86_400)
    #: Days before their end at which an account is told of credits that expire.
    expiring_notice_days: float = Field(3, ge=0, le=365)
    prune_tick_seconds: float = Field(3600, ge=0.05, le=86_400)
    deliver_tick_seconds: float = Field(1, ge=0.01, le=60)
    hint_repeat_seconds: float = Field(15, ge=0.1, le=600)
    hints_per_message: int = Field(16, ge=1, le=16)
    #: Jobs admitted to Redis per free slot: enough that no slot waits, few enough that order stays in SQL.
    admit_per_slot: int = Field(4, ge=1, le=64)
    #: Seconds of waiting that are worth one point of a plan's priority.
    priority_point_seconds: float = Field(60, ge=0, le=86_400)

    # Metrics of each process: on the first free port from this one on. None: they are not served.
    metrics_port: int | None = Field(None, ge=1, le=65_000)
    metrics_host: str = "127.0.0.1"

    # Requests
    job_seconds: float = Field(86_400, ge=1, le=30 * 86_400)  # default of ends_by
    upload_bytes_max: int = Field(200 * 1024**2, ge=1024)

    #: Days that bought credits stay frozen after a lapse, or a purchase after it, before they expire. The same for all
    #: processes. The least is what was always promised, so no audit takes an expiry of before for one too early.
    frozen_days: int = Field(30, ge=30, le=3_650)

    # Prices: what no book may be above, a slip of the finger and not a policy
    price_credits_max: int = Field(100_000, ge=1, le=10**12)  # of a base, a tier, one step
    price_multiplier_max: int = Field(100, ge=1, le=10_000)
    price_seconds_max: int = Field(86_400, ge=1, le=10**9)  # of a step, the included seconds, a tier
    #: A book that changes what any request costs by more than this is rehearsed before it is applied; one that changes
    #: the credits of a plan or a pack by more than this is applied with a reason only.
    price_change_percent_max: int = Field(20, ge=0, le=10_000)

    # Webhooks
    #: Private, loopback and link-local targets too, and plain http: where endpoints are our own neighbours.
    webhook_private_targets: bool = False
    webhook_timeout_seconds: float = Field(10, ge=0.1, le=60)
    webhook_attempts_max: int = Field(12, ge=1, le=100)  # with the waits below: a day and a half
    webhook_backoff_first_seconds: float = Field(5, ge=0, le=3600)
    webhook_backoff_max_seconds: float = Field(43_200, ge=0, le=7 * 86_400)

    # Providers that come to us: they say that work is done, and fetch inputs by signed links
    #: Where they reach the API, as https://fermata.example.
    public_url: str | None = Field(None, max_length=500, pattern=r"^https?://[^\s\"'<>?#@]+$")
    #: Signs the links: the same for API and workers. Another one makes all links worthless that are out, unless the
    #: API is given the one before too, which opens links but signs none.
    link_secret: SecretStr | None = Field(None, min_length=32)
    link_secret_before: SecretStr | None = Field(None, min_length=32)

    # How long what is over is kept, in days. Less than the least given here, the database itself refuses.
    jobs_kept_days: int = Field(180, ge=30, le=36_500)  # after their end, with outputs, attempts and keys
    inputs_kept_days: int = Field(180, ge=1, le=36_500)  # that no kept job names
    events_kept_days: int = Field(180, ge=30, le=36_500)  # that are no end of a job
    deliveries_kept_days: int = Field(30, ge=1, le=36_500)  # of webhooks, after their end
    rehearsals_kept_days: int = Field(365, ge=7, le=36_500)
    audit_log_kept_days: int = Field(730, ge=365, le=36_500)
    #: Then a month of the journal is detached, if no kept job was settled in it; its checkpoints stand for it.
    journal_kept_days: int = Field(400, ge=60, le=36_500)

    # PostgreSQL sessions
    pool_size: int = Field(6, ge=2, le=100)
    lock_timeout_seconds: float = Field(3, ge=0.05, le=60)
    statement_timeout_seconds: float = Field(15, ge=0.1, le=600)
    idle_transaction_seconds: float = Field(5, ge=0.1, le=600)
    connect_seconds: float = Field(5, ge=0.1, le=60)

    # The HTTP process
    api_host: str = "127.0.0.1"
    api_port: int = Field(8700, ge=0, le=65535)
    #: After SIGTERM `/readyz` says so for this long while requests are still taken: until balancers have looked.
    api_drain_seconds: float = Field(0, ge=0, le=600)
    api_connections_max: int = Field(10_000, ge=1, le=1_000_000)
    api_uploads_at_a_time: int = Field(4, ge=1, le=64)  # that are decoded and measured
    #: Requests a minute by key; a customer's token has its own. A process takes its share of a minute in advance.
    api_requests_per_minute: int = Field(60_000, ge=1, le=10_000_000)
    api_token_requests_per_minute: int = Field(600, ge=1, le=10_000_000)
    #: Jobs that one key, or one customer's token, may follow at a time in one process.
    api_followers_per_key: int = Field(1_000, ge=1, le=5_000)
    api_followers_per_token: int = Field(20, ge=1, le=5_000)
    #: Where a customer buys a pack: {pack} and {account} are filled in. None: the page names packs without a link.
    billing_url: str | None = Field(None, pattern=r"^https?://[^\s\"'<>]+$")
    #: Sites that may show the customer's page in a frame: origins, separated by blanks.
    embed_origins: str = Field("", pattern=r"^(https?://[A-Za-z0-9.*:-]+( https?://[A-Za-z0-9.*:-]+)*)?$")

    @field_validator("database_url", "owner_database_url")
    @classmethod
    def _postgresql_with_asyncpg(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
            raise ValueError("must start with postgresql://")
        return SecretStr(check_postgresql(f"postgresql+asyncpg://{rest}"))

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        given = url.get_secret_value()
        if given.startswith(("redis://", "rediss://")):
            check_server(given)
        elif not given.startswith("unix://"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        elif not parts_of(given).path:
            raise ValueError("must name a socket, as unix:///run/redis.sock")
        check_redis(given)
        return url

    @field_validator("otlp_headers")
    @classmethod
    def _pairs(cls, headers: SecretStr | None) -> SecretStr | None:
        for pair in headers.get_secret_value().split(",") if headers else ():
            name, separator, value = pair.strip().partition("=")
            if not (separator and _HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
                raise ValueError("must be name=value, several separated by commas")
        return headers

    @property
    def frozen_life(self) -> timedelta:
        """`frozen_days` as a time."""
        return timedelta(days=self.frozen_days)

    @property
    def otlp_header_pairs(self) -> dict[str, str]:
        """`otlp_headers` by name."""
        given = self.otlp_headers.get_secret_value() if self.otlp_headers else ""
        pairs = (pair.strip().partition("=") for pair in given.split(",") if pair)
        return {name: value for name, _, value in pairs}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: no hidden file or variable decides what a worker does."""
        return (init_settings,)


def _is_secret(name: str) -> bool:
    return SecretStr in get_args(Settings.model_fields[name].annotation)


#: A secret may lie in a file, as systemd's credentials and mounted secrets do: the variable that names the file, and
#: the one that it stands for. So no secret needs to be in an environment.
SECRET_FILES: Mapping[str, str] = {
    f"{PREFIX}{name.upper()}_FILE": f"{PREFIX}{name.upper()}" for name in Settings.model_fields if _is_secret(name)
}


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """The settings of this process.

    Raises `SettingsError` with one line per problem: unknown variables (with the nearest known name), bad
    values (never shown), pairs that contradict each other (both named).
    """
    environ = os.environ if environ is None else environ
    problems = [*_unknown(environ)]
    given = {name.upper(): value for name, value in environ.items() if name.upper().startswith(PREFIX) and value}
    secrets, unread = _from_files(given)
    problems += unread
    try:
        values = {
            name[len(PREFIX) :].lower(): value
            for name, value in {**given, **secrets}.items()
            if name not in OTHER_NAMES
        }
        known = {name: value for name, value in values.items() if name in Settings.model_fields}
        settings = Settings(**{**known, **overrides})
    except ValidationError as error:
        problems += [
            f"{PREFIX}{'_'.join(str(part) for part in detail['loc']).upper()}: {detail['msg']}"
            for detail in error.errors(include_input=False, include_context=False, include_url=False)
        ]
    else:
        problems += contradictions(settings)
        if not problems:
            return settings
    raise SettingsError("\n".join(problems))


def contradictions(settings: Settings) -> list[str]:
    """Pairs of settings that can't both hold, each as one line that names both."""
    rules = [
        (
            settings.lease_seconds > 2 * settings.renew_seconds,
            "FERMATA_LEASE_SECONDS must be more than twice FERMATA_RENEW_SECONDS, or one late renewal loses a lease",
        ),
        (
            settings.idle_transaction_seconds < settings.lease_seconds,
            "FERMATA_IDLE_TRANSACTION_SECONDS must be below FERMATA_LEASE_SECONDS: a frozen worker must not outlast it",
        ),
        (
            settings.lock_timeout_seconds < settings.statement_timeout_seconds,
            "FERMATA_LOCK_TIMEOUT_SECONDS must be below FERMATA_STATEMENT_TIMEOUT_SECONDS",
        ),
        (
            settings.backoff_first_seconds <= settings.backoff_max_seconds,
            "FERMATA_BACKOFF_FIRST_SECONDS must not be above FERMATA_BACKOFF_MAX_SECONDS",
        ),
        (
            settings.webhook_backoff_first_seconds <= settings.webhook_backoff_max_seconds,
            "FERMATA_WEBHOOK_BACKOFF_FIRST_SECONDS must not be above FERMATA_WEBHOOK_BACKOFF_MAX_SECONDS",
        ),
        (
            settings.environment != "production" or settings.database_url is not None,
            "FERMATA_ENVIRONMENT is production: FERMATA_DATABASE_URL must be given",
        ),
        (
            settings.environment != "production" or settings.redis_url is not None,
            "FERMATA_ENVIRONMENT is production: FERMATA_REDIS_URL must be given",
        ),
        (
            settings.environment != "production" or settings.artifacts_url is not None,
            "FERMATA_ENVIRONMENT is production: FERMATA_ARTIFACTS_URL must be given, a folder or bucket that all share",
        ),
        *(
            (
                settings.environment != "production" or not (_says(url, says_plain) and not _says(url, is_near)),
                f"FERMATA_ENVIRONMENT is production: {PREFIX}{name} must not say sslmode=disable of another machine",
            )
            for name, url in (
                ("DATABASE_URL", settings.database_url),
                ("OWNER_DATABASE_URL", settings.owner_database_url),
            )
        ),
        (
            settings.environment != "production" or not _is_open_redis(settings.redis_url),
            "FERMATA_ENVIRONMENT is production: FERMATA_REDIS_URL must hold a password, as Redis is on another machine",
        ),
        (
            (settings.artifacts_key_id is None) == (settings.artifacts_secret is None),
            "FERMATA_ARTIFACTS_KEY_ID and FERMATA_ARTIFACTS_SECRET go together: give both or neither",
        ),
        (
            (settings.public_url is None) == (settings.link_secret is None),
            "FERMATA_PUBLIC_URL and FERMATA_LINK_SECRET go together: give both or neither",
        ),
        (
            settings.link_secret_before is None or settings.link_secret is not None,
            "FERMATA_LINK_SECRET_BEFORE needs FERMATA_LINK_SECRET, which signs",
        ),
    ]
    return [message for holds, message in rules if not holds]


def _says(url: SecretStr | None, what: Callable[[str], bool]) -> bool:
    return url is not None and what(url.get_secret_value())


def _is_open_redis(url: SecretStr | None) -> bool:
    """Whether everybody on a network may read and write it, as far as the URL tells."""
    return _says(url, lambda given: given.startswith("redis://") and not parts_of(given).password) and not _says(
        url, is_near
    )


def _from_files(given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The secrets that `FERMATA_…_FILE` variables name, and what is wrong with them; never what stands in a file."""
    secrets, problems = {}, []
    for variable, name in SECRET_FILES.items():
        if variable not in given:
            continue
        path = Path(given[variable])
        try:
            facts = path.stat()
            text = _start_of(path).decode().strip() if stat.S_ISREG(facts.st_mode) else None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            problems.append(f"{variable}: its file can't be read ({reason.lower()})")
            continue
        if name in given:
            problems.append(f"{variable} and {name}: both are given; leave one out")
        elif text is None:
            problems.append(f"{variable}: must name a file")
        elif facts.st_mode & stat.S_IWOTH:
            problems.append(f"{variable}: everybody may write to its file; chmod 600 it")
        elif not text or len(text) > SECRET_BYTES_MAX:
            problems.append(f"{variable}: its file must hold one secret, of at most {SECRET_BYTES_MAX:,} bytes")
        else:
            secrets[name] = text
    return secrets, problems


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SECRET_BYTES_MAX + 1)


def _unknown(environ: Mapping[str, str]) -> list[str]:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHER_NAMES | SECRET_FILES.keys()
    problems = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            problems.append(f"{name}: no such setting{hint}")
    return problems
