"""Plans and packs: what the product sells. A subscription to a plan brings credits each month, a pack brings them once.

Like price books they are documents: read as a whole or refused as a whole. `config/plans.toml` explains the words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from worker.credits.documents import DocumentError, Problem, Section, nearest, parsed

#: The most credits of one plan's month or one pack, unless the caller says otherwise.
CREDITS_SOLD_MAX = 10_000_000

PRIORITY_MAX = 100
JOBS_AT_A_TIME_MAX = 1_000

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class PlanBookError(DocumentError):
    """The plans are refused as a whole. Those in force stay as they are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a subscription brings."""

    name: str
    monthly_credits: int
    kinds: tuple[str, ...]
    models: Mapping[str, tuple[str, ...]]  # of the kinds that have some for this plan only; others: all
    priority: int  # higher goes first
    jobs_at_a_time: int
    price_shown: str
    warn_below: int = 0  # spendable credits at which the account is told once; 0: never

    def allows(self, kind: str, model: str | None) -> bool:
        """Whether a job may be asked for. `model` is None for kinds that have none."""
        return kind in self.kinds and (kind not in self.models or model in self.models[kind])


@dataclass(frozen=True, slots=True)
class Pack:
    """Credits bought apart from the plan."""

    name: str
    credits: int
    price_shown: str


@dataclass(frozen=True, slots=True)
class PlanBook:
    """All plans and packs, in the order of the file. `document` is the text they were read from."""

    plans: Mapping[str, Plan] = field(compare=False)
    packs: Mapping[str, Pack] = field(compare=False)
    document: str
    digest: str  # SHA-256 of the document in UTF-8, hex

    def smallest_pack(self, needed: int) -> Pack | None:
        """The smallest pack of at least so many credits; None if one pack would not do."""
        enough = [pack for pack in self.packs.values() if pack.credits >= needed]
        return min(enough, key=lambda pack: pack.credits, default=None)


def parse_plan_book(
    document: str,
    *,
    models: Mapping[str, Collection[str]] | None = None,
    credits_max: int = CREDITS_SOLD_MAX,
) -> PlanBook:
    """The plans and packs that a TOML document describes.

    With `models` (for each kind its models, none for kinds without) the names of both are checked. Raises
    `PlanBookError` with every problem.
    """
    problems: list[Problem] = []
    root = parsed(document, problems)
    if not problems:
        plans = {section.name.partition(".")[2]: section for section in _named(root, "plans")}
        packs = {section.name.partition(".")[2]: section for section in _named(root, "packs")}
        if not plans:
            root.refuse("plans", "there must be at least one plan")
        sold = {name: _plan(name, section, models, credits_max) for name, section in plans.items()}
        bought = {name: _pack(name, section, credits_max) for name, section in packs.items()}
        root.close()
    if problems:
        raise PlanBookError(tuple(problems))
    return PlanBook(sold, bought, document, hashlib.sha256(document.encode()).hexdigest())


def _named(root: Section, key: str) -> list[Section]:
    """The tables inside a table, those with a usable name."""
    section = root.table(key)
    for name in section.names():
        if not _NAME.fullmatch(name):
            section.refuse(name, "no name: small letters, digits and _, at most 32")
    return [section.table(name) for name in section.names() if _NAME.fullmatch(name)]


def _plan(name: str, section: Section, known: Mapping[str, Collection[str]] | None, credits_max: int) -> Plan:
    kinds = section.words("kinds")
    for kind in kinds:
        if known is not None and kind not in known:
            section.refuse("kinds", f"no such kind: {kind}{nearest(kind, known)}")
    plan = Plan(
        name=name,
        monthly_credits=section.whole("monthly_credits", None, 1, credits_max),
        kinds=kinds,
        models=_models(section.table("models"), kinds, known),
        priority=section.whole("priority", 0, 0, PRIORITY_MAX),
        jobs_at_a_time=section.whole("jobs_at_a_time", None, 1, JOBS_AT_A_TIME_MAX),
        price_shown=section.text("price_shown", None),
        warn_below=section.whole("warn_below", 0, 0, credits_max),
    )
    section.close()
    return plan


def _models(
    section: Section, kinds: Collection[str], known: Mapping[str, Collection[str]] | None
) -> dict[str, tuple[str, ...]]:
    models = {}
    for kind in section.names():
        models[kind] = section.words(kind)
        if kind not in kinds:
            section.refuse(kind, f"not among the kinds of this plan{nearest(kind, kinds)}")
        elif known is not None:
            for model in models[kind]:
                if model not in known.get(kind, ()):
                    section.refuse(kind, f"no such model: {model}{nearest(model, known.get(kind, ()))}")
    return models


def _pack(name: str, section: Section, credits_max: int) -> Pack:
    pack = Pack(name, section.whole("credits", None, 1, credits_max), section.text("price_shown", None))
    section.close()
    return pack
