"""What the statements of a migration lock, and for how long: only forms known to be over in an instant are let through.

Everything else is refused, whatever it is: a form that nobody thought of is not thought to be harmless. What has to be
done all the same stands in `ENTRIES`, each with its reason.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations

#: Tables that stay small, whatever grows: a look at each of their rows is over at once.
SMALL = frozenset(
    {
        *("price_books", "plan_books", "rehearsals", "workers", "controls", "processes", "webhooks", "voices"),
        "api_keys",
    }
)
_BEFORE = "before the first release that had anything to lose: "
#: By revision and how a statement begins, in small letters: what is refused by its form, and why it was done.
ENTRIES: Mapping[tuple[str, str], str] = {
    ("0001", "select fermata_make_partitions(3)"): "makes partitions of tables that this very migration made",
    ("0003", "update due"): _BEFORE + "`due` holds unfinished jobs only",
    ("0003", "alter table due alter column since set not null"): _BEFORE + "`due` holds unfinished jobs only",
    ("0003", "create index due_unhinted on due"): _BEFORE + "`due` holds unfinished jobs only",
    ("0003", "create index due_waiting on due"): _BEFORE + "`due` holds unfinished jobs only",
    ("0003", "create index due_later on due"): _BEFORE + "`due` holds unfinished jobs only",
    ("0004", "alter table accounts add constraint accounts_finite_times"): _BEFORE + "`look_at` may not be infinite",
    ("0004", "update accounts set look_at"): _BEFORE + "each account gets its `look_at`",
    ("0004", "create index accounts_look_at on accounts"): _BEFORE + "the index that `look_at` is for",
    ("0004", "alter table subscriptions add constraint subscriptions_grace"): _BEFORE + "one row an account",
    ("0004", "alter table cycles add constraint cycles_skipped_is_not_granted"): _BEFORE + "one row a month",
    ("0009", "alter table accounts add constraint accounts_warn_below"): _BEFORE + "accounts get limits",
    ("0009", "alter table accounts add constraint accounts_own_running_max"): _BEFORE + "accounts get limits",
    ("0009", "create index accounts_active_until on accounts"): _BEFORE + "whose time is over is looked for",
    ("0014", "create unique index lots_reference on lots"): _BEFORE + "the index over references is made anew",
    ("0018", "alter table reservations add constraint reservations_pkey"): _BEFORE + "the key is made anew",
    ("0018", "alter table attempts add constraint attempts_pkey"): _BEFORE + "the key is made anew",
}


def statements(path: Path) -> list[str]:
    """What a migration sends on its way up: recorded from its own code, so Alembic's forms and loops are SQL here too.

    One that asks the database for something has no answer here and fails: it can't be judged.
    """
    sent: list[str] = []
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": io.StringIO()}
    )
    recorder: Any = _Recorder(sent)
    context.connection = context.impl.connection = recorder
    context.impl.static_output = sent.append  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location(f"migration_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Operations.context(context):
        module.upgrade()
    return [one for text in sent for one in _split(text)]


class _Recorder:
    """In a connection's place: notes what it is told."""

    def __init__(self, sent: list[str]) -> None:
        self.sent = sent

    def exec_driver_sql(self, sql: str) -> None:
        self.sent.append(sql)

    def execute(self, sql: Any) -> None:
        self.sent.append(str(sql))


_TOKEN = re.compile(
    r"--[^\n]*|/\*.*?\*/|(?P<dollar>\$\w*\$).*?(?P=dollar)|(?P<literal>e?'(?:[^']|'')*')|\"(?P<name>[^\"]+)\"|.",
    re.DOTALL | re.IGNORECASE,
)


def _split(text: str) -> list[str]:
    """Its statements, in small letters and one line each, without comments, quotes and what literals say.

    What stands in the bodies of functions runs later: they are literals too.
    """
    kept = []
    for token in _TOKEN.finditer(text):
        if token["dollar"] or token["literal"]:
            kept.append("''")
        elif token["name"]:
            kept.append(token["name"])
        else:
            kept.append(" " if token.group()[:2] in ("--", "/*") else token.group())
    lines = (" ".join(one.split()).lower() for one in "".join(kept).split(";"))
    return [re.sub(r"\bpublic ?\. ?", "", line) for line in lines if line]


