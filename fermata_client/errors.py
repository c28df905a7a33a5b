"""What can go wrong when Fermata is asked. Programs decide by the class or by `code`, which never changes.

FermataError
├── WrongSetup           the address or the key given to the client can't be one: nothing was sent
├── Unreachable          no answer: whether it was done is not known; the same key asks again
│   └── InDoubt              an answer that says just that
├── Refused              it can't be done as asked; nothing was stored
│   ├── Invalid              a field is not as it must be: `field`, `problems`
│   ├── InsufficientCredits  the account can't pay: `needed`, `available`, `shortfall`, `smallest_pack`
│   ├── NotFound             no such account, job or artifact, or none that this key may know of
│   ├── Conflict             the key was used for something else, or the state of things is against it
│   └── NotAllowed           the key opens nothing, or may not do this
├── TooManyRequests      slower: `retry_after` seconds
├── Unavailable          a part of it is away: nothing was done; try again
├── Broken               a bug of theirs; `request_id` finds it in their log
├── Damaged              a download is not what was stored, again and again
└── TimedOut             the time to wait for a job was over; it goes on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FermataError(Exception):
    """The root of all of it."""

    code = "error"


class WrongSetup(FermataError):
    """The address or the key that the client was given can't be one. Nothing was sent, and trying again is no use."""

    code = "wrong_setup"


class Unreachable(FermataError):
    """No answer came. Whether it was done is not known; asked again with the same key it is done once."""

    code = "unreachable"


class Damaged(FermataError):
    """A download is not what was stored, again and again. The file was not written."""

    code = "damaged"


class TimedOut(FermataError):
    """The job had not ended, as far as could be seen, when the time to wait for it was over. It goes on without us."""

    code = "timed_out"


class Problem(FermataError):
    """An answer that says no. `document` is all that it said (RFC 9457)."""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(str(document.get("detail") or f"answered {status}"))
        self.status = status
        self.document = document
        self.code = str(document.get("code", "error"))
        self.request_id: str | None = document.get("request_id")
        self.retry_after = retry_after


class Refused(Problem):
    """It can't be done as asked; nothing was stored."""

    @property
    def field(self) -> str | None:
        """Which field is wrong."""
        return self.document.get("field")

    @property
    def problems(self) -> list[dict[str, str]]:
        """All that is wrong, where it is more than one thing."""
        return list(self.document.get("problems") or [])


class Invalid(Refused):
    """A field is not as it must be."""


class InsufficientCredits(Refused):
    """The account can't pay."""

    @property
    def needed(self) -> int:
        """Credits that the job needs."""
        return int(self.document["needed"])

    @property
    def available(self) -> int:
        """Credits that were there for it."""
        return int(self.document["available"])

    @property
    def shortfall(self) -> int:
        """Credits that are missing."""
        return int(self.document.get("shortfall", self.needed - self.available))

    @property
    def frozen(self) -> int:
        """Credits that were bought and can't be spent until the account has an active subscription."""
        return int(self.document.get("frozen", 0))

    @property
    def smallest_pack(self) -> dict[str, Any] | None:
        """The smallest pack that would do."""
        return self.document.get("smallest_pack")


class NotFound(Refused):
    """There is none, or none that this key may know of."""


class Conflict(Refused):
    """The key was used before for something else, or the state of things is against it."""


class NotAllowed(Refused):
    """The key opens nothing, or may not do this."""


class TooManyRequests(Problem):
    """Slower, please."""


class InDoubt(Unreachable, Problem):
    """They can't say whether it was done. Asked again with the same key it is done once."""


class Unavailable(Problem):
    """A part of it is away: nothing was done."""


class Broken(Problem):
    """A bug of theirs."""


_BY_STATUS: Mapping[int, type[Problem]] = {
    401: NotAllowed,
    402: InsufficientCredits,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: TooManyRequests,
    # of whoever stands between us, and did not hear them out
    502: InDoubt,
    503: Unavailable,
    504: InDoubt,
}


def problem_of(status: int, document: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """The error that an answer tells of."""
    otherwise = Broken if status >= 500 else Invalid
    if document.get("code") == "outcome_unknown":
        return InDoubt(status, document, retry_after)
    if status == 402 and not {"needed", "available"} <= document.keys():  # of whoever stands between us
        return Refused(status, document, retry_after)
    return _BY_STATUS.get(status, otherwise)(status, document, retry_after)


def invalid(field: str, problem: str) -> Invalid:
    """A field that is seen to be wrong before anything is sent, told as the server would."""
    return Invalid(422, {"status": 422, "code": "validation", "detail": f"{field}: {problem}", "field": field})
