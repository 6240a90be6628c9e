-- Queues an execution that started or ended, so that its words are written for the search. Steps of plans are not found
-- by words.
CREATE OR REPLACE FUNCTION queue_terms() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$ BEGIN
    INSERT INTO execution_term_queue (execution_id, tenant_id) VALUES (NEW.id, NEW.tenant_id);
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION queue_terms FROM PUBLIC;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'queue_terms' AND tgrelid = 'executions'::regclass) THEN
        CREATE TRIGGER queue_terms AFTER INSERT ON executions FOR EACH ROW
        WHEN (NEW.parent_id IS NULL) EXECUTE FUNCTION queue_terms();
        CREATE TRIGGER queue_terms_at_end AFTER UPDATE OF completed_at ON executions FOR EACH ROW
        WHEN (NEW.completed_at IS NOT NULL AND OLD.completed_at IS NULL AND NEW.parent_id IS NULL)
        EXECUTE FUNCTION queue_terms();
    END IF;
END $$;
