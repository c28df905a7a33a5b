"""What was promised of each figure: the least ratio to its reference, all in one table.

A figure that should be small has its limit as the reference and counts how often it fits in: 1 is the limit itself.
A goal whose figure was never measured stands in RESULTS.md as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GOALS: Mapping[str, float] = MappingProxyType(
    {
        # the books, against pgbench on the same server
        "ledger_pairs": 2.0,
        "ledger_bare": 4.0,
        # against one transaction each, and one hot account against 10,000
        "ledger_pairs_batched": 8.0,
        "ledger_hot": 0.8,
        # a job's path: against plain dramatiq, then limits
        "null_job": 1.0,
        "hints_per_job": 1.0,
        "pickup_ms": 1.0,
        "worker_rss_mb": 1.0,
        "idle_cpu_percent": 1.0,
        # credits as sold: against twice the usual, and 1.2 × a fresh account's
        "cycle_turn_reserve_p99": 1.0,
        "history_ratio": 1.0,
        "rehearse_jobs_per_s": 1.0,
        # one process of the API
        "api_submits": 1.0,
        "api_submit_p99": 1.0,
        "api_batch_jobs": 1.0,
        "api_growth": 1.0,
        # the dashboard over a million jobs
        "overview_look_ms": 1.0,
        "job_search_ms": 1.0,
        "overview_viewers_cores": 1.0,
        # ten million entries and a million jobs: at most 1.5 × what a hundredth takes, 200,000 entries/s audited
        **{
            f"growth_{name}": 1.0
            for name in ("reserve_p50_ms", "reserve_p99_ms", "settle_p99_ms", "look_ms", "balance_ms", "audit_mb")
        },
        "growth_prune_jobs_per_s": 1.0,
        "growth_audit_since_per_s": 1.0,
        # four minutes of music through each embedded engine
        **{
            f"engine_{engine}_{part}": 1.0
            for engine in ("song", "song_draft", "song_studio", "voice", "voice_studio", "stems_vocals", "stems_four")
            for part in ("cpu", "rss")
        },
    }
)
