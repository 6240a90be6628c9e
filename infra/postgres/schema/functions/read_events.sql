-- Returns what follows in the logs of executions, for many readers at once. Reader n asks for the execution `ids[n]`
-- of its own tenant `tenants[n]`, after the number `seen[n]`. Executions that do not exist or belong to another tenant
-- are left out.
CREATE OR REPLACE FUNCTION read_events(
    ids uuid[], tenants text[], seen integer[], most integer
) RETURNS TABLE (place integer, status text, last_seq integer, seq integer, at timestamptz, type text, data json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT a.place::integer, e.status, e.last_seq, v.seq, v.at, v.type, v.data
    FROM unnest(ids, tenants, seen) WITH ORDINALITY AS a(id, tenant, seen, place)
    JOIN executions e ON e.id = a.id AND e.tenant_id = a.tenant
    LEFT JOIN LATERAL (
        -- Up to one MiB and one event more: results of tools may be large, and readers many.
        SELECT w.seq, w.at, w.type, w.data FROM (
            SELECT x.*, sum(octet_length(x.data::text)) OVER (ORDER BY x.seq) - octet_length(x.data::text)
                AS before
            FROM (SELECT o.seq, o.at, o.type, o.data FROM execution_events o
                  WHERE o.execution_id = e.id AND o.seq > a.seen ORDER BY o.seq LIMIT most) AS x
        ) AS w WHERE w.before < 1048576
    ) AS v ON true
    ORDER BY a.place, v.seq
$$;
REVOKE ALL ON FUNCTION read_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_events TO paddock_app;
