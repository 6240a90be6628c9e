-- Claims up to `most` traces of any tenant that are due for export. A claimed trace is due again at `until` unless the
-- exporter reports a result before.
CREATE OR REPLACE FUNCTION claim_traces(
    most integer, at timestamptz, until timestamptz
) RETURNS TABLE (execution_id uuid, tenant_id text, tries integer)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    WITH free AS MATERIALIZED (
        SELECT x.execution_id FROM trace_exports x
        WHERE x.due_at <= at ORDER BY x.due_at LIMIT most FOR UPDATE SKIP LOCKED
    )
    UPDATE trace_exports x SET due_at = until, tries = x.tries + 1
    FROM free f WHERE x.execution_id = f.execution_id
    RETURNING x.execution_id, x.tenant_id, x.tries
$$;
REVOKE ALL ON FUNCTION claim_traces FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_traces TO paddock_app;
