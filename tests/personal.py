"""Every column that holds text, JSON or bytes: may people's words stand in it, and what does an erasure do to them.

A new column belongs in one of these, or `tests/integration/test_personal.py` fails; and
`tests/acceptance/test_erasing_reach.py` puts words everywhere that people can write, and looks where they are found.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What people wrote or made. Gone with the erasure of their account.
ERASED = frozenset(
    {
        "jobs.request",  # all but numbers, switches and choices of ours
        "jobs.metadata",
        "jobs.message",
        "jobs.traceparent",
        "attempts.message",
        "attempts.engine_state",
        "artifacts.name",
        "lots.note",
        "events.reason",  # of what ops did to the account; that of an ended job is one of our words
        "events.body",
        "webhooks.url",
        "voices.licence",
        "voices.consent",
    }
)

#: May hold what somebody typed, and stays. docs/RUNBOOK.md tells people each of these reasons.
KEPT: Mapping[str, frozenset[str]] = {
    "an id or a reference that the caller chose: by it the same request is told again, and never charged or credited "
    "twice; it must not be a person's name": frozenset(
        {
            "jobs.idempotency_key",
            "lots.reference",
            "purchases.reference",
            "debts.reference",
            "subscription_changes.reference",
            "subscription_changes.body",  # holds the answer, which repeats it
            "creations.reference",  # for 30 days
            "voices.name",  # other accounts' jobs name it
        }
    ),
    "who did it: a member of staff or a key, not the customer": frozenset(
        {
            f"{table}.actor"
            for table in (
                *("accounts", "subscription_changes", "journal", "purchases", "debts", "rehearsals", "jobs"),
                *("artifacts", "webhooks", "erasures", "controls", "api_keys", "audit_log", "voices"),
            )
        }
        | {
            "api_keys.changed_by",
            "voices.changed_by",
            "workers.drain_asked_by",
            "price_books.author",
            "price_books.withdrawn_by",
            "plan_books.author",
            "plan_books.withdrawn_by",
            "duty_runs.body",
        }
    ),
    "about prices, queues and keys, not about a customer": frozenset(
        {
            "api_keys.label",
            "controls.reason",
            *(
                f"{shelf}.{column}"
                for shelf in ("price_books", "plan_books")
                for column in ("document", "note", "withdrawn_note", "forced")
            ),
            "rehearsals.outcome",
        }
    ),
    "why it was erased: whoever asks later must be told; a ticket's number does": frozenset({"erasures.reason"}),
    "which row was changed by whom: the words in it are taken out, its ids, references and actors stay": frozenset(
        {"audit_log.before", "audit_log.after", "audit_log.subject"}
    ),
}

#: Never anybody's words.
OURS: Mapping[str, frozenset[str]] = {
    "the account's id, which the caller chose: to them it means somebody, to us nobody": frozenset(
        {
            f"{table}.account_id"
            for table in (
                *("accounts", "subscriptions", "subscription_changes", "cycles", "lots", "reservations", "journal"),
                *("checkpoints", "carried_draws", "purchases", "debts", "jobs", "due", "turns", "live", "parked"),
                *("told", "refusals", "attempts", "artifacts", "events", "webhooks", "erasures", "deliveries"),
                *("api_keys", "voices"),
            )
        }
        | {"journal_months.closed_to", "api_keys.account_prefix", "voices.accounts"}
    ),
    "a word of the product's own, or of its books of prices and plans": frozenset(
        {
            *("accounts.plan", "subscriptions.next_plan", "subscriptions.renewal", "cycles.plan", "jobs.plan"),
            *("voices.plans", "purchases.pack", "purchases.price_shown", "subscription_changes.what"),
            *("lots.source", "lots.reason", "reservations.state", "reservations.reason", "journal.move"),
            *("journal.reason", "debts.cause", "jobs.kind", "jobs.queue", "jobs.state", "jobs.on_insufficient"),
            *("jobs.reason", "due.queue", "due.kind", "due.waits_for", "queue_turns.queue", "turns.queue"),
            *("live.queue", "live.kind", "parked.queue", "parked.kind", "told.what", "attempts.ending"),
            *("artifacts.media_type", "events.what", "events.state", "events.kind", "events.queue"),
            *("webhooks.events", "deliveries.what", "deliveries.state", "processes.process", "controls.scope"),
            *("controls.name", "api_keys.role", "creations.what", "audit_log.what", "duty_runs.duty"),
            "workers.lacks",
            "workers.queues",
        }
    ),
    "ids, numbers and times that we made": frozenset(
        {
            *("jobs.inputs", "jobs.outputs", "artifacts.storage_key", "told.subject", "creations.made"),
            *("refusals.body", "attempts.usage", "voices.statistics"),
        }
    ),
    "a sum or a secret, from which nothing can be read": frozenset(
        {
            *("price_books.digest", "plan_books.digest", "rehearsals.digest", "jobs.body_hash", "artifacts.sha256"),
            *("webhook_secrets.secret", "api_keys.prefix", "api_keys.hash", "sessions.hash"),
            *("creations.body_hash", "creations.salt"),
        }
    ),
    "names machines and processes": frozenset(
        {
            *("attempts.worker_id", "live.worker_id", "processes.process_id", "processes.host", "processes.version"),
            *("workers.worker_id", "workers.host", "workers.version"),
        }
    ),
    "its row is there while a job is unfinished, and then nothing is erased": frozenset(
        {"live.cancel_reason", "live.stage", "live.engine_state"}
    ),
    "what an endpoint's server said, in our words; the row goes with the account": frozenset({"deliveries.last_error"}),
}


def kept() -> frozenset[str]:
    """All that may hold words and stays."""
    return frozenset().union(*KEPT.values())


def ours() -> frozenset[str]:
    """All in which nobody's words are."""
    return frozenset().union(*OURS.values())
