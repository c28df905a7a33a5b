"""The registry of failpoints: every step that writes has its two points, and no name is without its place."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import text

import worker.credits.notices
import worker.credits.operations
import worker.credits.subscribing
from config.settings import SettingsError, load
from worker import failpoints
from worker.boot import arm_failpoints
from worker.credits.operations import Settle
from worker.failpoints import OPERATIONS, PATH, POINTS, TRANSACTIONS

WORKER = Path(failpoints.__file__).parent


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of these functions in `worker`, with where it stands."""
    for path in sorted(set(WORKER.rglob("*.py")) - {Path(failpoints.__file__)}):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in names:
                    yield f"{path.relative_to(WORKER)}:{node.lineno}", node


def named(place: int, *names: str) -> list[str]:
    """The literal argument at that place of every such call. One that is no literal fails."""
    found = []
    for where, call in calls(*names):
        assert len(call.args) > place, where
        argument = call.args[place]
        assert isinstance(argument, ast.Constant), where
        assert isinstance(argument.value, str), where
        found.append(argument.value)
    return found


def test_every_transaction_that_writes_has_a_step_of_its_own() -> None:
    """A new one without an entry in the registry fails here; then the crash table wants its row."""
    steps = named(1, "transaction")
    assert TRANSACTIONS == set(steps)
    assert len(steps) == len(TRANSACTIONS)


def test_nothing_writes_beside_a_transaction() -> None:
    """Connections are opened where transactions are, by the migrator, and where somebody only listens."""
    opened = {where.partition(":")[0] for where, _ in calls("connect", "begin") if where.startswith("store/")}
    assert {"store/database.py", "store/listening.py", "store/migrate.py"} == opened


def read_at_once(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What is sent where nothing but itself says that it reads: each statement of a `reading(…, at_once=True)`."""
    for block in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(block, ast.AsyncWith) and any("at_once=True" in ast.unparse(item) for item in block.items):
            if ast.unparse(block.items[0]).startswith("transaction("):
                continue
            sent = [
                call
                for call in ast.walk(block)
                if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("connection.")
            ]
            where = f"{module.__name__}:{block.lineno}"
            assert ["connection.execute"] == [ast.unparse(call.func) for call in sent], where
            statement = sent[0].args[0]
            assert isinstance(statement, ast.Name), where
            yield where, getattr(module, statement.id)


def writes(statement: object) -> bool:
    """Whether PostgreSQL might write by it: no SELECT to begin with, or one of a function that is not known to read.

    A WITH that writes may only stand at the very beginning, so nothing behind a SELECT can.
    """
    text = str(statement).strip()
    functions = set(re.findall(r"\b(fermata_\w+|nextval|setval|set_config|pg_\w+)\s*\(", text))
    return (
        not text.upper().startswith("SELECT") or bool(functions - {"fermata_now"}) or bool(re.search(r"\bINTO\b", text))
    )


def test_what_is_read_at_once_is_a_select() -> None:
    """No BEGIN READ ONLY goes before it, so PostgreSQL would take a write from it."""
    modules = [importlib.import_module(f"worker.store.{path.stem}") for path in sorted((WORKER / "store").glob("*.py"))]
    found = dict(pair for module in modules for pair in read_at_once(module))
    calls_at_once = [where for where, call in calls("reading") if any(word.arg == "at_once" for word in call.keywords)]
    assert len(calls_at_once) == len(found) > 3
    assert [] == [where for where, statement in found.items() if writes(statement)]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE lots SET available = 0",
        "WITH x AS (DELETE FROM lots RETURNING 1) SELECT 1 FROM x",
        "SELECT fermata_prune_jobs(1)",
        "SELECT nextval('journal_seq')",
        "SELECT 1 INTO x",
    ],
)
def test_a_statement_that_writes_is_seen(sql: str) -> None:
    """Whatever it begins with."""
    assert writes(text(sql))


def test_every_point_of_the_path_is_passed() -> None:
    """Each name stands in one call, and no call has a name that is not in the registry."""
    passed = named(0, "failpoint")
    assert PATH == set(passed)
    assert len(passed) == len(PATH)


def test_every_operation_has_a_step() -> None:
    """Whatever decides on a page names its step; a reaping is told from a settle."""
    modules = (worker.credits.operations, worker.credits.notices, worker.credits.subscribing)
    operations = [
        one for module in modules for one in vars(module).values() if isinstance(one, type) and hasattr(one, "decide")
    ]
    steps = {getattr(one, "step", None) for one in operations if one is not Settle}
    assert OPERATIONS == steps | {"settle", "reap"}
    deciding = {
        path.stem
        for path in (WORKER / "credits").glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "decide"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert {module.__name__.rpartition(".")[2] for module in modules} == deciding


def test_nothing_is_armed_outside_the_test_environment() -> None:
    """A variable that was left over in production stops the start, and says why."""
    settings = load({}, environment="development")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FERMATA_FAILPOINTS", "claim.before:kill")
        with pytest.raises(SettingsError, match="for tests only"):
            arm_failpoints(settings)
    assert not failpoints.any_armed()


@pytest.mark.parametrize("wrong", ["claim.between:kill", "claim.before:crash", "claim.before:kill:often"])
def test_what_is_no_point_is_refused(wrong: str) -> None:
    """A test that misspells a point would kill nobody and find nothing."""
    with pytest.raises(ValueError):
        failpoints.arm(wrong)
    assert not failpoints.any_armed()


async def test_a_held_point_lets_the_second_one_pass() -> None:
    """Only who passes first is held, until it is let go."""
    hold = failpoints.hold("claim.written")
    first = asyncio.create_task(failpoints.reached("claim", "written"))
    await hold.reached.wait()
    await failpoints.reached("claim", "written")
    assert not first.done()
    hold.let_go()
    await first
    assert not failpoints.any_armed()


@pytest.mark.parametrize("point", ["claim.before", "claim.locked"])
def test_only_a_transaction_can_be_held(point: str) -> None:
    """The others are no place to wait at: they would block the process."""
    assert "claim.written" in POINTS
    with pytest.raises(ValueError):
        failpoints.hold(point)
