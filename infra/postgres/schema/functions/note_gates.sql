-- Notes, in the same transaction, the gates where a change of an execution may let somebody in: those of one that ended
-- or was deleted, and the one where it begins to wait. A plan that is not blocked any more gets its first signal.
CREATE OR REPLACE FUNCTION note_gates() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    run executions;
    ended boolean := true;
BEGIN
    IF TG_OP = 'DELETE' THEN
        run := OLD;
    ELSE
        run := NEW;
        ended := run.status IN ('completed', 'failed', 'cancelled');
    END IF;
    IF run.thread_id IS NOT NULL AND (ended OR run.gate = 'thread') THEN
        INSERT INTO gate_signals (tenant_id, kind, name) VALUES (run.tenant_id, 'thread', run.thread_id::text);
    END IF;
    IF run.concurrency_key IS NOT NULL AND (ended OR run.gate = 'key') THEN
        INSERT INTO gate_signals (tenant_id, kind, name) VALUES (run.tenant_id, 'key', run.concurrency_key);
    END IF;
    IF run.lane = 'plan' AND NOT ended AND run.blocked IS NULL THEN
        INSERT INTO plan_signals (execution_id, tenant_id, due_at) VALUES (run.id, run.tenant_id, to_timestamp(0));
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION note_gates FROM PUBLIC;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'note_gates_changed' AND tgrelid = 'executions'::regclass) THEN
        CREATE TRIGGER note_gates_added AFTER INSERT ON executions FOR EACH ROW
        WHEN (NEW.gate IS NOT NULL) EXECUTE FUNCTION note_gates();
        CREATE TRIGGER note_gates_changed AFTER UPDATE OF status, blocked ON executions FOR EACH ROW
        WHEN (
            (OLD.thread_id IS NOT NULL OR OLD.concurrency_key IS NOT NULL) AND (
                OLD.status NOT IN ('completed', 'failed', 'cancelled')
                AND NEW.status IN ('completed', 'failed', 'cancelled')
                OR NEW.gate IS NOT NULL AND NEW.gate IS DISTINCT FROM OLD.gate)
            OR OLD.blocked IS NOT NULL AND NEW.blocked IS NULL AND NEW.lane = 'plan' AND NEW.status = 'pending')
        EXECUTE FUNCTION note_gates();
        CREATE TRIGGER note_gates_deleted AFTER DELETE ON executions FOR EACH ROW
        WHEN (
            (OLD.thread_id IS NOT NULL OR OLD.concurrency_key IS NOT NULL)
            AND OLD.status NOT IN ('completed', 'failed', 'cancelled'))
        EXECUTE FUNCTION note_gates();
    END IF;
END $$;
