"""Tamperings with credits, subscriptions and the places of jobs, each with the rule that must find it.

Those `BY_THE_APP` need no more than the role of our own processes. They leave buckets and journal right: what is wrong
is where the credits come from, or what somebody else is going to read.
"""

from __future__ import annotations

SUCCEEDED = "(SELECT job_id FROM jobs WHERE state = 'succeeded' AND quoted = 50)"
FAILED = "(SELECT job_id FROM jobs WHERE state = 'failed' AND quoted = 15)"


def a_lot(chosen: str) -> str:
    """A statement that makes lots of these (account, source, credits, end, time, cycle, job, reason), with entries."""
    return (
        "WITH made AS (INSERT INTO lots (account_id, source, granted, available, expires_at, created_at, "
        "cycle_starts_at, job_id, reason) SELECT account_id, source, credits, credits, ends_at, at, starts_at, job_id, "
        f"reason FROM ({chosen}) AS u (account_id, source, credits, ends_at, at, starts_at, job_id, reason) "
        "RETURNING account_id, lot_id, granted, job_id, reason, created_at) "
        "INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor) "
        "SELECT account_id, created_at, lot_id, 'grant', granted, job_id, reason, 'x' FROM made"
    )


def for_a_job(reason: str, credits: int, jobs: str, at: str = "fermata_now()") -> str:  # noqa: A002  credits are credits
    """Credits for these jobs, that end in a day as they should."""
    return a_lot(
        f"SELECT account_id, 'grant', {credits}, {at} + interval '24 hours', {at}, CAST(NULL AS timestamptz), job_id, "
        f"'{reason}' FROM ({jobs}) AS jobs (account_id, job_id)"
    )


def a_raise(credits: str) -> str:  # noqa: A002  credits are credits
    """Further credits for ada's cycle, which knows of them."""
    return a_lot(
        f"SELECT account_id, 'subscription', {credits}, ends_at, fermata_now(), starts_at, CAST(NULL AS uuid), 'cycle' "
        "FROM cycles WHERE account_id = 'ada'"
    )


CYCLE = "SELECT account_id, {starts}, {ends}, plan, granted_total, false, at FROM cycles WHERE account_id = 'ada'"

INTO_CYCLES = "INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, skipped, at) "

