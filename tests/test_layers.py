"""The house has three floors and imports only go down. Each rule stands here with its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("config", "tasks", "worker", "fermata_client")

#: The floors inside `worker`, from the ground up. What is not listed stands on the top floor.
FLOORS = (
    {"worker.credits", "worker.failpoints", "worker.tracing"},
    {"worker.store", "worker.queue", "worker.artifacts", "worker.slots"},
    {
        "worker.runner",
        "worker.keeper",
        "worker.hold_off",
        "worker.client",
        "worker.voices",
        "worker.links",
        "worker.outside",
        "worker.fitting",
    },
)
TOP = len(FLOORS)

#: Standard library without clock, randomness and I/O.
PURE = frozenset(
    [
        "__future__",
        "abc",
        "bisect",
        "calendar",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "difflib",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "textwrap",
        "tomllib",
        "types",
        "typing",
        "uuid",
    ]
)
#: Parts of pure modules that are not.
IMPURE_CALLS = frozenset(["now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input"])

SQL = re.compile(r"\b(SELECT\b.+?\bFROM\b|INSERT INTO\b|UPDATE\b.+?\bSET\b|DELETE FROM\b)", re.DOTALL)
REDIS_KEYS = re.compile(r"__acks__|__heartbeats__|\.msgs\b|\.[DX]Q\b")


@dataclass(frozen=True)
class Module:
    """A parsed file of ours."""

    name: str
    path: Path
    tree: ast.Module

    def within(self, *packages: str) -> bool:
        """Whether it is one of these modules or lies in one of these packages."""
        return any(is_within(self.name, package) for package in packages)

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every module it imports, those inside functions too; `from a import b` counts as `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = self.name.split(".")[: -node.level] if node.level else []
                base = ".".join([*package, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def texts(self) -> Iterator[tuple[int, str]]:
        """Every string in it that is no docstring; what an f-string inserts is left out."""
        done = {
            id(node.body[0].value)
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(self.tree):  # breadth first: an f-string comes before its parts
            if isinstance(node, ast.JoinedStr):
                done |= {id(part) for part in node.values}
                yield node.lineno, "…".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in done:
                yield node.lineno, node.value


Findings = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Rule:
    """What is forbidden where, and why."""

    name: str
    reason: str
    findings: Callable[[Module], Findings]
    #: Modules it does not hold for, each with the reason.
    exceptions: tuple[str, ...] = ()


def upwards(module: Module) -> Findings:
    for line, imported in module.imports():
        if module.within("worker") and is_within(imported, "worker") and floor_of(imported) > floor_of(module.name):
            yield line, f"imports {imported} from a floor above"


def sideways(module: Module) -> Findings:
    neighbours = {"worker.store": ("worker.queue",), "worker.queue": ("worker.store",), "worker.artifacts": ()}
    for package, others in neighbours.items():
        for line, imported in module.imports() if module.within(package) else ():
            if any(is_within(imported, other) for other in others):
                yield line, f"imports {imported}"


def tasks_knowing_the_worker(module: Module) -> Findings:
    for line, imported in module.imports() if module.within("tasks") else ():
        # What may be asked stands in the client, so that those who ask and those who answer have the same models.
        asks = is_within(imported, "fermata_client") and not is_within(imported, "fermata_client.requests")
        if is_within(imported, "worker") or (asks and imported != "fermata_client"):
            yield line, f"imports {imported}"


def a_leaf_with_branches(module: Module) -> Findings:
    for leaf in ("config", "fermata_client"):
        for line, imported in module.imports() if module.within(leaf) else ():
            if any(is_within(imported, other) for other in PACKAGES if other != leaf):
                yield line, f"imports {imported}"


def impure_credits(module: Module) -> Findings:
    if not module.within("worker.credits"):
        return
    for line, imported in module.imports():
        if not is_within(imported, "worker.credits") and imported.split(".")[0] not in PURE:
            yield line, f"imports {imported}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and called(node) in IMPURE_CALLS:
            yield node.lineno, f"calls {called(node)}()"


def sql_elsewhere(module: Module) -> Findings:
    for line, text in () if module.within("worker.store") else module.texts():
        if found := SQL.search(text):
            yield line, f"has SQL: {found[0][:40]!r}"


def database_drivers_elsewhere(module: Module) -> Findings:
    for line, imported in () if module.within("worker.store") else module.imports():
        if imported.split(".")[0] in {"sqlalchemy", "asyncpg", "alembic"}:
            yield line, f"imports {imported}"


def redis_elsewhere(module: Module) -> Findings:
    if module.within("worker.queue"):
        return
    for line, imported in module.imports():
        if imported.split(".")[0] == "redis":
            yield line, f"imports {imported}"
    for line, text in module.texts():
        if REDIS_KEYS.search(text):
            yield line, f"knows the key {text[:40]!r}"


def environment_read_elsewhere(module: Module) -> Findings:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and not module.within("config"):
            yield node.lineno, f"reads os.{node.attr}"


RULES = (
    Rule(
        "imports go down",
        "whoever reads a floor need not know the ones above, and a change above can't break it",
        upwards,
    ),
    Rule(
        "store and queue are strangers",
        "the database is the only authority over money; Redis carries hints, which may be lost or doubled",
        sideways,
    ),
    Rule(
        "tasks don't know the worker",
        "who adds an engine can't touch credits, and who changes the books can't break the sound",
        tasks_knowing_the_worker,
    ),
    Rule(
        "leaves import nothing of ours",
        "settings are read before anything else is there, and the client is installed without the rest",
        a_leaf_with_branches,
    ),
    Rule(
        "credits are pure",
        "time, ids and chance are arguments, so decisions about money are tested in microseconds, with literal dates",
        impure_credits,
    ),
    Rule(
        "SQL only in worker/store",
        "a public function there is one transaction; a query elsewhere would escape its locks and its order of locking",
        sql_elsewhere,
        exceptions=("worker.local.roles",),  # makes the roles and the database that the store then connects to
    ),
    Rule(
        "database drivers only in worker/store",
        "no driver's exception and no row leaves the store",
        database_drivers_elsewhere,
        exceptions=("worker.local.roles", "worker.boot"),  # as above; boot makes the pools
    ),
    Rule(
        "Redis only in worker/queue",
        "dramatiq's keys are its own business; one package follows them when an upgrade moves them",
        redis_elsewhere,
        exceptions=("worker.local.valkey", "worker.boot"),  # asks a server it started whether it answers; makes clients
    ),
    Rule(
        "settings only from config",
        "each setting is read once, checked against the others and named when misspelt",
        environment_read_elsewhere,
        exceptions=(
            "worker.boot",
            "worker.failpoints",  # must be able to end a process before it has settings; tests only
            "worker.local",  # hands its own environment on to children
            "tasks.engines.child",  # hands a short list of it on to an engine, and no secret
        ),
    ),
)


def is_within(name: str, package: str) -> bool:
    """Whether `name` is `package` or something in it."""
    return name == package or name.startswith(f"{package}.")


def floor_of(name: str) -> int:
    """How high a module of `worker` stands."""
    for floor, packages in enumerate(FLOORS):
        if any(is_within(name, package) for package in packages):
            return floor
    return -1 if name == "worker" else TOP


def called(node: ast.Call) -> str | None:
    """The last name of what is called: `now` for `datetime.now()`."""
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return None


def modules_of(root: Path) -> list[Module]:
    """Every Python file of our packages below `root`."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [
        Module(
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"),
            path,
            ast.parse(path.read_text(), str(path)),
        )
        for path in paths
    ]


