"""Explores every state that a model can reach, breadth first: the first that breaks a rule ends a shortest way to it.

A model is a start, the moves out of a state, and what is wrong with a move. Beside safety it answers whether from every
reachable state an end can still be reached by the moves that are meant to lead there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from time import process_time
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

#: What was done, the state after it, what is wrong with it (None: nothing), and whether it leads towards an end.
Move = tuple[str, S, str | None, bool]


@dataclass(frozen=True, slots=True)
class Found(Generic[S]):
    """What an exploration came to. `steps` lead to `wrong`, or to a state from which there is no end."""

    states: int
    transitions: int
    seconds: float
    wrong: str | None = None
    steps: tuple[str, ...] = ()


def explore(start: S, moves: Callable[[S], Iterable[Move[S]]], ended: Callable[[S], bool]) -> Found[S]:
    """Walk through all of it, or until a rule is broken."""
    began = process_time()
    came_by: dict[S, tuple[S, str] | None] = {start: None}
    led_from: dict[S, list[S]] = {}
    ends = []
    transitions = 0
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if ended(state):
            ends.append(state)
        for what, after, wrong, leads_on in moves(state):
            transitions += 1
            if after not in came_by:
                came_by[after] = (state, what)
                waiting.append(after)
            if wrong is not None:
                steps = (*_way(came_by, state), what)
                return Found(len(came_by), transitions, process_time() - began, wrong, steps)
            if leads_on and after != state:
                led_from.setdefault(after, []).append(state)
    stuck = _stuck(came_by, led_from, ends)
    took = process_time() - began
    if stuck is not None:
        return Found(len(came_by), transitions, took, "it can't end from here", tuple(_way(came_by, stuck)))
    return Found(len(came_by), transitions, took)


def _stuck(came_by: Iterable[S], led_from: dict[S, list[S]], ends: list[S]) -> S | None:
    """A state from which no end can be reached: the first that was found."""
    can_end, waiting = set(ends), list(ends)
    while waiting:
        for before in led_from.get(waiting.pop(), ()):
            if before not in can_end:
                can_end.add(before)
                waiting.append(before)
    return next((state for state in came_by if state not in can_end), None)


def _way(came_by: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    steps = []
    while (before := came_by[state]) is not None:
        state, what = before
        steps.append(what)
    return steps[::-1]
