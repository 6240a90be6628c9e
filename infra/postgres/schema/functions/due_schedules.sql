-- Returns schedules of any tenant that are due, and those whose queued due time no longer waits for a running
-- execution. A last row without an id says when the next schedule is due.
CREATE OR REPLACE FUNCTION due_schedules(
    now timestamptz, most integer
) RETURNS TABLE (schedule_id uuid, tenant_id text, next_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    (SELECT s.id, s.tenant_id, NULL::timestamptz FROM schedules s WHERE s.next_run_at <= now
     ORDER BY s.next_run_at LIMIT most)
    UNION
    (SELECT q.schedule_id, q.tenant_id, NULL FROM schedule_runs q
     WHERE q.outcome = 'queued' AND NOT EXISTS (
        SELECT FROM executions e WHERE e.schedule_id = q.schedule_id
        AND e.status NOT IN ('completed', 'failed', 'cancelled'))
     LIMIT most)
    UNION ALL
    SELECT NULL, NULL, min(s.next_run_at) FROM schedules s WHERE s.next_run_at > now
$$;
REVOKE ALL ON FUNCTION due_schedules FROM PUBLIC;
GRANT EXECUTE ON FUNCTION due_schedules TO paddock_app;
