"""Engines, sessions and the one place where driver errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlencode

import asyncpg
from sqlalchemy import URL, event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from config.servers import TLS_WORDS, tls_problem
from config.settings import Settings
from worker.failpoints import any_armed, reached
from worker.store.driver import GONE, Driver, driver_of
from worker.store.errors import LedgerUnavailable, LedgerUnfit, OutcomeUnknown, RefusedByDatabase, StoreError

P = ParamSpec("P")
T = TypeVar("T")

#: Deadlock, serialization, lock timeout: the same transaction may well go through a moment later.
_TRANSIENT = frozenset({"40P01", "40001", "55P03"})
#: Classes of errors that are about what was asked, whoever is asked and whenever: a row twice, values, CHECKs and keys,
#: views, sizes, and what our functions raise. The same again is turned away again. All others are about the server.
_FOR_WHAT_WAS_ASKED = ("21", "22", "23", "44", "54", "P0")
#: A transient error is tried again this often before it counts as unavailable.
TRANSIENT_TRIES = 5


class Transient(LedgerUnavailable):
    """The transaction lost against another one. It was rolled back; batches try it again by themselves."""

    def __init__(self, code: str) -> None:
        super().__init__(f"SQLSTATE {code}")
        #: Whether it waited for a lock in vain. Trying that again at once would only wait again.
        self.waited = code == "55P03"


def tried_again(step: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a step, one transaction, be tried again when it lost to a deadlock or a serialization failure.

    At most `TRANSIENT_TRIES` times in all; then, and after a wait for a lock that was too long, it raises.
    """

    @wraps(step)
    async def until_it_holds(*arguments: P.args, **named: P.kwargs) -> T:
        for again in range(TRANSIENT_TRIES - 1):
            try:
                return await step(*arguments, **named)
            except Transient as error:
                if error.waited:
                    raise
                await asyncio.sleep(0.01 * 2**again)
        return await step(*arguments, **named)

    return until_it_holds


def engine_at(url: str | URL, session: Mapping[str, str] | None = None, **options: Any) -> AsyncEngine:
    """An engine for a URL whose query may say how to encrypt, as libpq has it: `?sslmode=verify-full`.

    asyncpg reads these words in a DSN only; SQLAlchemy hands each part of a query on as an argument that it has not.

    `session`: what PostgreSQL is told on each new connection, limits above all. By a statement, not as it connects:
    PgBouncer takes few names there, and those that it is made to ignore are gone without a word.
    """
    engine = create_async_engine(url, hide_parameters=True, **options)

    @event.listens_for(engine.sync_engine, "do_connect")
    def put_in_a_dsn(_dialect: object, _record: object, _arguments: object, named: dict[str, Any]) -> None:
        said = {word: named.pop(word) for word in TLS_WORDS if word in named}
        if said:
            named["dsn"] = f"postgresql://?{urlencode(said)}"

    if session:
        told = "; ".join(f"SET {name} = '{value}'" for name, value in session.items())

        @event.listens_for(engine.sync_engine, "connect")
        def tell(connection: Any, _record: object) -> None:
            connection.run_async(lambda driver: driver.execute(told))

    return engine


#: Our statements are short; compiling one costs more than running it.
_NEVER_COMPILED = {"jit": "off"}


def make_engine(settings: Settings, *, name: str, pool_size: int | None = None) -> AsyncEngine:
    """A pool for one process, bound to the running event loop. `name` shows in pg_stat_activity."""
    assert settings.database_url is not None
    limits = {
        "lock_timeout": settings.lock_timeout_seconds,
        "statement_timeout": settings.statement_timeout_seconds,
        # A frozen worker holds its accounts for exactly this long.
        "idle_in_transaction_session_timeout": settings.idle_transaction_seconds,
    }
    return engine_at(
        settings.database_url.get_secret_value(),
        {**_NEVER_COMPILED, **{limit: str(round(seconds * 1000)) for limit, seconds in limits.items()}},
        isolation_level=_BEGINS_NOTHING,
        pool_size=pool_size or settings.pool_size,
        max_overflow=2,
        pool_timeout=settings.connect_seconds,
        pool_recycle=1800,
        pool_use_lifo=True,
        connect_args={
            "timeout": settings.connect_seconds,
            "command_timeout": settings.statement_timeout_seconds + 2,
            "server_settings": {"application_name": name[:63], "timezone": "UTC"},
        },
    )


