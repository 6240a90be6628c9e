-- Deletes executions of the bound tenant, with everything they left in other tables, if the execution at the top ended
-- before `before`. The innermost are deleted first, so that no remaining row refers to a deleted one. Deletes up to
-- `most` executions and stops after `most_events` events. A tree is kept while one of its executions still runs or has
-- no artifact yet. Returns how many were deleted.
CREATE OR REPLACE FUNCTION forget_executions(before timestamptz, most integer, most_events bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
    old uuid[];
BEGIN
    WITH roots AS MATERIALIZED (
        SELECT e.id FROM executions e
        WHERE e.tenant_id = tenant AND e.parent_id IS NULL AND e.completed_at < before
          AND (e.recorded OR e.lane = 'plan')
          AND NOT EXISTS (
              SELECT FROM executions b WHERE b.root_id = e.id
              AND (b.completed_at IS NULL OR NOT (b.recorded OR b.lane = 'plan')))
        ORDER BY e.completed_at LIMIT most
    ), members AS (
        SELECT e.id, e.last_seq FROM executions e JOIN roots r ON e.id = r.id
        UNION ALL
        SELECT e.id, e.last_seq FROM executions e JOIN roots r ON e.root_id = r.id
    ), leaves AS (
        SELECT m.id, sum(m.last_seq) OVER (ORDER BY m.id) - m.last_seq AS events FROM members m
        WHERE NOT EXISTS (SELECT FROM executions c WHERE c.parent_id = m.id)
    ), light AS (
        SELECT l.id FROM leaves l WHERE l.events < most_events ORDER BY l.id LIMIT most
    )
    SELECT array_agg(f.id) INTO old FROM (
        SELECT e.id FROM executions e WHERE e.id IN (SELECT l.id FROM light l) AND e.tenant_id = tenant
        ORDER BY e.id FOR UPDATE SKIP LOCKED) AS f;
    IF old IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM forget_execution_rows(old);
    RETURN cardinality(old);
END $$;
REVOKE ALL ON FUNCTION forget_executions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_executions TO paddock_app;
