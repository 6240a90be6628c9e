-- Deletes events of the bound tenant's executions that ended before `before`: all but the last one of each, which tells
-- how it ended, and a warning takes the place of the one before that. Continues where the last call ended, with
-- executions of up to `most_events` events; where an execution has no artifact yet, which is made of events, it waits.
-- Returns how many executions were treated.
CREATE OR REPLACE FUNCTION forget_events(before timestamptz, most integer, most_events bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
    since timestamptz;
    reached timestamptz;
    old uuid[];
BEGIN
    SELECT coalesce(t.events_removed_until, '-infinity') INTO since FROM tenants t WHERE t.id = tenant FOR UPDATE;
    SELECT least(before, min(e.completed_at)) INTO before FROM executions e
    WHERE e.completed_at IS NOT NULL AND NOT e.recorded AND e.lane <> 'plan' AND e.tenant_id = tenant;
    -- Executions that ended at the same time are treated together.
    SELECT max(c.completed_at) INTO reached FROM (
        SELECT o.completed_at, sum(o.last_seq) OVER (ORDER BY o.completed_at, o.id) - o.last_seq AS events FROM (
            SELECT e.id, e.completed_at, e.last_seq FROM executions e
            WHERE e.tenant_id = tenant AND e.parent_id IS NULL AND e.completed_at > since AND e.completed_at < before
            ORDER BY e.completed_at LIMIT most
        ) AS o
    ) AS c WHERE c.events < most_events;
    IF reached IS NULL THEN
        RETURN 0;
    END IF;
    SELECT array_agg(m.id) INTO old FROM (
        SELECT e.id FROM executions e WHERE e.tenant_id = tenant AND e.parent_id IS NULL
          AND e.completed_at > since AND e.completed_at <= reached
        UNION ALL
        SELECT c.id FROM executions e JOIN executions c ON c.root_id = e.id WHERE e.tenant_id = tenant
          AND e.parent_id IS NULL AND e.completed_at > since AND e.completed_at <= reached
          AND c.completed_at IS NOT NULL
    ) AS m;
    DELETE FROM execution_events v USING executions e
    WHERE e.id = ANY (old) AND v.execution_id = e.id AND v.seq < e.last_seq;
    INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
    SELECT e.id, e.last_seq - 1, e.tenant_id, e.completed_at, 'warning', json_build_object(
        'code', 'events_removed', 'message', 'The events before were deleted: the tenant keeps them no longer.')
    FROM executions e WHERE e.id = ANY (old) AND e.last_seq > 1;
    UPDATE tenants t SET events_removed_until = reached WHERE t.id = tenant;
    RETURN cardinality(old);
END $$;
REVOKE ALL ON FUNCTION forget_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_events TO paddock_app;
