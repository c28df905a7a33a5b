"""What the audit asks of the database's own guards: that each of them still is what the migrations made, by content.

A guard that kept its name and lost its sense would let through what it stood against: a function that returns its row
untouched, a trigger for one column, a CHECK that is always true, a key that is gone. What each should be stands in
`audit_guarded.py`. `pg_get_triggerdef` and its sisters say the same in PostgreSQL 15 to 18, and a test on both holds
it; of functions the source is compared, and what they run with. Only the clock is left out: tests have one of their
own, and `doctor` looks at it.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.audit_guarded import GUARDED, REVISION


async def changed_guards(connection: AsyncConnection) -> list[tuple[str, str]]:
    """(rule, what) of each guard that is gone or another.

    None where the schema is of another release than we are: then whoever changed it was a migration.
    """
    if await connection.scalar(_REVISION) != REVISION:
        return []
    found = await guards_of(connection)
    return [
        (
            "guards_are_ours",
            f"{name} is not what the migrations made: {found[name][1]}" if name in found else f"{name} is gone",
        )
        for name, digest in GUARDED.items()
        if name not in found or found[name][0] != digest
    ]


async def guards_of(connection: AsyncConnection) -> dict[str, tuple[str, str]]:
    """The guards as they are: by name the digest of the content, and the content."""
    return {row.name: (row.digest, row.content) for row in await connection.execute(_FOUND)}


_REVISION = text("SELECT version_num FROM alembic_version")

#: Without what belongs to one partition: it has that of its parent, and `append_only_is_guarded` looks at each.
_FOUND = text("""
    WITH relations AS (
        SELECT oid, relname
        FROM pg_class
        WHERE relnamespace = CAST('public' AS regnamespace)
          AND relkind IN ('r', 'p')
          AND NOT relispartition
          AND relname NOT IN ('alembic_version', 'test_clock')
    ), described AS (
        SELECT format('function %s/%s', p.proname, p.pronargs) AS name,
               concat_ws(' | ', l.lanname, p.provolatile, p.prosecdef, p.proisstrict, pg_get_function_result(p.oid),
                         pg_get_function_arguments(p.oid), array_to_string(p.proconfig, ', '), p.prosrc) AS content
        FROM pg_proc AS p
        JOIN pg_language AS l ON l.oid = p.prolang
        WHERE p.pronamespace = CAST('public' AS regnamespace)
          AND p.proname LIKE 'fermata\\_%'
          AND p.proname <> 'fermata_now'
        UNION ALL
        SELECT format('trigger %s on %s', t.tgname, r.relname),
               concat_ws(' | ', pg_get_triggerdef(t.oid), CASE WHEN t.tgenabled NOT IN ('O', 'A') THEN 'off' END)
        FROM pg_trigger AS t
        JOIN relations AS r ON r.oid = t.tgrelid
        WHERE NOT t.tgisinternal
        UNION ALL
        SELECT format('constraint %s on %s', c.conname, r.relname), pg_get_constraintdef(c.oid)
        FROM pg_constraint AS c
        JOIN relations AS r ON r.oid = c.conrelid
        WHERE c.contype IN ('c', 'f', 'p', 'u')
        UNION ALL
        SELECT format('unique index %s on %s', n.relname, r.relname),
               concat_ws(' | ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN 'not valid' END)
        FROM pg_index AS i
        JOIN pg_class AS n ON n.oid = i.indexrelid
        JOIN relations AS r ON r.oid = i.indrelid
        WHERE i.indisunique
    )
    SELECT name, content, left(encode(sha256(convert_to(
               -- A restore reads `BETWEEN` back as one flat AND, so parentheses of a CHECK do not count.
               CASE WHEN name LIKE 'constraint %' THEN translate(content, '()', '') ELSE content END, 'UTF8'
           )), 'hex'), 16) AS digest
    FROM described
    ORDER BY name
""")
