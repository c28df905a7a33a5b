"""A hint on the wire, and the sender that the dispatcher uses.

A hint says: these jobs may be due, look at their rows. It is a dramatiq message, `run([[account_id, job_id], …])`,
and carries nothing else: whoever forges one causes a look at a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Final
from uuid import UUID, uuid4

import msgspec
from dramatiq import JSONEncoder, Message, get_encoder

from worker.credits.lots import ACCOUNT_ID
from worker.queue.connection import connect_async, surfacing
from worker.queue.layout import EPOCH, EPOCH_SECONDS, SEND, WAKE_TOKENS_MAX, Keys

#: (account_id, job_id)
Pair = tuple[str, UUID]

#: On the wire for ever: a worker that doesn't know an actor's name can't run its messages.
ACTOR_NAME: Final = "fermata.run"

#: Jobs in one hint, at most.
PAIRS_MAX: Final = 16

#: Messages in one script call. While a script runs nobody else is served: about 2 ms for this many.
MESSAGES_PER_CALL: Final = 512


@dataclass(frozen=True, slots=True)
class Hint:
    """A decoded message. Its options are not here: retries, delays and callbacks of a message are never obeyed."""

    actor_name: str
    message_id: str
    sent_at_milliseconds: int
    pairs: list[Pair]


#: A pair on the wire. No account is called anything else, so a job under another name is nobody's.
_Pair = tuple[Annotated[str, msgspec.Meta(pattern=f"^{ACCOUNT_ID}$", max_length=128)], UUID]


class _Wire(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Exactly the fields that dramatiq writes."""

    queue_name: str
    actor_name: str
    args: tuple[Annotated[list[_Pair], msgspec.Meta(min_length=1, max_length=PAIRS_MAX)]]
    kwargs: Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=0)]
    options: msgspec.Raw
    message_id: Annotated[str, msgspec.Meta(max_length=64)]
    message_timestamp: int


_decoder: Final = msgspec.json.Decoder(_Wire)


def decode(raw: bytes) -> Hint | None:
    """The hint in these bytes; None for anything else, whatever it is. JSON only, never pickle."""
    try:
        wire = _decoder.decode(raw)
    except (ValueError, RecursionError):  # malformed, mistyped, not UTF-8; nested too deep
        return None
    return Hint(wire.actor_name, wire.message_id, wire.message_timestamp, wire.args[0])


def encode(queue_name: str, pairs: Sequence[Pair]) -> tuple[str, bytes]:
    """The id in Redis and the bytes of one hint, as dramatiq's own broker would write them."""
    redis_id = str(uuid4())
    message: Message[None] = Message(
        queue_name=queue_name,
        actor_name=ACTOR_NAME,
        args=([[account_id, str(job_id)] for account_id, job_id in pairs],),
        kwargs={},
        options={"redis_message_id": redis_id},
    )
    return redis_id, message.encode()


def require_json_encoder() -> None:
    """Refuse to work with an encoder that somebody replaced: a pickle one runs whatever it is sent."""
    if type(get_encoder()) is not JSONEncoder:
        raise RuntimeError("dramatiq's encoder must be its JSONEncoder")


class ForeignNamespace(Exception):
    """The hints in this namespace are another deployment's, whose dispatcher lives. Says what to do."""

    def __init__(self, key: str, owner: str, ours: str, seconds: float) -> None:
        super().__init__(
            f"{key} in Redis belongs to deployment {owner}, which lives, and not to this one, {ours}: give one of them "
            f"another FERMATA_NAMESPACE or Redis; if the other one is gone, wait {seconds:.0f} s"
        )


class HintSender:
    """Sends hints, many at once. Belongs to the event loop it is used on. Every call is bounded in time."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        require_json_encoder()
        self._client = connect_async(redis_url)
        self._keys = Keys(namespace)
        self._send = self._client.register_script(SEND)
        self._epoch = self._client.register_script(EPOCH)

    async def send(self, hints: Mapping[str, Sequence[Pair]], per_message: int = PAIRS_MAX) -> int:
        """Send hints for these jobs of each queue, `per_message` (1–16) in a message; return how many messages.

        Wakes as many idle workers. Raises `QueueUnavailable`: then some, all or none were sent, and since a hint
        may be doubled, the caller may send all again.
        """
        if not 1 <= per_message <= PAIRS_MAX:
            raise ValueError(f"a hint holds 1 to {PAIRS_MAX} jobs")
        messages = (
            (queue, *encode(queue, pairs[first : first + per_message]))
            for queue, pairs in hints.items()
            for first in range(0, len(pairs), per_message)
        )
        sent = 0
        while batch := list(islice(messages, MESSAGES_PER_CALL)):
            keys, args = script_call(self._keys, batch)
            with surfacing():
                await self._send(keys=keys, args=args)
            sent += len(batch)
        return sent

    async def epoch_stands(self, deployment: str) -> bool:
        """Whether this Redis still has the mark of this deployment, which is kept alive by asking.

        False after a flush, on a fresh server, and `EPOCH_SECONDS` after it was last asked: then `set_epoch`. Raises
        `ForeignNamespace` where another deployment's stands.
        """
        return await self._epoch_of(deployment, take=False) == deployment

    async def set_epoch(self, deployment: str) -> None:
        """Mark this Redis as the one whose hints the caller's rows tell of. Raises `ForeignNamespace`."""
        await self._epoch_of(deployment, take=True)

    async def _epoch_of(self, deployment: str, *, take: bool) -> str | None:
        """Whose mark stood there."""
        arguments: list[str | int] = [deployment, round(1000 * EPOCH_SECONDS), int(take)]
        with surfacing():
            owner, left = await self._epoch(keys=[self._keys.epoch], args=arguments)
        if owner is None or left <= 0:
            return None
        name = str(owner.decode(errors="replace"))
        if name != deployment:
            if left > 1000 * EPOCH_SECONDS:
                return None
            raise ForeignNamespace(self._keys.epoch, name, deployment, left / 1000)
        return name

    async def close(self) -> None:
        """Close the connections."""
        with surfacing():
            await self._client.aclose()


def script_call(keys: Keys, messages: Sequence[tuple[str, str, bytes]]) -> tuple[list[str], list[str | int | bytes]]:
    """Keys and arguments of `SEND` for (queue, id, bytes), neighbours of one queue together."""
    script_keys: list[str] = []
    arguments: list[str | int | bytes] = [WAKE_TOKENS_MAX]
    for queue, group in _grouped(messages):
        names = keys.queue(queue)
        script_keys += [names.ready, names.messages, names.wake]
        arguments.append(len(group))
        for redis_id, body in group:
            arguments += [redis_id, body]
    return script_keys, arguments


def _grouped(messages: Sequence[tuple[str, str, bytes]]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    groups: dict[str, list[tuple[str, bytes]]] = {}
    for queue, redis_id, body in messages:
        groups.setdefault(queue, []).append((redis_id, body))
    yield from groups.items()