BY_THE_APP = [
    # a cycle is granted once, what its plan brings
    ("cycle_is_granted", "UPDATE cycles SET granted_total = 10000 WHERE account_id = 'ada'; " + a_raise("5000")),
    # what no plan brings
    ("cycle_is_granted", "UPDATE cycles SET granted_total = 5100 WHERE account_id = 'ada'; " + a_raise("100")),
    (
        "cycle_is_granted",  # a number that some plan brings, but nobody took a step
        "UPDATE cycles SET granted_total = 1200 WHERE account_id = 'cy'; "
        + a_raise("1050").replace("= 'ada'", "= 'cy'"),
    ),
    (
        "cycle_is_granted",  # on record, not skipped, and never granted
        INTO_CYCLES
        + CYCLE.format(starts="starts_at - interval '60 days'", ends="starts_at - interval '40 days'").replace(
            "granted_total", "0"
        ),
    ),
    (
        "lot_ends_with_its_source",
        INTO_CYCLES
        + CYCLE.format(starts="starts_at - interval '90 days'", ends="starts_at - interval '60 days'")
        + "; "
        + a_lot(
            "SELECT account_id, 'subscription', 5000, CAST('2199-01-01' AS timestamptz), at, starts_at, "
            "CAST(NULL AS uuid), 'cycle' FROM cycles WHERE account_id = 'ada' ORDER BY starts_at LIMIT 1"
        ),
    ),
    (
        "cycle_is_in_line",  # begun before anybody could have begun it
        INTO_CYCLES + CYCLE.format(starts="ends_at", ends="ends_at + interval '28 days'") + "; "
        "UPDATE accounts AS a SET cycle_ends_at = (SELECT max(ends_at) FROM cycles AS c "
        "WHERE c.account_id = a.account_id) WHERE account_id = 'ada'",
    ),
    ("cycle_is_in_line", "UPDATE subscriptions SET anchor = anchor - interval '13 days' WHERE account_id = 'ada'"),
    ("cycle_is_in_line", "UPDATE subscriptions SET anchor = anchor - interval '1 second' WHERE account_id = 'ada'"),
    (
        "cycle_is_in_line",  # inside the first of two
        INTO_CYCLES + CYCLE.format(starts="starts_at - interval '25 days'", ends="starts_at + interval '2 seconds'"),
    ),
    (
        "cycle_is_in_line",  # longer than any month
        INTO_CYCLES + CYCLE.format(starts="starts_at - interval '40 days'", ends="starts_at"),
    ),
    # whatever is written there, the audit goes on
    ("cycle_is_in_line", "UPDATE subscriptions SET anchor = 'infinity' WHERE account_id = 'ada'"),
    ("cycle_is_in_line", "UPDATE subscriptions SET anchor = '-infinity' WHERE account_id = 'ada'"),
    ("cycle_is_in_line", "UPDATE subscriptions SET anchor = anchor + interval '9 days' WHERE account_id = 'ada'"),
    ("cycle_is_in_line", INTO_CYCLES + CYCLE.format(starts="CAST('-infinity' AS timestamptz)", ends="starts_at")),
    (
        "cycle_is_in_line",
        INTO_CYCLES
        + CYCLE.format(starts="CAST('294276-12-31' AS timestamptz)", ends="CAST('infinity' AS timestamptz)"),
    ),
    (
        "subscription_is_agreed",
        "INSERT INTO subscription_changes (account_id, reference, what, body, at, actor) "
        "SELECT 'ada', reference, 'subscribe', body, fermata_now(), 'x' FROM (VALUES "
        "('text', CAST('\"x\"' AS jsonb)), ('list', '[1]'), ('odd', '{\"asked\": [\"grace_days\"], "
        '"answer": ["next_plan", "active_until"]}\')) AS u (reference, body)',
    ),
    # a subscription is as its last step left it
    ("subscription_is_agreed", "UPDATE accounts SET plan = 'creator' WHERE account_id = 'ada'"),
    ("subscription_is_agreed", "UPDATE accounts SET plan = 'label' WHERE account_id = 'bob'"),
    ("subscription_is_agreed", "UPDATE accounts SET active_until = NULL WHERE account_id = 'cy'"),
    (
        "subscription_is_agreed",
        "UPDATE accounts SET active_until = active_until + interval '1 year' WHERE account_id = 'cy'",
    ),
    ("subscription_is_agreed", "UPDATE subscriptions SET next_plan = 'label' WHERE account_id = 'cy'"),
    ("subscription_is_agreed", "UPDATE subscriptions SET cancelled_at = fermata_now() WHERE account_id = 'ada'"),
    (
        "subscription_is_agreed",
        "UPDATE subscriptions SET renewal = 'external', cancelled_at = NULL WHERE account_id = 'cy'",
    ),
    (
        "subscription_is_agreed",
        "UPDATE subscriptions SET renewal = 'external', grace_seconds = 86400 WHERE account_id = 'cy'",
    ),
    (
        "subscription_is_agreed",
        "UPDATE accounts SET cycle_ends_at = fermata_now(), plan = 'label' WHERE account_id = 'bob'",
    ),
    # and somebody looks
    ("account_is_looked_at", "UPDATE accounts SET look_at = NULL"),
    ("account_is_looked_at", "UPDATE accounts SET look_at = NULL WHERE account_id = 'ada'"),
    ("account_is_looked_at", "UPDATE accounts SET look_at = NULL WHERE account_id = 'cy'"),
    ("account_is_looked_at", "UPDATE accounts SET look_at = cycle_ends_at + interval '1 second' WHERE plan = 'label'"),
    # lots end with what brought them
    (
        "lot_ends_with_its_source",
        a_lot(
            "SELECT 'bob', 'topup', 5, fermata_now() + interval '1 day', fermata_now(), "
            "CAST(NULL AS timestamptz), CAST(NULL AS uuid), 'purchase'"
        ),
    ),
    ("lot_ends_with_its_source", for_a_job("compensation", 5, "SELECT 'ada', " + SUCCEEDED).replace("24 h", "25 h")),
    (
        "lot_ends_with_its_source",
        for_a_job("compensation", 5, "SELECT 'ada', " + SUCCEEDED).replace(
            "fermata_now() + interval '24 hours'", "CAST(NULL AS timestamptz)"
        ),
    ),
    # credits for jobs
    ("compensation", for_a_job("compensation", 7, "SELECT account_id, job_id FROM jobs WHERE state = 'refused'")),
    ("compensation", for_a_job("compensation", 7, "SELECT account_id, job_id FROM due")),
    ("compensation", for_a_job("compensation", 1, "SELECT 'ada', " + FAILED)),
    (
        "compensation",
        for_a_job("compensation", 7, "SELECT 'bob', CAST('f7b3c1d2-0000-4000-8000-000000000000' AS uuid)"),
    ),
    ("compensation", for_a_job("compensation", 7, "SELECT 'bob', CAST(NULL AS uuid)")),
    ("make_good", for_a_job("make_good", 7, "SELECT 'bob', CAST('f7b3c1d2-0000-4000-8000-000000000000' AS uuid)")),
    ("make_good", for_a_job("make_good", 7, "SELECT 'bob', CAST(NULL AS uuid)")),
    (
        "make_good",  # by the customer's own cancel, to the credit and at the right time
        for_a_job(
            "make_good",
            22,
            "SELECT account_id, job_id FROM jobs WHERE reason = 'cancelled_running'",
            "(SELECT ended_at FROM jobs WHERE reason = 'cancelled_running')",
        ),
    ),
    (
        "make_good",  # by our failure, but all of it came back
        for_a_job("make_good", 15, "SELECT 'ada', " + FAILED, f"(SELECT ended_at FROM jobs WHERE job_id = {FAILED})"),
    ),
    (
        "debt_is_explained",  # revoked, and nobody says what for
        "UPDATE lots SET available = available - 10, revoked = revoked + 10 WHERE reference = 't-1'; "
        "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
        "SELECT account_id, fermata_now(), lot_id, 'revoke', 10, 'chargeback', 'x' FROM lots WHERE reference = 't-1'",
    ),
    # the places of unfinished jobs
    ("place_is_jobs", "UPDATE due SET queue = 'nobody'"),
    ("place_is_jobs", "UPDATE due SET kind = 'stem_split'"),
    ("place_is_jobs", "UPDATE due SET ends_by = '2199-01-01'"),
    ("place_is_jobs", "UPDATE due SET not_before = '2199-01-01'"),
    ("place_is_jobs", "UPDATE due SET priority = 9"),
    ("place_is_jobs", "UPDATE due SET since = since - interval '1 day'"),
    ("place_is_jobs", "UPDATE live SET queue = 'nobody'"),
    ("place_is_jobs", "UPDATE live SET kind = 'stem_split'"),
    ("place_is_jobs", "UPDATE live SET ends_by = '2199-01-01'"),
    ("place_is_jobs", "UPDATE live SET lease_until = '2199-01-01'"),
    ("place_is_jobs", "UPDATE parked SET needed = 1"),
    ("place_is_jobs", "UPDATE parked SET queue = 'nobody'"),
    ("place_is_jobs", "UPDATE parked SET kind = 'stem_split'"),
    ("place_is_jobs", "UPDATE parked SET ends_by = '2199-01-01'"),
    # times
    (
        "times_are_in_order",
        f"UPDATE reservations SET settled_at = reserved_at - interval '1 day' WHERE job_id = {FAILED}",
    ),
    ("times_are_in_order", f"UPDATE jobs SET ended_at = ended_at - interval '1 year' WHERE job_id = {FAILED}"),
    ("times_are_in_order", f"UPDATE jobs SET started_at = ended_at + interval '1 hour' WHERE job_id = {FAILED}"),
    ("times_are_in_order", f"UPDATE jobs SET ended_at = ended_at + interval '2 days' WHERE job_id = {FAILED}"),
    (
        "times_are_in_order",
        "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
        "SELECT account_id, fermata_now() + interval '20 days', lot_id, 'expire', 1, 'expired', 'x' "
        "FROM lots WHERE reference = 't-1'",
    ),
    (
        "times_are_in_order",
        a_lot(
            "SELECT 'bob', 'grant', 5, CAST(NULL AS timestamptz), fermata_now() + interval '20 days', "
            "CAST(NULL AS timestamptz), CAST(NULL AS uuid), 'grant'"
        ),
    ),
    ("end_is_told_once", f"UPDATE jobs SET ended_at = ended_at + interval '1 hour' WHERE job_id = {FAILED}"),
]

