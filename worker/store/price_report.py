"""What prices did: quoted against charged, what came back and why, what is held at this moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of so many jobs 10 %, half and 90 % are at or below these, in credits."""

    p10: int
    p50: int
    p90: int


@dataclass(frozen=True, slots=True)
class Refunds:
    """Jobs that ended without a sale for one reason. `rate`: of all jobs of that kind and model that ran.

    `credits` came back, `charged` did not: a book may keep a part of what the customer caused.
    """

    reason: str
    jobs: int
    rate: float
    credits: int
    charged: int = 0


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One kind and model. Credits of `quoted` and `charged` are of jobs that were sold, whole or in part.

    `margin`: the part of what was held for them that was not used, 0 to 1; None where nothing was sold.
    """

    kind: str
    model: str
    jobs: int
    sold: int
    partial: int
    quoted: Quantiles | None
    charged: Quantiles | None
    margin: float | None
    refund_rate: float
    refunds: tuple[Refunds, ...]
    held_jobs: int
    held_credits: int


@dataclass(frozen=True, slots=True)
class PriceReport:
    """Jobs that ran and ended since then, and those that hold credits now."""

    since: datetime
    until: datetime
    lines: tuple[PriceLine, ...]


class PriceReports:
    """Reads for product people."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def report(self, length: timedelta) -> PriceReport:
        """The time until now, by the database's clock; kinds and models in order of their names."""
        async with snapshot(self._engine) as connection:
            now: datetime = (await connection.execute(_NOW)).scalar_one()
            since = now - length
            ran = {(row[0], row[1]): _Ran(*row[2:]) for row in await connection.execute(_RAN, {"since": since})}
            held = {(row[0], row[1]): (row[2], row[3]) for row in await connection.execute(_HELD)}
            refunds = await _refunds(connection, since, ran)
        lines = [
            _line(key, ran.get(key, _Ran()), held.get(key, (0, 0)), refunds.get(key, ()))
            for key in sorted(ran.keys() | held.keys())
        ]
        return PriceReport(since, now, tuple(lines))


_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Ran:
    """The rest of a row of what ran and ended, or nothing."""

    jobs: int = 0
    sold: int = 0
    partial: int = 0
    quoted_sum: float | None = None
    charged_sum: float | None = None
    quoted: Sequence[int] | None = None
    charged: Sequence[int] | None = None

    @property
    def margin(self) -> float | None:
        if not self.quoted_sum or self.charged_sum is None:
            return None
        return round(1 - self.charged_sum / self.quoted_sum, 4)


def _line(key: _Key, ran: _Ran, held: tuple[int, int], refunds: Sequence[Refunds]) -> PriceLine:
    return PriceLine(
        *key,
        jobs=ran.jobs,
        sold=ran.sold,
        partial=ran.partial,
        quoted=_quantiles(ran.quoted),
        charged=_quantiles(ran.charged),
        margin=ran.margin,
        refund_rate=round(sum(one.jobs for one in refunds) / ran.jobs, 4) if ran.jobs else 0.0,
        refunds=tuple(refunds),
        held_jobs=held[0],
        held_credits=held[1],
    )


def _quantiles(found: Sequence[int] | None) -> Quantiles | None:
    return Quantiles(*found) if found else None


async def _refunds(connection: AsyncConnection, since: datetime, ran: dict[_Key, _Ran]) -> dict[_Key, list[Refunds]]:
    found: dict[_Key, list[Refunds]] = {}
    for kind, model, reason, count, credits_, charged in await connection.execute(_REFUNDS, {"since": since}):
        rate = round(count / ran[kind, model].jobs, 4)
        found.setdefault((kind, model), []).append(Refunds(reason, count, rate, credits_, charged))
    return found


_NOW = text("SELECT fermata_now()")

#: By the events, as their index knows when jobs ended. What never ran was never held.
_RAN = text("""
    SELECT j.kind, COALESCE(j.request ->> 'model', '') AS model, count(*) AS jobs,
           count(*) FILTER (WHERE j.state = 'succeeded') AS sold,
           count(*) FILTER (WHERE j.partial) AS partial,
           CAST(sum(j.quoted) FILTER (WHERE j.state = 'succeeded') AS float) AS quoted_sum,
           CAST(sum(j.charged) FILTER (WHERE j.state = 'succeeded') AS float) AS charged_sum,
           percentile_disc(ARRAY[0.1, 0.5, 0.9]) WITHIN GROUP (ORDER BY j.quoted)
               FILTER (WHERE j.state = 'succeeded') AS quoted,
           percentile_disc(ARRAY[0.1, 0.5, 0.9]) WITHIN GROUP (ORDER BY j.charged)
               FILTER (WHERE j.state = 'succeeded') AS charged
    FROM events AS e
    JOIN jobs AS j USING (account_id, job_id)
    WHERE e.what = 'ended'
      AND e.at >= :since
      AND j.attempt > 0
    GROUP BY 1, 2
""")

_REFUNDS = text("""
    SELECT j.kind, COALESCE(j.request ->> 'model', '') AS model, j.reason, count(*),
           CAST(sum(j.quoted - j.charged) AS bigint), CAST(sum(j.charged) AS bigint)
    FROM events AS e
    JOIN jobs AS j USING (account_id, job_id)
    WHERE e.what = 'ended'
      AND e.at >= :since
      AND j.attempt > 0
      AND j.state <> 'succeeded'
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 4 DESC, 3
""")

#: Running jobs, and those that wait for another attempt.
_HELD = text("""
    SELECT j.kind, COALESCE(j.request ->> 'model', '') AS model, count(*) AS jobs,
           CAST(sum(r.amount) AS bigint) AS credits
    FROM (
        SELECT account_id, job_id
        FROM live
        UNION ALL
        SELECT account_id, job_id
        FROM due
    ) AS under_way
    JOIN reservations AS r USING (account_id, job_id)
    JOIN jobs AS j USING (account_id, job_id)
    WHERE r.state = 'held'
    GROUP BY 1, 2
""")
