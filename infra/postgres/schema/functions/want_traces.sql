-- Notes that somebody wants traces exported. One row for the whole installation.
CREATE OR REPLACE FUNCTION want_traces(at timestamptz) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    INSERT INTO trace_export (wanted_at) VALUES (at)
    ON CONFLICT (one) DO UPDATE SET wanted_at = greatest(trace_export.wanted_at, excluded.wanted_at)
$$;
REVOKE ALL ON FUNCTION want_traces FROM PUBLIC;
GRANT EXECUTE ON FUNCTION want_traces TO paddock_app;