BY_THE_OWNER = [
    (
        "lot_is_granted_once",
        "UPDATE lots SET granted = granted + 500, available = available + 500 WHERE reference = 't-1'; "
        "UPDATE purchases SET credits = credits + 500 WHERE reference = 't-1'; "
        "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
        "SELECT account_id, fermata_now(), lot_id, 'grant', 500, 'purchase', 'x' FROM lots WHERE reference = 't-1'",
    ),
    ("cycle_is_granted", "UPDATE cycles SET plan = 'nonesuch' WHERE account_id = 'ada'"),
    ("cycle_is_granted", "UPDATE cycles SET plan = 'starter' WHERE account_id = 'ada'"),
    ("cycle_is_granted", "DELETE FROM plan_books"),
    ("cycle_is_granted", "UPDATE cycles SET granted_total = 0, skipped = true WHERE account_id = 'ada'"),
    (
        "cycle_is_in_line",
        "UPDATE cycles SET ends_at = ends_at - interval '20 days' WHERE account_id = 'ada'; "
        "UPDATE accounts SET cycle_ends_at = cycle_ends_at - interval '20 days' WHERE account_id = 'ada'",
    ),
    ("cycle_is_in_line", "UPDATE cycles SET skipped = true, granted_total = 0 WHERE account_id = 'ada'"),
    ("cycle_is_in_line", "UPDATE cycles SET at = at - interval '1 minute' WHERE account_id = 'ada'"),
    ("lot_ends_with_its_source", "UPDATE lots SET expires_at = NULL WHERE source = 'subscription'"),
    (
        "lot_ends_with_its_source",
        "UPDATE lots SET expires_at = expires_at + interval '1 year' WHERE source = 'subscription'",
    ),
    ("lot_ends_with_its_source", "UPDATE lots SET expires_at = NULL WHERE reason = 'make_good'"),
    (
        "lot_ends_with_its_source",
        "UPDATE lots SET expires_at = expires_at + interval '1 day' WHERE reason = 'make_good'",
    ),
    (
        "lot_ends_with_its_source",
        "UPDATE lots SET expires_at = fermata_now() + interval '1 day' WHERE reference = 't-1'",
    ),
    ("lot_ends_with_its_source", "UPDATE lots SET expires_at = created_at WHERE note IS NULL AND reason = 'grant'"),
    ("make_good", "UPDATE lots SET created_at = created_at - interval '1 minute' WHERE reason = 'make_good'"),
    ("make_good", "UPDATE jobs SET reason = 'cancelled_running' WHERE job_id IN (SELECT job_id FROM lots)"),
    ("make_good", "DELETE FROM lots WHERE reason = 'make_good'"),
    ("subscription_is_agreed", "DELETE FROM subscriptions"),
    ("times_are_in_order", f"UPDATE jobs SET created_at = ended_at + interval '1 year' WHERE job_id = {SUCCEEDED}"),
]
