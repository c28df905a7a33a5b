"""What a stolen dump of the database is good for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.integration.api_support import an_api
from tests.servers import Database
from worker.store.sessions import Sessions


async def test_a_dump_opens_nothing(database: Database, tmp_path: Path) -> None:
    """No text or bytes of any table is a key, a token, a session or a piece of audio; what is there opens no door."""
    async with an_api(database, tmp_path) as api:
        await api.account("ada", 100)
        key, token = await api.key("admin"), await api.token("ada")
        shown = (await api.services.keys.listed())[0]
        session = await Sessions(api.services.keys._engine).open(shown)
        secrets = [key, token, session]
        async with database.connection(as_owner=True) as owner:
            tables = [
                row[0]
                for row in await owner.fetch(
                    "SELECT quote_ident(relname) FROM pg_class "
                    "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
                )
            ]
            told = [
                str(await owner.fetchval(f"SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM {table} AS t"))
                for table in tables
            ]
            hashes = [bytes(row[0]) for row in await owner.fetch("SELECT hash FROM api_keys")]
        dump = "\n".join(told)
        assert hashlib.sha256(key.encode()).digest() in hashes  # what was looked through holds them, as hashes
        for secret in secrets:
            assert secret not in dump
            assert secret.encode().hex() not in dump
            assert secret[len(shown.prefix) :] not in dump  # nor what is not shown of it
        for opener in (hashes[0].hex(), shown.prefix, f"{shown.prefix}{hashes[0].hex()}"):
            assert 401 == (await api.ask("GET", "/v1/queues", key=opener)).status_code
