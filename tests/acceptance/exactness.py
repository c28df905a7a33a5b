"""Whether the books are exact: by the product's own audit, and by a few questions asked apart from it."""

from __future__ import annotations

from typing import Any

import asyncpg

from config.settings import load
from tasks.registry import registry
from tests.servers import Database
from worker.pricing import quoted_usage_of
from worker.store.audit import audit
from worker.store.database import make_engine


async def assert_books_exact(database: Database) -> None:
    """Every promise about money that a database can be asked for. What processes left in the middle is no error."""
    engine = make_engine(load({}, database_url=database.url), name="test")
    try:
        found_by_audit = (await audit(engine, quoted_usage=quoted_usage_of(registry()))).violations
    finally:
        await engine.dispose()
    assert () == found_by_audit, found_by_audit
    async with database.connection() as connection:
        assert {} == await broken_rules(connection)


async def broken_rules(connection: asyncpg.Connection) -> dict[str, list[dict[str, Any]]]:
    """The independent questions that find something, with the rows they find. Each is one snapshot."""
    found = {rule: [dict(row) for row in await connection.fetch(query)] for rule, query in RULES.items()}
    return {rule: rows for rule, rows in found.items() if rows}


#: What must never be found.
RULES = {
    "a lot's grant is the sum of its buckets": (
        "SELECT account_id, lot_id FROM lots "
        "WHERE granted <> available + held + spent + expired + revoked OR least(available, held, spent) < 0"
    ),
    "a lot's buckets are the fold of its journal": """
        SELECT l.account_id, l.lot_id, l.available, l.held, l.spent, f.*
        FROM lots AS l
        LEFT JOIN (
            SELECT account_id, lot_id,
                   sum(CASE move WHEN 'grant' THEN amount WHEN 'refund' THEN amount ELSE 0 END)
                   - sum(CASE WHEN move IN ('reserve', 'expire', 'revoke') THEN amount ELSE 0 END) AS available,
                   sum(CASE move WHEN 'reserve' THEN amount WHEN 'refund' THEN -amount WHEN 'commit' THEN -amount
                       ELSE 0 END) AS held,
                   sum(CASE move WHEN 'commit' THEN amount ELSE 0 END) AS spent,
                   sum(CASE move WHEN 'expire' THEN amount ELSE 0 END) AS expired,
                   sum(CASE move WHEN 'revoke' THEN amount ELSE 0 END) AS revoked
            FROM journal
            GROUP BY account_id, lot_id
        ) AS f USING (account_id, lot_id)
        WHERE (l.available, l.held, l.spent, l.expired, l.revoked)
              IS DISTINCT FROM (f.available, f.held, f.spent, f.expired, f.revoked)
    """,
    "an ended job holds nothing": (
        "SELECT j.job_id, j.state FROM jobs AS j JOIN reservations AS r USING (account_id, job_id) "
        "WHERE j.ended_at IS NOT NULL AND r.state = 'held'"
    ),
    "a running job holds its quote": (
        "SELECT j.job_id, r.state FROM jobs AS j LEFT JOIN reservations AS r USING (account_id, job_id) "
        "WHERE j.state = 'running' AND (r.state IS DISTINCT FROM 'held' OR r.amount <> j.quoted)"
    ),
    "a job is charged once, what its row says": """
        SELECT j.job_id, j.state, j.charged, c.times, c.amount
        FROM jobs AS j
        LEFT JOIN (
            SELECT account_id, job_id, count(DISTINCT at) AS times, sum(amount) AS amount
            FROM journal
            WHERE move = 'commit'
            GROUP BY account_id, job_id
        ) AS c USING (account_id, job_id)
        WHERE c.times > 1
           OR (j.ended_at IS NOT NULL AND j.charged <> coalesce(c.amount, 0))
           OR (j.ended_at IS NULL AND c.amount IS NOT NULL)
    """,
    "a success has a commit, nothing else a charge": """
        SELECT j.job_id, j.state, r.state AS reservation, j.charged
        FROM jobs AS j
        LEFT JOIN reservations AS r USING (account_id, job_id)
        WHERE (j.state = 'succeeded' AND r.state IS DISTINCT FROM 'committed')
           OR (j.ended_at IS NOT NULL AND j.state <> 'succeeded' AND (r.state = 'committed' OR j.charged <> 0))
    """,
    "an unfinished job stands in exactly one table": """
        SELECT j.job_id, j.state
        FROM jobs AS j
        WHERE (j.state = 'queued') <> EXISTS (SELECT FROM due AS d WHERE d.job_id = j.job_id)
           OR (j.state = 'running') <> EXISTS (SELECT FROM live AS l WHERE l.job_id = j.job_id)
           OR (j.state = 'waiting') <> EXISTS (SELECT FROM parked AS p WHERE p.job_id = j.job_id)
    """,
    "only a success has outputs, and they are those of its last attempt": """
        SELECT j.job_id, j.state
        FROM jobs AS j
        JOIN artifacts AS a ON a.account_id = j.account_id AND a.job_id = j.job_id
        LEFT JOIN attempts AS t ON t.account_id = j.account_id AND t.job_id = j.job_id AND t.attempt = j.attempt
        WHERE j.state <> 'succeeded' OR a.token IS DISTINCT FROM t.token
    """,
    "a job ends once": ("SELECT job_id, count(*) FROM events WHERE what = 'ended' GROUP BY job_id HAVING count(*) > 1"),
}
