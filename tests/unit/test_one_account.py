"""Money concerns one account: the account stands in every key, and no statement brings two accounts' credits together.

So the tables can be distributed by account (docs/SCALE.md). Batches go over several accounts, each row with its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Numeric, Table, Text, TextClause, UniqueConstraint

import worker.store
from tests.binding import unbound
from worker.store.driver import Statement
from worker.store.tables import metadata

#: Whole numbers of 64 bits that are no credits. Any other is taken for credits.
NOT_CREDITS = frozenset({"seq", "turn", "entry_id", "lot_id", "frames", "bytes", "entries"})
#: Tables that name credits which are not there to be spent: nothing is paid out of them.
NAMES_ONLY = {
    "accounts": "below how many somebody is told",
    "jobs": "what a job was quoted, may cost and did cost; a job is looked up by its id, or by its queue",
    "parked": "what a waiting job lacks: a note of the shortfall",
    "events": "what a job did cost, for whoever follows it",
}
#: Tables without credits that decide on them.
DECIDES = frozenset({"subscriptions", "subscription_changes"})


def money_of(tables: MetaData) -> set[str]:
    """Where credits stand: every table with a column of them."""
    return {
        table.name
        for table in tables.tables.values()
        for column in table.columns
        if isinstance(column.type, BigInteger | Numeric) and column.name not in NOT_CREDITS
    }


MONEY = money_of(metadata) - NAMES_ONLY.keys() | DECIDES
#: Statements that go over all accounts, each with what for. None of them decides on a credit.
OVER_ALL = {
    "upkeep._TO_EXPIRE": "only names accounts with something to expire: the expire duty goes to each, under its lock",
    "reads_figures._IMBALANCE": "a sum for Prometheus: lots against reservations, over everything",
    "reads_figures._SUMS": "sums for Prometheus",
    "reads_overview._CREDITS": "sums for the dashboard",
    "pruning._OLD": "counts what would be pruned; deletes nothing",
    "notices._TO_TELL": "only names accounts that are to be told of their lots: each is then told by itself",
    "price_report._HELD": "sums for the dashboard, by kind; each hold is found by its own job's account",
    "reads_account_lists._ACCOUNTS": "a page of accounts, each row with its own lots",
    "reads_jobs._JOB": "one job by its id, which its customer's account must match; its hold is its own account's",
    "reads_overview._ENDED": "sums for the dashboard, by minute; each hold is found by its own job's account",
    "reads_receipts._JOB": "one job by its id, which its customer's account must match; its hold is its own account's",
}


def statements() -> Iterator[tuple[str, str]]:
    """Every statement of the store, as `module.NAME`. The audit's are for looking at everything."""
    for module in pkgutil.iter_modules(worker.store.__path__):
        if module.ispkg or module.name.startswith("audit"):
            continue
        for name, value in vars(importlib.import_module(f"worker.store.{module.name}")).items():
            if isinstance(value, TextClause):
                yield f"{module.name}.{name}", str(value)
            elif isinstance(value, Statement):
                yield f"{module.name}.{name}", value.sql


ALL = dict(statements())


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_statement_keeps_to_its_account(name: str) -> None:
    """Each money table that it names is bound to an account by its key, or it stands in the list with a reason."""
    loose = unbound(ALL[name], MONEY)
    assert bool(loose) is (name in OVER_ALL), f"{name}: {', '.join(loose) or 'every table is bound'}"


def test_there_is_something_to_look_at() -> None:
    """Statements are found where they stand, and one that forgets its account is seen."""
    assert len(ALL) > 150
    touching = [name for name, sql in ALL.items() if any(re.search(rf"\b{table}\b", sql) for table in MONEY)]
    assert len(touching) > 40
    assert OVER_ALL.keys() <= ALL.keys()


