-- An execution that is not pending any more is not blocked either.
CREATE OR REPLACE FUNCTION unblock_run() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp
AS $$ BEGIN
    NEW.blocked := NULL;
    NEW.gate := NULL;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION unblock_run FROM PUBLIC;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'unblock_run' AND tgrelid = 'executions'::regclass) THEN
        CREATE TRIGGER unblock_run BEFORE UPDATE OF status ON executions FOR EACH ROW
        WHEN (OLD.blocked IS NOT NULL AND NEW.status <> 'pending') EXECUTE FUNCTION unblock_run();
    END IF;
END $$;
