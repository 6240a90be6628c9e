-- Removes exported traces from the list of those to export.
CREATE OR REPLACE FUNCTION exported_traces(ids uuid[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    DELETE FROM trace_exports x WHERE x.execution_id = ANY (ids)
$$;
REVOKE ALL ON FUNCTION exported_traces FROM PUBLIC;
GRANT EXECUTE ON FUNCTION exported_traces TO paddock_app;
