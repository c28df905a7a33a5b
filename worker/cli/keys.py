"""`fermata keys …`: who may call the HTTP API, and as what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from worker.cli import opening, values
from worker.cli.options import Actor, Json
from worker.cli.output import facts, present, say, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.store.api_keys import ApiKeys, KeyMade, KeyShown

app = cyclopts.App(name="keys", help="Keys of the HTTP API. Each is shown once, when it is made.")


@app.command
def create(
    role: str,
    /,
    *,
    label: Annotated[str, Parameter(help="Who or what uses it, for the list.")],
    accounts: Annotated[
        str | None, Parameter(help="Only these: acme is for acme, acme/… and acme:…, not for acme2. Default: all.")
    ] = None,
    expires_at: Annotated[str | None, Parameter(help="When it closes, with its zone. Default: never.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Make a key and show it, once.

    Parameters
    ----------
    role: str
        pipeline, billing, ops, product, admin or viewer
    """
    who = values.actor_of(actor)
    until = None if expires_at is None else values.moment("expires_at", expires_at)

    async def work(keys: ApiKeys) -> KeyMade:
        from worker.store.api_keys import NewKey, Role
        from worker.store.errors import Refused

        try:
            wanted = Role(role)
        except ValueError:
            roles = ", ".join(known for known in Role if known is not Role.CUSTOMER)
            raise Refused("role", f"no role {role[:40]!r}; there are {roles}") from None
        try:
            return await keys.create(NewKey(wanted, label, accounts, until), who)
        except Refused as error:  # by the name that it has here
            raise Refused("accounts" if error.field == "account_prefix" else error.field, error.problem) from None

    return _present_made(_with_keys(work), json=json)


@app.command(name="list")
def list_(
    *,
    limit: Annotated[str, Parameter(help="1 to 1000.")] = "100",
    after: Annotated[str | None, Parameter(help="Go on after this key's id.")] = None,
    json: Json = False,
) -> int:
    """Every key, the newest first; customers' tokens are not among them."""
    most, place = values.whole("limit", limit, 1, 1000), None if after is None else values.identifier("after", after)
    shown = _with_keys(lambda keys: keys.listed(most, place))
    return present({"keys": shown}, json, _list(shown))


@app.command
def revoke(key: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """Close a key for good. Every API process knows within five seconds.

    Parameters
    ----------
    key: str
        Its id, or how it begins: fmt_ and eight characters.
    """
    who = values.actor_of(actor)

    async def work(keys: ApiKeys) -> KeyShown:
        return await keys.revoke((await keys.find(key)).id, who)

    done = _with_keys(work)
    return present(done, json, [f"key {done.prefix}… ({done.label}) opens nothing any more"])


@app.command
def rotate(
    key: str,
    /,
    *,
    overlap: Annotated[
        str, Parameter(help="Seconds for which the old key still opens; 0 revokes it and its tokens.")
    ] = "86400",
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Make a key like this one, to be put in its place while both open."""
    who, seconds = values.actor_of(actor), values.whole("overlap", overlap, 0)

    async def work(keys: ApiKeys) -> KeyMade:
        return await keys.rotate((await keys.find(key)).id, who, seconds)

    return _present_made(_with_keys(work), json=json)


def _with_keys(work: Callable[[ApiKeys], Awaitable[Any]]) -> Any:
    async def opened(books: opening.Books) -> Any:
        from worker.store.api_keys import ApiKeys

        return await work(ApiKeys(books.store.engine))

    return opening.with_books(opened)


def _present_made(made: KeyMade, *, json: bool) -> int:
    say("keep it now: it is shown this once")
    shown = made.shown
    pairs = [
        ("key", made.key),
        ("id", shown.id),
        ("role", shown.role),
        ("label", shown.label),
        ("accounts", shown.account_prefix or "all"),
        ("closes", shown.expires_at or "never"),
    ]
    return present({**asdict(shown), "key": made.key}, json, [facts(pairs)])


def _list(keys: tuple[KeyShown, ...]) -> Iterator[RenderableType]:
    yield table(
        ["key", "role", "label", "accounts", "made", "by", "closes", "revoked", "last used"],
        [
            (
                f"{key.prefix}…",
                key.role,
                key.label,
                key.account_prefix or "all",
                key.created_at,
                key.created_by,
                key.expires_at,
                key.revoked_at,
                key.last_used_at,
            )
            for key in keys
        ],
    )
