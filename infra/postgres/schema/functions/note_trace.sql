-- Lists the trace of a finished execution for export, if traces were wanted within the last week. A week without a
-- request means that the export was switched off. The trace is due after two seconds: the last costs and steps are
-- written within a second of the end.
CREATE OR REPLACE FUNCTION note_trace() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$ BEGIN
    INSERT INTO trace_exports (execution_id, tenant_id, due_at)
    SELECT NEW.id, NEW.tenant_id, NEW.completed_at + interval '2 seconds'
    FROM trace_export x WHERE x.wanted_at > NEW.completed_at - interval '7 days'
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION note_trace FROM PUBLIC;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'note_trace' AND tgrelid = 'executions'::regclass) THEN
        CREATE TRIGGER note_trace AFTER UPDATE OF completed_at ON executions FOR EACH ROW
        WHEN (NEW.completed_at IS NOT NULL AND OLD.completed_at IS NULL AND NEW.parent_id IS NULL)
        EXECUTE FUNCTION note_trace();
    END IF;
END $$;
