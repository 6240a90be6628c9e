-- Counts the open executions of all tenants by status, and those that ended since a time.
CREATE OR REPLACE FUNCTION run_states(since timestamptz) RETURNS TABLE (status text, runs bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT e.status, count(*) FROM executions e
    WHERE e.status IN ('pending', 'preparing', 'running', 'waiting') GROUP BY 1
    UNION ALL
    SELECT e.status, count(*) FROM executions e WHERE e.completed_at >= since GROUP BY 1
$$;
REVOKE ALL ON FUNCTION run_states FROM PUBLIC;
GRANT EXECUTE ON FUNCTION run_states TO paddock_app;
