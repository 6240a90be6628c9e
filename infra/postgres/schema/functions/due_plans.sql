-- Returns plans of any tenant that have signals waiting, oldest signal first. A last row without an id says in how
-- many seconds the next known signal is due.
CREATE OR REPLACE FUNCTION due_plans(
    at timestamptz, most integer
) RETURNS TABLE (execution_id uuid, tenant_id text, next double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT d.*, NULL::double precision FROM (
        SELECT s.execution_id, s.tenant_id FROM plan_signals s WHERE s.due_at <= at
        GROUP BY 1, 2 ORDER BY min(s.id) LIMIT most) AS d
    UNION ALL
    SELECT NULL, NULL, extract(epoch FROM min(s.due_at) - at)::double precision
    FROM plan_signals s WHERE s.due_at > at
$$;
REVOKE ALL ON FUNCTION due_plans FROM PUBLIC;
GRANT EXECUTE ON FUNCTION due_plans TO paddock_app;