def broken(rule: Rule, root: Path) -> list[str]:
    """Where a tree breaks a rule, one line each."""
    return [
        f"{module.path.relative_to(root)}:{line}: {what}"
        for module in modules_of(root)
        if not module.within(*rule.exceptions)
        for line, what in rule.findings(module)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_rule_holds(rule: Rule) -> None:
    """Every file of ours keeps the rule."""
    assert broken(rule, ROOT) == [], f"{rule.name}, because {rule.reason}"


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("imports go down", "worker/store/x.py", "from worker.runner import run"),
        ("imports go down", "worker/credits/x.py", "def f():\n    import worker.store.ledger"),
        ("imports go down", "worker/runner.py", "from worker import scheduler"),
        ("imports go down", "worker/queue/x.py", "from ..local import up"),
        ("store and queue are strangers", "worker/store/x.py", "from worker.queue import broker"),
        ("store and queue are strangers", "worker/queue/x.py", "import worker.store.tables"),
        ("tasks don't know the worker", "tasks/x.py", "from worker.credits.lots import Lot"),
        ("tasks don't know the worker", "tasks/x.py", "from fermata_client.client import Fermata"),
        ("leaves import nothing of ours", "config/x.py", "import tasks.kind"),
        ("credits are pure", "worker/credits/x.py", "import random"),
        ("credits are pure", "worker/credits/x.py", "import pydantic"),
        ("credits are pure", "worker/credits/x.py", "from datetime import datetime\nNOW = datetime.now()"),
        ("credits are pure", "worker/credits/x.py", "open('prices.toml')"),
        ("SQL only in worker/store", "worker/web/x.py", "Q = 'SELECT id\\n  FROM jobs'"),
        ("SQL only in worker/store", "worker/runner.py", "Q = f'UPDATE {table} SET state = 1'"),
        ("database drivers only in worker/store", "worker/web/x.py", "from sqlalchemy import text"),
        ("Redis only in worker/queue", "worker/scheduler.py", "import redis.asyncio"),
        ("Redis only in worker/queue", "worker/web/x.py", "KEY = 'fermata:generation.msgs'"),
        ("settings only from config", "worker/web/x.py", "import os\nURL = os.environ['FERMATA_DATABASE_URL']"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, rule: str, path: str, source: str) -> None:
    """Each rule sees what it is there for."""
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert len(broken(next(each for each in RULES if each.name == rule), tmp_path)) == 1


def test_what_only_looks_like_a_violation_is_left_alone(tmp_path: Path) -> None:
    """Docstrings may speak of SQL, and a floor may import from below and from itself."""
    (tmp_path / "worker" / "store").mkdir(parents=True)
    (tmp_path / "worker" / "runner.py").write_text('"""Never SELECT a FROM b here."""\nimport worker.store.jobs')
    (tmp_path / "worker" / "store" / "jobs.py").write_text(
        "from worker.credits import lots\nfrom worker.store import x"
    )
    assert [line for rule in RULES for line in broken(rule, tmp_path)] == []


def test_migrations_stand_in_one_line() -> None:
    """Two that follow the same one can't be applied; each file begins with its number."""
    versions = sorted((ROOT / "worker" / "store" / "migrations" / "versions").glob("[0-9]*.py"))
    numbers = [f"{number + 1:04}" for number in range(len(versions))]
    told = [re.findall(r'^(?:down_)?revision = "?(\d+|None)"?$', path.read_text(), re.MULTILINE) for path in versions]
    assert [[number, before] for number, before in zip(numbers, ["None", *numbers], strict=False)] == told
    assert numbers == [path.name[:4] for path in versions]
