-- Returns the gates of executions of any tenant, threads first.
CREATE OR REPLACE FUNCTION gates_of_runs(ids uuid[]) RETURNS TABLE (tenant_id text, kind text, name text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT e.tenant_id, 'thread', e.thread_id::text FROM executions e
    WHERE e.id = ANY (ids) AND e.thread_id IS NOT NULL
    UNION
    SELECT e.tenant_id, 'key', e.concurrency_key FROM executions e
    WHERE e.id = ANY (ids) AND e.concurrency_key IS NOT NULL
    ORDER BY 2 DESC, 1, 3
$$;
REVOKE ALL ON FUNCTION gates_of_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gates_of_runs TO paddock_app;
