"""What goes wrong, as a line for a person and an exit code. No traceback and no secret reaches either.

0 done · 1 the answer is no · 2 bad usage, input or settings · 3 a server or our disk can't be used · 70 a bug of ours
"""

from __future__ import annotations

import traceback

from worker.cli.output import say, visible

NO, BAD, AWAY, BUG, INTERRUPTED = 1, 2, 3, 70, 130


def explain(error: BaseException) -> int:
    """Tell the person on stderr what is wrong and what to do; returns the exit code."""
    code = exit_code_of(error)
    advice = _advice_on(error)
    if sqlstate_of(error) in _MISSET:
        say(f"fermata: {advice}")
    elif code == BUG:
        say(f"fermata: an unexpected {type(error).__name__}; run it again with FERMATA_LOG_LEVEL=debug for the details")
    else:
        for row in str(error).splitlines() or [type(error).__name__]:
            say(f"fermata: {visible(row)}")
        if advice:
            say(f"fermata: {advice}")
    if _debugging():
        say(visible_lines("".join(traceback.format_exception(error))))
    return code


def exit_code_of(error: BaseException) -> int:
    """One table, from the errors that leave our layers to the codes that scripts look at."""
    import cyclopts

    from config.settings import SettingsError
    from tasks.kind import RefusedRequest
    from tasks.registry import RegistryError
    from worker.artifacts.store import ArtifactError, DamagedArtifact, StoreUnavailable
    from worker.cli.values import Misused
    from worker.compiled import StaleBuild
    from worker.credits.documents import DocumentError
    from worker.local.processes import ProcessError
    from worker.queue.connection import QueueUnavailable
    from worker.store.database import Transient
    from worker.store.errors import (
        Conflict,
        LedgerUnavailable,
        OutcomeUnknown,
        Refused,
        UnknownAccount,
        UnknownArtifact,
        UnknownJob,
        UnknownKey,
        UnknownVoice,
        UnknownWebhook,
    )

    codes: dict[int, tuple[type[BaseException], ...]] = {
        NO: (DamagedArtifact,),
        # Before those that are the caller's: a store that is away is an artifact error too.
        AWAY: (
            *(LedgerUnavailable, OutcomeUnknown, Transient, QueueUnavailable, ProcessError),
            StoreUnavailable,
        ),
        BAD: (
            *(cyclopts.CycloptsError, Misused, SettingsError, RegistryError, ArtifactError, DocumentError),
            *(RefusedRequest, Refused, UnknownAccount, UnknownJob, UnknownArtifact, UnknownKey, UnknownWebhook),
            *(UnknownVoice, StaleBuild),
            Conflict,
        ),
    }
    if sqlstate_of(error) in _MISSET:
        return BAD
    return next((code for code, errors in codes.items() if isinstance(error, errors)), BUG)


def visible_lines(text: str) -> str:
    """Several lines, each with its control characters written out."""
    return "\n".join(visible(row) for row in text.splitlines())


def _advice_on(error: BaseException) -> str | None:
    from worker.store.errors import LedgerUnavailable, OutcomeUnknown

    if isinstance(error, OutcomeUnknown):
        return "it may or may not have been done; the same --key or --reference asks again without doing it twice"
    if isinstance(error, LedgerUnavailable) and sqlstate_of(error) is None:
        return _whose_address()
    return _ADVICE.get(sqlstate_of(error) or "")


def _whose_address() -> str:
    """What said where the server should be: a variable of this shell, or a file that a killed `fermata up` left."""
    from config.settings import SettingsError, load
    from worker.cli.opening import env_file_of

    try:
        settings = load()
    except SettingsError:
        settings = None
    if settings is None or settings.database_url is not None or not (left := env_file_of(settings)).exists():
        return "is the server running where FERMATA_DATABASE_URL says? `fermata doctor` looks at all parts"
    return f"its address is from {left}, and whoever wrote that may be gone: start `fermata up` again"


def sqlstate_of(error: BaseException) -> str | None:
    """What PostgreSQL called it, wherever in the chain of causes it said so."""
    seen: BaseException | None = error
    while seen is not None:
        code = getattr(seen, "sqlstate", None) or getattr(getattr(seen, "orig", None), "sqlstate", None)
        if isinstance(code, str):
            return code
        seen = seen.__cause__
    return None


#: What to do about what PostgreSQL says, by its SQLSTATE.
_ADVICE = {
    "42P01": "the database has no tables of ours: run `fermata migrate`",
    "42883": "the database has no functions of ours: run `fermata migrate`",
    "42501": "the role in FERMATA_DATABASE_URL may not do that: migrations are run as fermata_owner, prices are set as "
    "fermata_product or fermata_app, credits are moved as fermata_app",
    "28P01": "the role or the password in FERMATA_DATABASE_URL is wrong",
    "28000": "the server takes no connection of this role from here: see its pg_hba.conf",
    "3D000": "there is no such database: `fermata migrate --roles` makes it",
    "53300": "all its connections are taken: raise max_connections or lower FERMATA_POOL_SIZE",
}

#: Those that are settings, not outages.
_MISSET = frozenset({"42P01", "42883", "42501", "28P01", "28000", "3D000"})


def _debugging() -> bool:
    from config.settings import SettingsError, load

    try:
        return load().log_level == "debug"
    except SettingsError:
        return False
