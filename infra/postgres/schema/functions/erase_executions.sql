-- Deletes these executions of the bound tenant, which have ended, on a person's request. Their costs stay, and no longer
-- name them. Objects of their files that nothing else refers to are to be deleted from object storage at `due`.
CREATE OR REPLACE FUNCTION erase_executions(gone uuid[], due timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
    mine uuid[] := ARRAY(SELECT e.id FROM executions e
                         WHERE e.id = ANY (gone) AND e.tenant_id = tenant AND e.completed_at IS NOT NULL);
    keys text[] := ARRAY(SELECT DISTINCT f.key FROM workspace_files f WHERE f.execution_id = ANY (mine));
BEGIN
    UPDATE costs c SET execution_id = NULL WHERE c.execution_id = ANY (mine) AND c.tenant_id = tenant;
    -- What a crew remembers of a run is the run's own text.
    DELETE FROM crew_memories m USING executions e
    WHERE e.id = ANY (mine) AND m.crew_id = e.crew_id AND (m.execution_id = e.id OR m.run_id = e.id);
    PERFORM forget_execution_rows(mine);
    INSERT INTO doomed_objects (key, tenant_id, due)
    SELECT k, tenant, due FROM unnest(keys) AS k
    WHERE NOT EXISTS (SELECT FROM workspace_files f WHERE f.key = k) AND NOT EXISTS (SELECT FROM files f WHERE f.key = k)
    ON CONFLICT DO NOTHING;
END $$;
REVOKE ALL ON FUNCTION erase_executions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION erase_executions TO paddock_app;