@asynccontextmanager
async def patient(
    engine: AsyncEngine, name: str, statement_seconds: float, **settings: str
) -> AsyncIterator[AsyncEngine]:
    """Connections to the same database whose statements may take their time; `settings` are further ones of theirs."""
    limits = {
        "statement_timeout": str(round(statement_seconds * 1000)),
        "idle_in_transaction_session_timeout": "60000",
    }
    own = engine_at(
        engine.url,
        {**_NEVER_COMPILED, **limits, **settings},
        isolation_level=_BEGINS_NOTHING,
        poolclass=NullPool,
        connect_args={
            "timeout": 10,
            "command_timeout": statement_seconds + 2,
            "server_settings": {"application_name": name, "timezone": "UTC"},
        },
    )
    try:
        yield own
    finally:
        await own.dispose()


def transaction(
    engine: AsyncEngine, step: str, *, by_key: bool = False, at_once: bool = False
) -> AbstractAsyncContextManager[AsyncConnection]:
    """One transaction that writes: commits at the end, rolls back on any error.

    `step` names its two failpoints: `….written`, all is written and nothing committed, and `….committed`, nobody
    knows it yet. Raises `LedgerUnavailable` (`Transient`, `LedgerUnfit`), `RefusedByDatabase` or, when the COMMIT's own
    answer was lost, `OutcomeUnknown`.

    `by_key`: it plans for walks and look-ups by index alone. Statistics of tables that fill and empty within seconds
    are worth nothing: after an ANALYZE of an empty `due` one read took 650 ms. Rows that are met by
    `= ANY(ARRAY[key])` leave the planner nothing but an index look-up then. No bitmaps either: only a plain walk marks
    the entries of rows that have gone, so that the next one passes them.

    `at_once`: each statement is a transaction of its own instead: a process that freezes between two holds no row.
    """
    return _transaction(engine, step, None if at_once else _BEGIN + _BY_KEY * by_key)


def reading(
    engine: AsyncEngine, *, by_key: bool = False, at_once: bool = False, one_instant: bool = False
) -> AbstractAsyncContextManager[AsyncConnection]:
    """One transaction that only reads, by PostgreSQL's own word: so dying in it can lose nothing.

    `at_once`: a single statement, a SELECT, without BEGIN and COMMIT around it; then it is a test that reads the source
    (`test_what_is_read_at_once_is_a_select`), and not PostgreSQL, who says that nothing is written.

    Raises the same but `OutcomeUnknown`: what was read stands, whatever became of the COMMIT.

    `one_instant`: every statement sees the same instant; one `at_once` does so by itself. `by_key`: see `transaction`.
    """
    begin = _READ_ONE_INSTANT if one_instant else _READ
    return _transaction(engine, None, None if at_once else begin + _BY_KEY * by_key)


@asynccontextmanager
async def _transaction(engine: AsyncEngine, step: str | None, begin: str | None) -> AsyncIterator[AsyncConnection]:
    with translated():
        connection, driver = await _begun(engine, begin)
    try:
        with translated():
            try:
                yield connection
                if any_armed():
                    await reached(step, "written")
            except BaseException:
                await _give_up(connection, driver)
                raise
        if begin is not None:
            await _commit(connection, driver, wrote=step is not None)
        if any_armed():
            await reached(step, "committed")
    finally:
        await _close(connection, driver)


async def _begun(engine: AsyncEngine, begin: str | None) -> tuple[AsyncConnection, Driver]:
    """A connection on which the transaction has begun; one that was cut while it lay in the pool goes for the next."""
    while True:
        try:
            connection = await engine.connect()
        except asyncpg.PostgresError as error:
            raise LedgerUnavailable(f"PostgreSQL turned us away ({error.sqlstate})") from error
        driver, lay_there = driver_of(connection), connection.info.setdefault(_USED, False)
        connection.info[_USED] = True
        try:
            if begin is not None:
                await driver.execute(begin)
            elif driver.is_closed():  # nothing is sent that would tell: what the driver has heard must do
                raise asyncpg.ConnectionDoesNotExistError
            return connection, driver
        except _CUT:
            await _invalidate(connection)
            if not lay_there:
                raise
        except BaseException:
            await _invalidate(connection)
            raise


