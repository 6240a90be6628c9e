-- Frees up to `most` delayed executions of any tenant whose time has come: they may be claimed, or wait at their gates
-- from now on. A last row without an id says in how many seconds the next one is due.
CREATE OR REPLACE FUNCTION free_due_runs(
    at timestamptz, most integer
) RETURNS TABLE (id uuid, tenant_id text, lane text, attempt integer, blocked text, next double precision)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH due AS MATERIALIZED (
        SELECT e.id FROM executions e WHERE e.blocked = 'delayed' AND e.run_at <= at
        ORDER BY e.run_at, e.id LIMIT most FOR UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE executions e SET
            blocked = CASE WHEN e.thread_id IS NOT NULL OR e.concurrency_key IS NOT NULL THEN 'busy' END,
            gate = CASE WHEN e.thread_id IS NOT NULL THEN 'thread' WHEN e.concurrency_key IS NOT NULL THEN 'key' END,
            updated_at = at
        FROM due WHERE e.id = due.id AND e.blocked = 'delayed'
        RETURNING e.id, e.tenant_id, e.lane, e.attempt, e.blocked
    )
    SELECT f.id, f.tenant_id, f.lane, f.attempt, f.blocked, NULL::double precision FROM freed f
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, extract(epoch FROM (
        SELECT e.run_at FROM executions e WHERE e.blocked = 'delayed' AND e.run_at > at
        ORDER BY e.run_at LIMIT 1) - at)::double precision
$$;
REVOKE ALL ON FUNCTION free_due_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION free_due_runs TO paddock_app;
