"""`fermata voices …`: the voices that a conversion may go towards by name, and who may use which."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from worker.cli import opening, values
from worker.cli.options import Actor, Json
from worker.cli.output import facts, present, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Desk
    from worker.store.voices import Voices, VoiceShown

app = cyclopts.App(name="voices", help="Target voices: by what right they are used, and by whom.")

#: Words of a licence or a consent, on one line.
_WORDS_MAX = 500


@app.command
def add(
    name: str,
    clip: str,
    /,
    *,
    owner: Annotated[str, Parameter(help="The account that the clip belongs to.")],
    licence: Annotated[str, Parameter(help="By what right the voice is used.")],
    consent: Annotated[str, Parameter(help="Who agreed to it, when, and where that is kept.")],
    plans: Annotated[tuple[str, ...], Parameter(name="--plan", negative="", help="Only this plan; repeat it.")] = (),
    accounts: Annotated[
        tuple[str, ...], Parameter(name="--account", negative="", help="Only this account; repeat it.")
    ] = (),
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Register a voice with a clip of it. Without --plan and --account everybody may use it.

    Parameters
    ----------
    name: str
        What requests call it: small letters, digits and -, at most 64.
    clip: str
        An audio file of the voice alone; its first 30 seconds count.
    """
    who = values.actor_of(actor)
    owner, allowed = values.account_id(owner), [values.account_id(account) for account in accounts]
    words = values.line("licence", licence, _WORDS_MAX), values.line("consent", consent, _WORDS_MAX)
    wanted = [values.line("plan", plan, 64) for plan in plans]

    async def work(desk: Desk) -> VoiceShown:
        from pathlib import Path

        from worker.voice_desk import VoiceOffer, register

        terms = (tuple(wanted), tuple(allowed)) if wanted or allowed else (None, None)
        return await register(desk.client, _voices(desk), VoiceOffer(name, Path(clip), owner, *words, *terms), who)

    shown = opening.with_desk(work)
    return present(shown, json, [_one(shown)])


@app.command(name="list")
def list_(*, limit: Annotated[str, Parameter(help="1 to 1000.")] = "100", json: Json = False) -> int:
    """Every voice, by name."""
    most = values.whole("limit", limit, 1, 1000)
    shown = _with_voices(lambda voices: voices.listed(most))
    return present({"voices": shown}, json, _list(shown))


@app.command
def show(name: str, /, *, json: Json = False) -> int:
    """One voice: its licence, who may use it, what was measured of its clip."""
    shown = _with_voices(lambda voices: voices.show(name))
    return present(shown, json, [_one(shown)])


@app.command
def remove(name: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """Let no new job name a voice. Jobs that were taken before still run."""
    who = values.actor_of(actor)
    shown = _with_voices(lambda voices: voices.remove(name, who))
    return present(shown, json, [f"voice {shown.name} is offered no more"])


def _with_voices(work: Callable[[Voices], Awaitable[Any]]) -> Any:
    return opening.with_books(lambda books: work(_voices(books)))


def _voices(opened: opening.Books | Desk) -> Voices:
    from worker.store.voices import Voices

    return Voices(opened.store.engine)


def _one(shown: VoiceShown) -> RenderableType:
    measured = ", ".join(f"{name} {value}" for name, value in shown.statistics.items())
    return facts(
        [
            ("voice", shown.name),
            ("for", _allowed(shown)),
            ("licence", shown.licence),
            ("consent", shown.consent),
            ("clip", f"{shown.clip} of {shown.owner}"),
            ("measured", measured),
            ("added", f"{shown.created_at:%Y-%m-%d %H:%M} by {shown.created_by}"),
            ("removed", shown.removed_at or "no"),
        ]
    )


def _list(shown: tuple[VoiceShown, ...]) -> Iterator[RenderableType]:
    yield table(
        ["voice", "for", "licence", "pitch", "added", "removed"],
        [
            (v.name, _allowed(v), v.licence, f"{v.statistics.get('pitch_hz', '?')} Hz", v.created_at, v.removed_at)
            for v in shown
        ],
    )


def _allowed(shown: VoiceShown) -> str:
    if shown.plans is None and shown.accounts is None:
        return "everybody"
    plans = [f"plan {plan}" for plan in shown.plans or ()]
    return ", ".join([*plans, *(shown.accounts or ())])
