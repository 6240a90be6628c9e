-- Admits the next runs at a gate: the first one of a thread that nobody holds, and those of a key in the order of their
-- turns, each while fewer run than its own limit. Returns those that moved on: a run that has passed its thread may
-- still be blocked, and waits at the gate of its key. Holds the lock of one gate alone, and nobody who holds rows waits
-- for such a lock.
CREATE OR REPLACE FUNCTION admit_runs(
    of_tenant text, of_kind text, of_name text, at timestamptz
) RETURNS TABLE (id uuid, lane text, attempt integer, blocked text, concurrency_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    held integer;
    next record;
    admitted integer := 0;
    most CONSTANT integer := 200;
BEGIN
    PERFORM pg_advisory_xact_lock(gate_lock(of_tenant, of_kind, of_name));
    -- Each statement from here on sees what was committed before the lock, and what comes later has its own signal.
    DELETE FROM gate_signals s WHERE s.tenant_id = of_tenant AND s.kind = of_kind AND s.name = of_name;
    IF of_kind = 'thread' THEN
        LOOP
            EXIT WHEN EXISTS (
                SELECT FROM executions e WHERE e.tenant_id = of_tenant AND e.thread_id = of_name::uuid
                AND e.status IN ('pending', 'preparing', 'running', 'waiting')
                AND (e.blocked IS NULL OR e.gate = 'key'));
            SELECT e.id INTO next FROM executions e
            WHERE e.tenant_id = of_tenant AND e.thread_id = of_name::uuid AND e.gate = 'thread'
                AND (e.expires_at IS NULL OR e.expires_at > at)
            ORDER BY coalesce(e.run_at, e.created_at), e.id LIMIT 1;
            EXIT WHEN next.id IS NULL;
            -- It may have been cancelled meanwhile.
            RETURN QUERY
            UPDATE executions e SET
                blocked = CASE WHEN e.concurrency_key IS NOT NULL THEN 'busy' END,
                gate = CASE WHEN e.concurrency_key IS NOT NULL THEN 'key' END, updated_at = at
            WHERE e.id = next.id AND e.gate = 'thread'
            RETURNING e.id, e.lane, e.attempt, e.blocked, e.concurrency_key;
        END LOOP;
        RETURN;
    END IF;
    SELECT count(*) INTO held FROM executions e WHERE e.tenant_id = of_tenant AND e.concurrency_key = of_name
    AND e.status IN ('pending', 'preparing', 'running', 'waiting') AND e.blocked IS NULL;
    FOR next IN
        SELECT e.id, e.concurrency_limit FROM executions e
        WHERE e.tenant_id = of_tenant AND e.concurrency_key = of_name AND e.gate = 'key'
          AND (e.expires_at IS NULL OR e.expires_at > at)
        ORDER BY coalesce(e.turn_at, e.created_at), e.id LIMIT most
    LOOP
        EXIT WHEN held >= next.concurrency_limit;
        RETURN QUERY
        UPDATE executions e SET blocked = NULL, gate = NULL, updated_at = at
        WHERE e.id = next.id AND e.gate = 'key'
        RETURNING e.id, e.lane, e.attempt, e.blocked, e.concurrency_key;
        IF FOUND THEN
            held := held + 1;
            admitted := admitted + 1;
        END IF;
    END LOOP;
    IF admitted = most THEN
        -- The rest is for another transaction.
        INSERT INTO gate_signals (tenant_id, kind, name) VALUES (of_tenant, of_kind, of_name);
    END IF;
END $$;
REVOKE ALL ON FUNCTION admit_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION admit_runs TO paddock_app;
