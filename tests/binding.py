"""Whether every table of a statement that holds credits is kept to an account there: by `=` in WHERE or ON, with a
parameter or with the account of a table that is bound itself. Naming the column is not enough, nor is a list of any
accounts.

Reads the SQL of this store, not all of SQL: what it does not understand binds nothing, and so is reported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"--[^\n]*|/\*.*?\*/|(?P<literal>'(?:[^']|'')*')|\"(?P<name>[^\"]+)\"|.", re.DOTALL)
_BEGINS = re.compile(r"\s*(?:select|with|update|insert|delete|merge|\()\b|\s*\(")
_CLAUSE = re.compile(
    r"\b(where|on conflict|on|from|(?:(?:left|right|full|inner|cross|natural)(?: outer)? )?join|using|update|"
    r"insert into|delete from|merge into|set|select|values|group by|order by|limit|offset|returning|having|window|for|"
    r"when|union all|union|except|intersect|with)\b|,"
)
_SOURCE = re.compile(r"(?:lateral )?(?:only )?(@?\w+)(?: with ordinality)?(?: as)?(?: (\w+))?")
_COLUMN = r"(?:(\w+)\.)?account_id"
_PARAMETER = r"(?:cast\()?([:$]\w+)(?: as text(?:\[\])?\))?"
_EQUAL = re.compile(
    rf"{_COLUMN} ?= ?(?:{_PARAMETER}|any ?\({_PARAMETER}\)|(?:any ?\(array\[)?(\w+)\.account_id(?:\]\))?)"
)
_SWAPPED = re.compile(rf"{_PARAMETER} ?= ?{_COLUMN}")

Node = tuple[int, str]


@dataclass(slots=True)
class _Reading:
    """A statement, its scopes taken apart: each SELECT stands alone, what it holds in brackets as `@number`."""

    money: Collection[str]
    scopes: list[str] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)
    sources: dict[Node, str] = field(default_factory=dict)
    links: list[tuple[Node, Node]] = field(default_factory=list)
    #: By which parameter; a list of accounts binds each row by itself.
    bound: dict[Node, set[str]] = field(default_factory=dict)
    inserted: list[str] = field(default_factory=list)

    def add(self, text: str, parent: int | None) -> int:
        number = len(self.scopes)
        self.scopes.append("")
        self.parents.append(parent)
        self.scopes[number] = " ".join(self._without_brackets(text, number).split())
        return number

    def _without_brackets(self, text: str, number: int) -> str:
        out, place = [], 0
        while place < len(text):
            if text[place] != "(":
                out.append(text[place])
                place += 1
                continue
            end = _closing(text, place)
            inside = text[place + 1 : end]
            if _BEGINS.match(inside) and re.search(r"\b(?:select|update|insert|delete|merge)\b", inside):
                child = self.add(inside, number)
                out.append(f" @{child} ")
                if named := re.search(r"(\w+)(?: ?\([\w, ]*\))? as (?:not )?(?:materialized )?$", "".join(out[:-1])):
                    self.named[named[1]] = child
            else:
                out.append(f"({self._without_brackets(inside, number)})")
            place = end + 1
        return "".join(out)


def _outside(text: str) -> str:
    """Without what stands in brackets."""
    while (shorter := re.sub(r" ?\([^()]*\)", "", text)) != text:
        text = shorter
    return text


def _closing(text: str, place: int) -> int:
    depth = 0
    for at in range(place, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text)


def _plain(sql: str) -> str:
    kept = []
    for token in _TOKEN.finditer(sql):
        said = token["name"] or ("''" if token["literal"] else token.group())
        kept.append(" " if said[:2] in ("--", "/*") else said)
    plain = " ".join("".join(kept).lower().split())
    return re.sub(r"\b(?:public|pg_catalog)\s*\.\s*", "", plain).replace("( ", "(").replace(" )", ")")


def _clauses(text: str) -> Iterator[tuple[str, str]]:
    """What stands at the top of a scope, by the word before it."""
    found = [
        match
        for match in _CLAUSE.finditer(text)
        if text.count("(", 0, match.start()) == text.count(")", 0, match.start())
    ]
    ends = [*(match.start() for match in found[1:]), len(text)]
    for match, end in zip(found, ends, strict=False):
        yield match.group(), text[match.end() : end].strip()


def _read(reading: _Reading, number: int) -> None:
    """Note the sources of a scope, and what its conditions say of their accounts."""
    here: list[Node] = []
    group, before = 0, ""
    conditions: list[tuple[int, str]] = []
    for word, text in _clauses(reading.scopes[number]):
        if word in ("union", "union all", "except", "intersect"):
            group, here = group + 1, []
        if word == "insert into":
            if (table := re.match(r"(\w+)", text)) and table[1] in reading.money:
                columns = re.match(r"\w+ ?\(([^()]*)\)", text)
                if columns is None or "account_id" not in re.split(r"\W+", columns[1]):
                    reading.inserted.append(table[1])
        elif word == "using" and text.startswith("("):
            if re.match(r"\([^()]*\baccount_id\b", text):
                reading.links += [(one, here[-1]) for one in here[:-1]]
        elif (
            word in ("from", "update", "delete from", "merge into", "using")
            or word.endswith("join")
            or (word == "," and before == "from")
        ):
            if (source := _SOURCE.match(_outside(text))) is not None:
                node = (number, f"{group}:{source[2] or source[1]}")
                reading.sources[node] = source[1]
                here.append(node)
        elif word in ("where", "on"):
            conditions.append((group, text))
        if word in ("from", "delete from") or word.endswith("join") or (word == "using" and not text.startswith("(")):
            before = "from"
        elif word in ("where", "set", "select", "group by", "order by", "values", "returning", "with", "when"):
            before = word
    for group, text in conditions:
        _conditions(reading, number, group, text)


def _conditions(reading: _Reading, number: int, group: int, text: str) -> None:
    for part in re.split(r"\band\b", text):
        if (equal := _EQUAL.fullmatch(part.strip())) is not None:
            name, parameter, several, other = equal.groups()
        elif (equal := _SWAPPED.fullmatch(part.strip())) is not None:
            parameter, name = equal.groups()
            several = other = None
        else:
            continue
        ours = [_found(reading, number, group, name)] if name else _all_here(reading, number, group)
        for node in ours:
            if node is None:
                continue
            if other is not None:
                if (theirs := _found(reading, number, group, other)) is not None:
                    reading.links.append((theirs, node))
            else:
                reading.bound.setdefault(node, set()).add(parameter or f"each of {several}")


def _all_here(reading: _Reading, number: int, group: int) -> list[Node | None]:
    return [node for node in reading.sources if node[0] == number and node[1].startswith(f"{group}:")]


def _found(reading: _Reading, number: int | None, group: int, name: str) -> Node | None:
    """The source of that name, here or around."""
    while number is not None:
        for at in (group, *range(9)):
            if (number, f"{at}:{name}") in reading.sources:
                return (number, f"{at}:{name}")
        number = reading.parents[number]
    return None


def unbound(sql: str, money: Collection[str]) -> list[str]:
    """The tables of `money` in a statement that nothing binds to an account there, or that two accounts meet in."""
    reading = _Reading(money)
    reading.add(_plain(sql), None)
    for number in range(len(reading.scopes)):
        _read(reading, number)
    bound = {node: set(by) for node, by in reading.bound.items()}
    changed = True
    while changed:
        changed = False
        for node, source in reading.sources.items():
            by = _by_itself(reading, source, bound)
            changed |= _more(bound, node, by)
        for one, other in reading.links:
            changed |= _more(bound, one, bound.get(other, set())) | _more(bound, other, bound.get(one, set()))
    of_money = {node: source for node, source in reading.sources.items() if source in money}
    loose = [source for node, source in of_money.items() if not bound.get(node)]
    single = {by for node in of_money for by in bound.get(node, ()) if not by.startswith("each ")}
    if len(single) > 1:
        loose += sorted(set(of_money.values()))
    # Beside one another in a SELECT, each of some accounts: only by a link are they of the same.
    for number in range(len(reading.scopes)):
        of_each = [n for n in of_money if n[0] == number and any(by.startswith("each ") for by in bound.get(n, ()))]
        loose += [
            of_money[n] for n in of_each[1:] if not _linked(reading, of_each[0], n) and n[1][0] == of_each[0][1][0]
        ]
    return sorted({*loose, *reading.inserted})


def _more(bound: dict[Node, set[str]], node: Node, by: set[str]) -> bool:
    if by <= bound.get(node, set()):
        return False
    bound.setdefault(node, set()).update(by)
    return True


def _by_itself(reading: _Reading, source: str, bound: dict[Node, set[str]]) -> set[str]:
    """Lists of parameters, and what was selected from bound tables only."""
    if source == "unnest":
        return {"each of a list"}
    number = int(source[1:]) if source.startswith("@") else reading.named.get(source)
    if number is None:
        return set()
    inside = [node for node in reading.sources if node[0] == number]
    if not inside:
        return {"each of a list"} if "unnest(" in reading.scopes[number] else set()
    if not all(bound.get(node) for node in inside):
        return set()
    return {by for node in inside for by in bound[node]}


def _linked(reading: _Reading, one: Node, other: Node) -> bool:
    reached, waiting = {one}, [one]
    while waiting:
        node = waiting.pop()
        for pair in reading.links:
            for here, there in (pair, pair[::-1]):
                if here == node and there not in reached:
                    reached.add(there)
                    waiting.append(there)
    return other in reached
