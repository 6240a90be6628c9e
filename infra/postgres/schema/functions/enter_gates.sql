-- Returns the gate where a new run of the bound tenant has to wait: `thread`, `key`, or null if it may run. Never waits
-- itself: a gate that another transaction works on counts as busy, and that is looked at again after the commit. Runs
-- with the rights of the caller.
CREATE OR REPLACE FUNCTION enter_gates(of_thread uuid, of_key text, of_limit integer) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
BEGIN
    -- Each statement after a lock sees what was committed before it.
    IF of_thread IS NOT NULL THEN
        IF NOT pg_try_advisory_xact_lock(gate_lock(tenant, 'thread', of_thread::text)) THEN
            RETURN 'thread';
        END IF;
        IF EXISTS (
            SELECT FROM executions e WHERE e.thread_id = of_thread
            AND e.status IN ('pending', 'preparing', 'running', 'waiting') AND (e.blocked IS NULL OR e.gate = 'key')
        ) OR EXISTS (SELECT FROM executions e WHERE e.thread_id = of_thread AND e.gate = 'thread') THEN
            RETURN 'thread';
        END IF;
    END IF;
    IF of_key IS NOT NULL THEN
        IF NOT pg_try_advisory_xact_lock(gate_lock(tenant, 'key', of_key)) THEN
            RETURN 'key';
        END IF;
        IF EXISTS (
            SELECT FROM executions e WHERE e.tenant_id = tenant AND e.concurrency_key = of_key AND e.gate = 'key'
        ) OR of_limit <= (
            SELECT count(*) FROM executions e WHERE e.tenant_id = tenant AND e.concurrency_key = of_key
            AND e.status IN ('pending', 'preparing', 'running', 'waiting') AND e.blocked IS NULL
        ) THEN
            RETURN 'key';
        END IF;
    END IF;
    RETURN NULL;
END $$;
