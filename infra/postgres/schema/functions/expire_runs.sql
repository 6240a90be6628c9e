-- Cancels up to `most` executions of any tenant that had not begun when they expired, and returns them.
CREATE OR REPLACE FUNCTION expire_runs(at timestamptz, most integer) RETURNS TABLE (id uuid, tenant_id text, lane text)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH due AS MATERIALIZED (
        SELECT e.id FROM executions e
        WHERE e.expires_at IS NOT NULL AND e.status = 'pending' AND e.started_at IS NULL AND e.expires_at <= at
        ORDER BY e.expires_at LIMIT most FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE executions e SET
            status = 'cancelled', error_type = 'expired', error_message = format(
                'It had not begun by %s, when it expired.',
                to_char(e.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
            completed_at = at, updated_at = at, last_seq = e.last_seq + 1
        FROM due WHERE e.id = due.id AND e.status = 'pending' AND e.started_at IS NULL
        RETURNING e.id, e.tenant_id, e.lane, e.last_seq, e.status, e.attempt, e.error_type, e.error_message
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT m.id, m.last_seq, m.tenant_id, at, 'status', json_build_object(
            'status', m.status, 'attempt', m.attempt,
            'error_type', m.error_type, 'error_message', m.error_message)
        FROM moved m
    )
    SELECT m.id, m.tenant_id, m.lane FROM moved m
$$;
REVOKE ALL ON FUNCTION expire_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION expire_runs TO paddock_app;
