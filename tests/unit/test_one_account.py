"""Money concerns one account: the account stands in every key, and no statement brings two accounts' credits together.

So the tables can be distributed by account (docs/SCALE.md). Batches go over several accounts, each row with its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
from sqlalchemy import TextClause

import worker.store
from worker.store.driver import Statement
from worker.store.tables import metadata

#: Where credits stand, and what decides on them.
MONEY = (
    *("lots", "reservations", "journal", "purchases", "debts", "cycles", "subscriptions", "subscription_changes"),
    *("checkpoints", "carried_draws"),
)
#: Statements that go over all accounts, each with what for. None of them decides on a credit.
OVER_ALL = {
    "upkeep._TO_EXPIRE": "only names accounts with something to expire: the expire duty goes to each, under its lock",
    "reads_figures._IMBALANCE": "a sum for Prometheus: lots against reservations, over everything",
    "reads_figures._SUMS": "sums for Prometheus",
    "reads_overview._CREDITS": "sums for the dashboard",
    "pruning._OLD": "counts what would be pruned; deletes nothing",
}
_NAMED = re.compile(r"\b(FROM|JOIN|UPDATE|INTO|USING)\s+(?:ONLY\s+)?(\w+)(?:\s+(?:AS\s+)?(\w+))?", re.IGNORECASE)
_KEYWORDS = {
    "WHERE",
    "SET",
    "ON",
    "USING",
    "GROUP",
    "ORDER",
    "CROSS",
    "JOIN",
    "LEFT",
    "FULL",
    "LIMIT",
    "UNION",
    "VALUES",
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


def unbound(sql: str) -> list[str]:
    """The money tables in a statement that nothing binds to an account there."""
    found = []
    for verb, table, alias in _NAMED.findall(sql):
        if table not in MONEY:
            continue
        name = alias if alias and alias.upper() not in _KEYWORDS else table
        bound = rf"\b{name}\.account_id\b|\bJOIN {table}(?: AS {name})? USING \(account_id"
        # The first of several that are joined by it.
        bound += rf"|\bFROM {table}(?: AS {name})?\s+(?:(?!WHERE|GROUP|ORDER|LIMIT|SELECT)[^;])*?USING \(account_id"
        if verb.upper() == "INTO":
            bound = rf"INTO\s+{table}\s*\(\s*account_id\b"
        elif name == table:
            bound += r"|\baccount_id (=|IN|BETWEEN)|\(account_id, "
        if not re.search(bound, sql):
            found.append(table)
    return found


ALL = dict(statements())


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_statement_keeps_to_its_account(name: str) -> None:
    """Each money table that it names is bound to an account by its key, or it stands in the list with a reason."""
    loose = unbound(ALL[name])
    assert bool(loose) is (name in OVER_ALL), f"{name}: {', '.join(loose) or 'every table is bound'}"


def test_there_is_something_to_look_at() -> None:
    """Statements are found where they stand, and one that forgets its account is seen."""
    assert len(ALL) > 150
    touching = [name for name, sql in ALL.items() if any(re.search(rf"\b{table}\b", sql) for table in MONEY)]
    assert len(touching) > 40
    assert {"lots"} == set(unbound("UPDATE lots SET available = 0 WHERE lot_id = :lot"))
    assert {"journal"} == set(
        unbound("SELECT 1 FROM lots AS l JOIN journal AS e USING (lot_id) WHERE l.account_id = 1")
    )
    assert [] == unbound("SELECT 1 FROM lots AS l JOIN journal AS e USING (account_id, lot_id)")


def test_the_account_stands_in_every_key_of_money() -> None:
    """Primary, unique and foreign; and first in every index but those by which a duty looks for accounts."""
    by_time = {"lots_expiring", "carried_draws_month"}
    for table in (metadata.tables[name] for name in MONEY):
        assert "account_id" in table.primary_key.columns, table.name
        for index in table.indexes:
            first = next(iter(index.columns)).name
            assert (first == "account_id") is (index.name not in by_time), index.name
        for key in table.foreign_key_constraints:
            assert "account_id" == key.column_keys[0], key.name