_TYPE = (
    r"(?:text|bytea|bigint|integer|int|int[248]|smallint|boolean|bool|uuid|jsonb?|numeric|real|double precision|date|"
    r"interval|timestamptz|timestamp with(?:out)? time zone)(?: ?\( ?\d+(?: ?, ?\d+)? ?\))?(?: ?\[\])*"
)
#: Evaluated once, not for each row.
_CONSTANT = rf"(?:''(?: ?:: ?{_TYPE})?|-?\d+(?:\.\d+)?|true|false|now\(\)|current_timestamp)"
#: Of any table: over in an instant, beside whoever reads and writes, and nothing that the release before uses is gone.
_SAFE = (
    r"begin|commit",  # around what can't be done in a transaction
    r"comment on .*",
    r"create (?:or replace )?(?:function|procedure|view) .*",
    r"create (?:sequence|type) .*",
    r"(?:grant|revoke) .*",
    r"create (?:or replace )?trigger .*",
    r"drop trigger \w+ on \w+",
    r"create (?:unique )?index concurrently .*",
    r"drop index (?:concurrently )?\w+",
)
_SAFE_ACTIONS = (
    rf"add (?:column )?(?!constraint|check|unique|primary|foreign|exclude)(?:if not exists )?\w+ {_TYPE}"
    rf"(?: null| default null| default {_CONSTANT}(?: not null)?| not null default {_CONSTANT})?",
    r"add constraint \w+ (?:check|foreign key) ?\(.*\) ?(?:references .*)?not valid",
    r"add constraint \w+ unique using index \w+",
    r"validate constraint \w+",
    r"drop constraint (?:if exists )?\w+",
    r"alter (?:column )?\w+ (?:set default .*|drop default|drop not null|set statistics -?\d+)",
    r"set \([^()]*\)",
)
#: Of a table that is new or small.
_OF_FEW = (
    r"create (?:unique )?index (?:if not exists )?(?:\w+ )?on (?:only )?(?P<t>\w+)\b.*",
    r"create table \w+ partition of (?P<t>\w+)\b.*",
    r"insert into (?P<t>\w+)\b.*",
    r"update (?:only )?(?P<t>\w+)\b.*",
    r"delete from (?:only )?(?P<t>\w+)\b.*",
)
_NEW = re.compile(
    r"create (?:unlogged )?table (\w+) (?:\(|partition of )(?!.*\) (?:with .*)?as (?:\(|select|table|with|values))"
)
_ALTER = re.compile(r"alter table (?:if exists )?(?:only )?(\w+) (.*)")
_TAKEN_AWAY = re.compile(r"rename .*|drop (?!constraint |default)(?:column )?.*")
#: Why, by how it begins; what begins with none of these is unknown.
_REASONS = {
    r"create (?:unique )?index|reindex|cluster": "an index made without CONCURRENTLY locks writers out",
    r"add (?:constraint \w+ )?(?:check|foreign)": "it is checked at once, on the whole table: NOT VALID, then VALIDATE",
    r"add (?:constraint \w+ )?(?:unique|primary|exclude)": "its index is made at once, and locks everybody out",
    r"alter (?:column )?\w+ set not null": "a column becomes NOT NULL by reading the whole table",
    r"alter (?:column )?\w+ (?:set data )?type": "another type rewrites the table",
    r"add .*not null(?!.*default)": "a new column without a default can't be NOT NULL",
    r"add ": "a new column that is not empty or the same constant everywhere reads or rewrites the table",
    r"update|delete|insert|merge": "every row is written in one transaction",
    r"rename|drop|alter table \w+ rename": "the release before still uses it",
    r"lock|truncate|vacuum": "it locks everybody out",
}


def refused(statement: str, new: set[str]) -> Iterator[str]:
    """Why a statement may not run beside others; nothing where it may. `new` are the tables of its own migration."""
    few = SMALL | new
    altered = _ALTER.fullmatch(statement)
    if altered is None:
        of_few = (re.fullmatch(form, statement) for form in _OF_FEW)
        known = any(re.fullmatch(form, statement) for form in _SAFE) or any(m and m["t"] in few for m in of_few)
        if not known and not (_NEW.match(statement) and " partition of " not in statement):
            yield f"{statement[:80]}: {_why(statement)}"
        return
    table, actions = altered.groups()
    for action in _actions(actions):
        takes = _TAKEN_AWAY.fullmatch(action)
        if table in new or (table in few and not takes):
            continue
        if takes or not any(re.fullmatch(form, action) for form in _SAFE_ACTIONS):
            yield f"{table} {action[:80]}: {_why(action)}"


def _why(text: str) -> str:
    return next((why for begins, why in _REASONS.items() if re.match(begins, text)), "nobody knows how long it locks")


def _actions(text: str) -> list[str]:
    """The parts of an ALTER TABLE."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def unsafe(path: Path) -> list[tuple[str, str]]:
    """Each statement of a migration that is refused, and why."""
    new: set[str] = set()
    found = []
    for statement in statements(path):
        found += [(statement, why) for why in refused(statement, new)]
        if (made := _NEW.match(statement)) is not None:
            new.add(made[1])
    return found
