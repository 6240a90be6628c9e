-- Appends events to the logs of running executions of any tenant, in one statement for all executions that stream at
-- the same time. An execution is named by its id and its fencing token `attempt`. Event n belongs to the execution
-- `owners[n]` and is number `numbers[n]` of this call. Returns the executions whose lease was still valid.
CREATE OR REPLACE FUNCTION append_events(
    ids uuid[], attempts integer[], counts integer[], owners uuid[], numbers integer[], times timestamptz[],
    types text[], datas text[]
) RETURNS TABLE (id uuid, attempt integer)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH given AS (
        SELECT * FROM unnest(ids, attempts, counts) AS g(id, attempt, events)
    ), held AS (
        SELECT e.id FROM executions e JOIN given g ON e.id = g.id AND e.attempt = g.attempt
        WHERE e.status IN ('preparing', 'running') ORDER BY e.id FOR UPDATE OF e
    ), moved AS (
        UPDATE executions e SET last_seq = e.last_seq + g.events
        FROM given g JOIN held h ON h.id = g.id WHERE e.id = g.id
        RETURNING e.id, e.attempt, e.tenant_id, e.last_seq - g.events AS base
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT m.id, m.base + w.number, m.tenant_id, w.at, w.type, w.data::json
        FROM moved m JOIN unnest(owners, numbers, times, types, datas) AS w(owner, number, at, type, data)
            ON w.owner = m.id
    )
    SELECT m.id, m.attempt FROM moved m
$$;
REVOKE ALL ON FUNCTION append_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append_events TO paddock_app;
