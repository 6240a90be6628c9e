-- Lists finished executions of any tenant that have no artifact yet. Plans have none: their steps do.
CREATE OR REPLACE FUNCTION unrecorded_executions(most integer) RETURNS TABLE (tenant_id text, id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT e.tenant_id, e.id FROM executions e
    WHERE e.completed_at IS NOT NULL AND NOT e.recorded AND e.lane <> 'plan'
    ORDER BY e.completed_at LIMIT most
$$;
REVOKE ALL ON FUNCTION unrecorded_executions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION unrecorded_executions TO paddock_app;