@pytest.mark.parametrize(
    ("sql", "loose"),
    [
        ("UPDATE lots SET available = 0 WHERE lot_id = :lot", {"lots"}),
        ("SELECT 1 FROM lots AS l JOIN journal AS e USING (lot_id) WHERE l.account_id = :a", {"journal"}),
        ("SELECT l.account_id, sum(l.available) FROM lots AS l GROUP BY 1", {"lots"}),
        ("UPDATE lots AS l SET available = 0 WHERE l.lot_id = :lot RETURNING l.account_id", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id IN (SELECT account_id FROM accounts)", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id = ANY(SELECT account_id FROM accounts)", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id IN (:one, :two)", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id BETWEEN :one AND :two", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id <> :one", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id = account_id", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE account_id = :one OR lot_id = :lot", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE (account_id = :one OR true)", {"lots"}),
        ("UPDATE lots SET available = 0 WHERE NOT account_id = :one", {"lots"}),
        ("UPDATE lots SET account_id = :one WHERE lot_id = :lot", {"lots"}),
        ("UPDATE lots AS a SET spent = b.spent FROM lots AS b WHERE a.account_id = :x AND b.account_id = :y", {"lots"}),
        (
            "WITH x AS (UPDATE lots SET spent = 1 WHERE account_id = :x) "
            "UPDATE reservations SET charged = 1 WHERE account_id = :y",
            {"lots", "reservations"},
        ),
        (
            "SELECT 1 FROM lots AS l CROSS JOIN reservations AS r "
            "WHERE l.account_id = ANY(:some) AND r.account_id = ANY(:some)",
            {"reservations"},
        ),
        (
            "WITH x AS (SELECT account_id FROM lots WHERE account_id = :a) UPDATE lots SET spent = 0 WHERE lot_id = :l",
            {"lots"},
        ),
        ("UPDATE lots AS l SET spent = 0 FROM accounts AS a WHERE l.account_id = a.account_id", {"lots"}),
        ("SELECT 1 FROM jobs AS j JOIN reservations AS r USING (account_id, job_id)", {"reservations"}),
        ("SELECT 1 FROM jobs AS j, lots AS l WHERE j.account_id = :a", {"lots"}),
        ("SELECT 1 FROM accounts, lots", {"lots"}),
        ("DELETE FROM ONLY lots WHERE lot_id = 1", {"lots"}),
        ("DELETE FROM lots USING jobs AS j WHERE j.account_id = :a", {"lots"}),
        ("MERGE INTO lots USING x ON lots.lot_id = x.lot_id WHEN MATCHED THEN UPDATE SET available=0", {"lots"}),
        ("UPDATE public.lots SET available = 0", {"lots"}),
        ('UPDATE "lots" SET available = 0', {"lots"}),
        ('update "public"."lots" set available = 0', {"lots"}),
        ("SELECT (SELECT sum(available) FROM lots) FROM accounts WHERE account_id = :a", {"lots"}),
        ("SELECT 1 FROM lots WHERE account_id = :a UNION ALL SELECT 1 FROM lots", {"lots"}),
        ("SELECT 1 FROM lots -- WHERE account_id = :a", {"lots"}),
        ("SELECT 1 FROM lots WHERE reason = 'x AND account_id = :a'", {"lots"}),
        ("INSERT INTO debts (amount, cause) VALUES (:amount, :cause)", {"debts"}),
        ("INSERT INTO debts VALUES (:account, :amount)", {"debts"}),
    ],
)
def test_a_statement_that_forgets_its_account_is_seen(sql: str, loose: set[str]) -> None:
    """Whatever else it says of the column."""
    assert loose == set(unbound(sql, MONEY))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM lots AS l JOIN journal AS e USING (account_id, lot_id) WHERE l.account_id = :a",
        "SELECT 1 FROM lots AS l JOIN journal AS e ON e.account_id = l.account_id WHERE e.account_id = $1",
        "UPDATE lots SET available = 0 WHERE account_id = ANY(CAST($1 AS text[])) AND lot_id = 1",
        "UPDATE public.lots AS l SET spent = 0 FROM unnest(CAST(:a AS text[])) AS u (account_id) "
        "WHERE l.account_id = ANY(ARRAY[u.account_id])",
        "SELECT (SELECT sum(d.amount) FROM debts AS d WHERE d.account_id = a.account_id) "
        "FROM accounts AS a WHERE a.account_id = :a",
        "INSERT INTO debts (account_id, amount) VALUES (:a, 1)",
        "WITH x AS (SELECT account_id, lot_id FROM lots WHERE account_id = :a) "
        "UPDATE lots AS l SET spent = 0 FROM x WHERE l.account_id = x.account_id",
    ],
)
def test_a_statement_that_is_bound_passes(sql: str) -> None:
    """By a parameter, or by the account of what is bound by one."""
    assert [] == unbound(sql, MONEY)


def test_a_new_table_of_credits_is_money() -> None:
    """By its columns, whatever it is called; and what is left out there is."""
    grown = MetaData()
    Table("vouchers", grown, Column("code", Text, primary_key=True), Column("credits", BigInteger))
    Table("seen", grown, Column("seq", BigInteger), Column("at", Text))
    assert {"vouchers"} == money_of(grown)
    assert NAMES_ONLY.keys() <= money_of(metadata)
    assert not DECIDES & money_of(metadata)
    assert {"lots", "reservations", "journal", "checkpoints", "carried_draws", "debts", "purchases", "cycles"} <= MONEY


def test_the_account_stands_in_every_key_of_money() -> None:
    """Primary, unique and foreign; and first in every index but those by which a duty looks for accounts."""
    by_time = {"lots_expiring", "carried_draws_month"}
    for table in (metadata.tables[name] for name in sorted(MONEY)):
        assert "account_id" in table.primary_key.columns, table.name
        for index in table.indexes:
            first = next(iter(index.columns)).name
            assert (first == "account_id") is (index.name not in by_time), index.name
        for unique in (one for one in table.constraints if isinstance(one, UniqueConstraint)):
            assert "account_id" in unique.columns, unique.name
        for key in table.foreign_key_constraints:
            assert "account_id" == key.column_keys[0], key.name
