-- Settles executions of any tenant, named by id and fencing token `attempt`, and appends the last events of their
-- logs. Line n belongs to the execution `line_owners[n]`. Returns those whose lease was still valid, and whether more
-- executions are pending in the same lane.
CREATE OR REPLACE FUNCTION settle_runs(
    ids uuid[], attempts integer[], statuses text[], outputs text[], error_types text[], error_messages text[],
    lines integer[], settled_at timestamptz, line_owners uuid[], line_attempts integer[], line_numbers integer[],
    line_times timestamptz[], line_types text[], line_data text[]
) RETURNS TABLE (id uuid, attempt integer, waiting boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH given AS (
        SELECT * FROM unnest(ids, attempts, statuses, outputs, error_types, error_messages, lines)
            AS g(id, attempt, status, output, error_type, error_message, lines)
    ), held AS (
        SELECT e.id, e.attempt FROM executions e JOIN given g ON e.id = g.id AND e.attempt = g.attempt
        WHERE e.status IN ('preparing', 'running') ORDER BY e.id FOR UPDATE OF e
    ), moved AS (
        UPDATE executions e SET
            status = g.status, output_data = g.output::json, error_type = g.error_type,
            error_message = g.error_message, last_seq = e.last_seq + g.lines + 1,
            steps_completed = CASE WHEN g.status = 'completed' THEN e.steps_total ELSE e.steps_completed END,
            lease_expires_at = NULL, completed_at = settled_at, updated_at = settled_at
        FROM given g JOIN held h ON h.id = g.id AND h.attempt = g.attempt WHERE e.id = g.id
        RETURNING e.id, e.tenant_id, e.last_seq, e.status, e.attempt, e.error_type, e.error_message, g.lines,
                  e.lane
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT m.id, m.last_seq - 1 - m.lines + w.number, m.tenant_id, w.at, w.type, w.data::json
        FROM moved m JOIN unnest(line_owners, line_attempts, line_numbers, line_times, line_types, line_data)
            AS w(owner, attempt, number, at, type, data) ON w.owner = m.id AND w.attempt = m.attempt
        UNION ALL
        SELECT m.id, m.last_seq, m.tenant_id, settled_at, 'status', json_build_object(
            'status', m.status, 'attempt', m.attempt,
            'error_type', m.error_type, 'error_message', m.error_message)
        FROM moved m
    )
    SELECT m.id, m.attempt,
           EXISTS (SELECT FROM executions e
                   WHERE e.status = 'pending' AND e.blocked IS NULL AND e.lane = m.lane)
    FROM moved m
$$;
REVOKE ALL ON FUNCTION settle_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION settle_runs TO paddock_app;
