-- What the app's role may do. Run after every migration, so a new table without a line here is unreadable to the
-- app and a test notices.
GRANT USAGE ON SCHEMA public TO fermata_app;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO fermata_app;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO fermata_app;

GRANT INSERT ON accounts, subscriptions, subscription_changes, cycles, lots, reservations, journal, purchases, debts,
    price_books, plan_books, rehearsals, jobs, due, live, parked, attempts, artifacts, events, workers, controls,
    duty_runs, turns, queue_turns, refusals, told, processes, api_keys, audit_log, sessions, creations
TO fermata_app;

GRANT UPDATE (plan, active_until, cycle_ends_at, look_at, running_max, paused, warn_below, own_running_max,
    own_warn_below) ON accounts TO fermata_app;

GRANT UPDATE ON subscriptions, due, live, parked, workers, controls, duty_runs, turns, queue_turns, processes TO fermata_app;

GRANT UPDATE (granted_total) ON cycles TO fermata_app;

GRANT UPDATE (available, held, spent, expired, revoked, charged_back, closed) ON lots TO fermata_app;

GRANT UPDATE (state, charged, settled_at, reason) ON reservations TO fermata_app;

GRANT UPDATE (charged_back_at) ON purchases TO fermata_app;

GRANT UPDATE (withdrawn_at, withdrawn_by, withdrawn_note) ON price_books, plan_books TO fermata_app;

GRANT UPDATE (expires_at, revoked_at, changed_by, last_used_at) ON api_keys TO fermata_app;

GRANT UPDATE (salt) ON creations TO fermata_app;

GRANT INSERT ON voices TO fermata_app;

GRANT UPDATE (removed_at, changed_by) ON voices TO fermata_app;

GRANT UPDATE (state, attempt, failures, started_at, ended_at, reason, message, charged, partial, outputs) ON jobs
TO fermata_app;

GRANT DELETE ON due, live, parked, workers, controls, turns, told, processes, api_keys, sessions, creations TO fermata_app;

REVOKE EXECUTE ON FUNCTION fermata_make_partitions(integer) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION fermata_make_partitions(integer) TO fermata_app;

GRANT INSERT, DELETE ON webhooks, webhook_secrets, deliveries TO fermata_app;

GRANT UPDATE (closed_at) ON webhooks TO fermata_app;

GRANT UPDATE (state, attempts, next_at, token, ended_at, last_status, last_error) ON deliveries TO fermata_app;

REVOKE EXECUTE ON FUNCTION fermata_close_month(integer), fermata_detach_month(integer),
    fermata_prune_jobs(integer, integer), fermata_prune_jobs(integer, timestamptz, integer),
    fermata_prune_inputs(integer, text, uuid, integer),
    fermata_forget(text, integer, integer), fermata_drop_empty_months(integer), fermata_erase_account(text, text, text),
    fermata_erase_jobs(text, uuid, text[], integer), fermata_erase_artifacts(text, uuid[]),
    fermata_erase_log(text, bigint, integer)
FROM PUBLIC;

GRANT EXECUTE ON FUNCTION fermata_close_month(integer), fermata_detach_month(integer),
    fermata_prune_jobs(integer, integer), fermata_prune_jobs(integer, timestamptz, integer),
    fermata_prune_inputs(integer, text, uuid, integer),
    fermata_forget(text, integer, integer), fermata_drop_empty_months(integer), fermata_erase_account(text, text, text),
    fermata_erase_jobs(text, uuid, text[], integer), fermata_erase_artifacts(text, uuid[]),
    fermata_erase_log(text, bigint, integer)
TO fermata_app;

REVOKE EXECUTE ON FUNCTION fermata_empty_defaults() FROM PUBLIC;
