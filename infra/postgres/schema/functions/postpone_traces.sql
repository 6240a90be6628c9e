-- Makes traces due again at `until`. With `counts` the attempt counts as a failed one.
CREATE OR REPLACE FUNCTION postpone_traces(ids uuid[], until timestamptz, counts boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    UPDATE trace_exports x
    SET due_at = until, tries = CASE WHEN counts THEN x.tries ELSE greatest(x.tries - 1, 0) END
    WHERE x.execution_id = ANY (ids)
$$;
REVOKE ALL ON FUNCTION postpone_traces FROM PUBLIC;
GRANT EXECUTE ON FUNCTION postpone_traces TO paddock_app;