async def _commit(connection: AsyncConnection, driver: Driver, *, wrote: bool) -> None:
    try:
        told = await driver.execute("COMMIT")
    except asyncpg.IntegrityConstraintViolationError as error:
        raise RefusedByDatabase.of(error) from error
    except (*GONE, asyncio.CancelledError) as error:
        await _invalidate(connection)
        if isinstance(error, asyncio.CancelledError):
            raise
        if not wrote:
            return
        raise OutcomeUnknown("the answer of a COMMIT was lost") from error
    if told != "COMMIT":
        raise LedgerUnavailable(f"PostgreSQL answered a COMMIT with {told}: one of its statements had failed")


@contextmanager
def translated() -> Iterator[None]:
    """Turn driver errors into ours, losing nothing that a person needs and leaking no statement or value."""
    try:
        yield
    except exc.DBAPIError as error:
        code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if error.connection_invalidated and code not in _TRANSIENT:
            code = None
        raise _ours(code, error, error.orig) from error
    except (
        *(exc.TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError),
        asyncpg.InternalClientError,  # past SQLAlchemy: the server's farewell was read, the connection's end not yet
    ) as error:
        raise LedgerUnavailable(_unreached(error)) from error
    except asyncpg.PostgresError as error:
        # Of a statement that went past SQLAlchemy (see `driver`).
        raise _ours(error.sqlstate, error, error) from error
    except (OSError, TimeoutError) as error:
        raise LedgerUnavailable(_unreached(error)) from error


def _unreached(error: BaseException | None) -> str:
    problem = tls_problem(error)
    if "rejected SSL upgrade" in str(error):  # asyncpg has no class of its own for it
        problem = "it does not encrypt"
    if "root certificate" in str(error):  # nor for this one
        problem = "sslrootcert names no file of those who may sign"
    if problem is None:
        return f"PostgreSQL is out of reach ({type(error).__name__})"
    return f"PostgreSQL is not spoken to, as sslmode in its URL asks: {problem}"


def _ours(code: str | None, error: Exception, cause: BaseException | None) -> StoreError:
    if code in _TRANSIENT:
        return Transient(code)
    if code is None:
        return LedgerUnavailable(_unreached(cause))
    if code.startswith(("08", "57", "53", "25")):
        return LedgerUnavailable(f"PostgreSQL is out of reach ({code})")
    if code.startswith(_FOR_WHAT_WAS_ASKED):
        return RefusedByDatabase.of(error)
    return LedgerUnfit(f"PostgreSQL can't do it as it stands ({code}, {_name_of(cause)})")


def _name_of(cause: BaseException | None) -> str:
    """What the driver calls it: no statement and no value."""
    return type(getattr(cause, "__cause__", None) or cause).__name__


async def _give_up(connection: AsyncConnection, driver: Driver) -> None:
    """Nothing of it stays; if that can't be said, its connection goes."""
    try:
        if _is_open(driver):
            await driver.execute("ROLLBACK")
    except GONE:
        await _invalidate(connection)


def _is_open(driver: Driver) -> bool:
    return not driver.is_closed() and driver.is_in_transaction()


async def _invalidate(connection: AsyncConnection) -> None:
    try:
        await connection.invalidate()
    except (exc.SQLAlchemyError, *GONE):
        return  # it is gone already


async def _close(connection: AsyncConnection, driver: Driver) -> None:
    try:
        if _is_open(driver) and not connection.invalidated:
            await _invalidate(connection)  # whoever waited for its ROLLBACK was cancelled, and again
        await connection.close()
    except (exc.SQLAlchemyError, *GONE):
        await _invalidate(connection)


#: SQLAlchemy's word for it: a connection begins a transaction where we say so, in one round trip with what it is to be.
_BEGINS_NOTHING = "AUTOCOMMIT"

#: How the driver says that a connection is gone: at once, or by the server's farewell.
_CUT = (
    *(asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, ConnectionError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError),
)
#: In what SQLAlchemy keeps of a connection: that somebody has had it before.
_USED = "used"

_BEGIN = "BEGIN"
_READ = "BEGIN READ ONLY"
_READ_ONE_INSTANT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Generic plans too: for a batch of one each statement would be planned anew each time, for more than it costs to run.
_BY_KEY = (
    "; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
    "; SET LOCAL plan_cache_mode = force_generic_plan"
)
