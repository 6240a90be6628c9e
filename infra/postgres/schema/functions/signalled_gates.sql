-- Returns gates of any tenant where somebody may be admitted, those of the oldest signals first.
CREATE OR REPLACE FUNCTION signalled_gates(most integer) RETURNS TABLE (tenant_id text, kind text, name text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT DISTINCT s.tenant_id, s.kind, s.name
    FROM (SELECT o.* FROM gate_signals o ORDER BY o.id LIMIT most) AS s ORDER BY 2 DESC, 1, 3
$$;
REVOKE ALL ON FUNCTION signalled_gates FROM PUBLIC;
GRANT EXECUTE ON FUNCTION signalled_gates TO paddock_app;
