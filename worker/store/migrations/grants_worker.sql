-- What the role of workers and schedulers may do: what the app's role may, except to set prices and plans, to sell,
-- to let anybody in, and to ask for jobs. Copied from the app's grants, so that a new table needs one line, not two.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fermata_worker;

GRANT USAGE ON SCHEMA public TO fermata_worker;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO fermata_worker;

REVOKE SELECT ON api_keys, sessions FROM fermata_worker;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO fermata_worker;

DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        -- A right on a whole table is listed once for each of its columns too.
        SELECT g.table_name, g.privilege_type AS may, string_agg(quote_ident(g.column_name), ', ') AS columns
        FROM information_schema.column_privileges AS g
        WHERE g.grantee = 'fermata_app'
          AND g.table_schema = 'public'
          AND g.privilege_type IN ('INSERT', 'UPDATE')
          AND g.table_name NOT IN ('price_books', 'plan_books', 'rehearsals', 'purchases', 'api_keys', 'sessions')
          AND NOT (g.privilege_type = 'INSERT' AND g.table_name IN ('accounts', 'jobs'))
        GROUP BY g.table_name, g.privilege_type
        UNION ALL
        SELECT g.table_name, g.privilege_type, NULL
        FROM information_schema.table_privileges AS g
        WHERE g.grantee = 'fermata_app'
          AND g.table_schema = 'public'
          AND g.privilege_type = 'DELETE'
          AND g.table_name NOT IN ('api_keys', 'sessions')
    LOOP
        IF held.columns IS NULL THEN
            EXECUTE format('GRANT %s ON %I TO fermata_worker', held.may, held.table_name);
        ELSE
            EXECUTE format('GRANT %s (%s) ON %I TO fermata_worker', held.may, held.columns, held.table_name);
        END IF;
    END LOOP;
END
$$;

GRANT EXECUTE ON FUNCTION fermata_make_partitions(integer) TO fermata_worker;

GRANT EXECUTE ON FUNCTION fermata_close_month(integer), fermata_detach_month(integer),
    fermata_prune_jobs(integer, integer), fermata_prune_jobs(integer, timestamptz, integer),
    fermata_prune_inputs(integer, text, uuid, integer),
    fermata_forget(text, integer, integer), fermata_drop_empty_months(integer)
TO fermata_worker;
