-- Signals a plan, in the same transaction, that one of its steps ended or waits for a decision, or that the plan was
-- cancelled.
CREATE OR REPLACE FUNCTION signal_plan() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$ BEGIN
    IF NEW.parent_id IS NOT NULL THEN
        INSERT INTO plan_signals (execution_id, tenant_id, due_at)
        VALUES (NEW.parent_id, NEW.tenant_id, to_timestamp(0));
    END IF;
    IF NEW.lane = 'plan' AND NEW.status = 'cancelled' THEN
        INSERT INTO plan_signals (execution_id, tenant_id, due_at)
        VALUES (NEW.id, NEW.tenant_id, to_timestamp(0));
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION signal_plan FROM PUBLIC;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'signal_plan' AND tgrelid = 'executions'::regclass) THEN
        CREATE TRIGGER signal_plan AFTER UPDATE OF status, waiting_for ON executions FOR EACH ROW
        WHEN (
            NEW.status <> OLD.status AND (
                (NEW.parent_id IS NOT NULL AND (
                    NEW.status IN ('completed', 'failed', 'cancelled', 'waiting') OR OLD.status = 'waiting'))
                OR (NEW.lane = 'plan' AND NEW.status = 'cancelled'))
            OR (NEW.parent_id IS NOT NULL AND NEW.status = 'waiting' AND OLD.status = 'waiting'
                AND NEW.waiting_for::text IS DISTINCT FROM OLD.waiting_for::text))
        EXECUTE FUNCTION signal_plan();
    END IF;
END $$;
