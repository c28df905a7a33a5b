"""Words put in wherever customers and staff can write, all of an account: after its erasure they are nowhere.

What stays of what they wrote is named here, and stands only where `tests/personal.py` has the reason for it.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import redis

from tests import kinds
from tests.acceptance.stage import Stage, put_plans_in_force, put_prices_in_force
from tests.endpoints import an_endpoint
from tests.integration.api_support import SONG, Api, an_api
from tests.integration.cli_support import run_command, silence
from tests.integration.test_voices import clip as clip
from tests.personal import ERASED, kept
from tests.redis_text import everything_in
from tests.servers import Database
from worker.store.api_keys import NewKey, Role
from worker.store.ops import Scope
from worker.voice_desk import VoiceOffer, register

#: Every word that is put in begins so, and goes on with its own name.
STEM = "qzx7"
#: Hexadecimal digits are all that a trace's id can hold.
TRACE = "decafbad" * 4

#: Of the words below those that stay. Each must be found again: a list of what stays must not be too long either.
STAYS = frozenset(
    {
        # ids and references of the caller's
        *("grantkey", "orderkey", "planstep", "jobkey", "retrykey", "sorrykey", "putkey", "voicename"),
        # who did it, and why the account was erased
        *("member", "why"),
        # about a queue, a key and a book, not about the customer
        *("queue", "label", "book"),
    }
)


def word(name: str) -> str:
    """The word of that name; no other one begins with it."""
    return f"{STEM}{name}z"


async def lived(stage: Stage, api: Api, folder: Path, clip: Path, hook: str) -> None:
    """An account `eve`, in whose life everybody wrote wherever they can."""
    staff = word("member")
    await put_plans_in_force(stage.database, "null", "gated")
    await put_prices_in_force(stage.database, f"\n# {word('book')}\n")
    await api.services.accounts.create("eve", staff)
    await api.ok("POST", "/v1/webhooks", {"url": hook, "account": "eve"}, idempotency=word("hookkey"))
    await api.ok(
        "POST", "/v1/accounts/eve/grants", {"credits": 500, "note": word("note")}, idempotency=word("grantkey")
    )
    await api.ok("POST", "/v1/accounts/eve/topups", {"credits": 50}, idempotency=word("orderkey"))
    await api.ok("POST", "/v1/accounts/eve/subscription", {"plan": "creator"}, idempotency=word("planstep"))
    await api.ok("POST", "/v1/accounts/eve/tokens", {"seconds": 600}, idempotency=word("tokenkey"))
    await api.services.keys.create(NewKey(Role.PIPELINE, word("label"), "eve"), staff)
    sound = silence(folder / "sound.wav", 0.5)
    tag = b"LIST\x1c\0\0\0INFOICMT\x10\0\0\0" + word("tag").encode().ljust(16)
    await api.ok(
        "POST",
        f"/v1/artifacts?account=eve&name={word('filename')}",
        files={"file": (word("path"), sound.read_bytes() + tag)},
        idempotency=word("putkey"),
    )
    offer = VoiceOffer(word("voicename"), clip, "eve", word("licence"), word("consent"), accounts=("eve",))
    await register(stage.client, api.services.voices, offer, staff)
    await api.services.voices.remove(word("voicename"), staff)
    await jobs(stage, api)
    await api.services.controls.pause(Scope.ACCOUNT, "eve", word("pause"), staff)
    await api.services.controls.resume(Scope.ACCOUNT, "eve", staff, word("resume"))
    await api.services.controls.pause(Scope.QUEUE, "stem_split", word("queue"), staff)


async def jobs(stage: Stage, api: Api) -> None:
    """Of each end at which words may be left, one."""
    song = {**SONG, "prompt": word("prompt")}
    asked = {"account": "eve", "metadata": {word("metaname"): word("metadata")}, "run_at": "2100-01-01T00:00:00Z"}
    trace = {"traceparent": f"00-{TRACE}-{TRACE[:16]}-01"}
    late = {**asked, "kind": "generation", "params": song, "ends_by": "2100-01-02T00:00:00Z"}
    first = await api.ok("POST", "/v1/jobs", late, headers=trace, idempotency=word("jobkey"))
    await api.ok("POST", f"/v1/jobs/{first['id']}/cancel", {"reason": word("cancel")})
    again = await api.ok("POST", f"/v1/jobs/{first['id']}/retry", idempotency=word("retrykey"))
    many = {"account": "eve", "metadata": asked["metadata"], "reason": word("many")}
    await api.ok("POST", "/v1/jobs/cancel-many", many)
    assert "cancelled" == (await stage.becomes(again["id"], "cancelled")).state

    failed = await stage.submit("gated", "eve", gate=str(stage.gate()), remembers=word("engine"), fails=True)
    hangs = await stage.submit("gated", "eve", gate=str(stage.gate("never")), before=1)
    paid = await stage.submit("null", "eve")
    await stage.becomes(hangs, "running")
    await api.ok("POST", f"/v1/jobs/{hangs}/force-end", {"reason": word("force")})
    stage.gate().touch()
    await stage.all_ended([failed, hangs, paid])
    sorry = {"amount": 5, "reason": word("sorry")}
    await api.ok("POST", f"/v1/jobs/{paid}/compensate", sorry, idempotency=word("sorrykey"))
    everybody = {"percent": 100, "reference": "outage", "reason": word("everybody")}
    assert 0 < (await api.ok("POST", "/v1/jobs/compensate-many", everybody))["credits"]
    await api.ok("POST", "/v1/jobs/cancel-many", {"reason": word("everyone")})


async def found_in(database: Database) -> Mapping[str, set[str]]:
    """By column, of all tables that there are, the words that stand in it, however deep."""
    found = defaultdict(set)
    async with database.connection(as_owner=True) as owner:
        for table, parent, column, is_bytes in await owner.fetch(_COLUMNS):
            value = f"encode({column}, 'escape')" if is_bytes else f"{column}::text"
            for (one,) in await owner.fetch(
                f"SELECT DISTINCT m[1] FROM {table}, regexp_matches({value}, $1, 'gi') AS m",
                f"({STEM}[a-z]+z|{TRACE})",
            ):
                found[f"{parent}.{column}"].add(one.removeprefix(STEM).removesuffix("z"))
    return found


def found_in_files(folder: Path) -> set[str]:
    """The words that stand in files or their names."""
    told = b"\n".join(bytes(path) + path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {one.decode() for one in re.findall(STEM.encode() + b"([a-z]+)z", told)}


def found_in_redis(stage: Stage) -> tuple[bool, set[str]]:
    """Whether anything stands there, and the words in it."""
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        told = everything_in(client)
    return bool(told), set(re.findall(f"{STEM}([a-z]+)z|{TRACE}", told))


async def test_words_are_nowhere_after_an_erasure(stage: Stage, tmp_path: Path, clip: Path) -> None:
    """In no column of any table, no file and no key of Redis; but for what was said to stay, where it was said."""
    settings = {"extra_kinds": kinds.ALL, "webhook_private_targets": True}
    private = {"webhook_private_targets": "true", "deliver_tick_seconds": "0.1"}
    stage.scheduler(**private)
    stage.worker("null", "gated", slots=3)
    async with an_endpoint() as endpoint, an_api(stage.database, tmp_path, **settings) as api:
        await lived(stage, api, tmp_path, clip, f"{endpoint.url}/{word('url')}")
        before = await found_in(stage.database)
        assert {"tag"} <= found_in_files(stage.artifacts)
        # Words stand where they were expected to, and nowhere else: each column's class is tried out.
        assert set() == ERASED - before.keys()
        assert set() == before.keys() - ERASED - kept()
        done = await asyncio.to_thread(
            run_command, stage.environment, "accounts", "erase", "eve", "--reason", word("why"), "--confirm", "eve"
        )
        assert 0 == done.code, done.err
        after = await found_in(stage.database)
        assert STAYS == set().union(*after.values())
        assert set() == after.keys() - kept()
        assert set() == found_in_files(stage.artifacts)
        assert (True, set()) == found_in_redis(stage)
        assert [] == (await api.ok("GET", "/v1/webhooks"))["webhooks"]


_COLUMNS = """
    SELECT quote_ident(c.relname), COALESCE(p.relname, c.relname), quote_ident(a.attname), a.atttypid = 'bytea'::regtype
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
    LEFT JOIN pg_class AS p ON p.oid = i.inhparent
    WHERE c.relnamespace = 'public'::regnamespace
      AND c.relkind = 'r'
"""
