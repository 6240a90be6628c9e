-- Deletes these executions with everything they left in other tables but records, and takes their ids out of what
-- stays. Serves the functions below alone: it checks nothing.
CREATE OR REPLACE FUNCTION forget_execution_rows(gone uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET jit = off
AS $$ BEGIN
    DELETE FROM execution_events v WHERE v.execution_id = ANY (gone);
    DELETE FROM execution_steps s WHERE s.execution_id = ANY (gone);
    DELETE FROM workspace_files f WHERE f.execution_id = ANY (gone);
    DELETE FROM trace_exports x WHERE x.execution_id = ANY (gone);
    DELETE FROM cost_holds h WHERE h.execution_id = ANY (gone) OR h.root_id = ANY (gone);
    DELETE FROM plan_signals g WHERE g.execution_id = ANY (gone);
    DELETE FROM plan_calls c WHERE c.execution_id = ANY (gone);
    DELETE FROM plan_steps s WHERE s.execution_id = ANY (gone);
    DELETE FROM plans p WHERE p.execution_id = ANY (gone);
    DELETE FROM execution_terms t USING (
        SELECT l.tenant_id, unnest(l.terms) AS term, l.execution_id
        FROM execution_term_lists l WHERE l.execution_id = ANY (gone)) AS o
    WHERE t.tenant_id = o.tenant_id AND t.term = o.term AND t.execution_id = o.execution_id;
    DELETE FROM execution_term_lists l WHERE l.execution_id = ANY (gone);
    -- Messages of threads stay, and no longer name the run that wrote them.
    UPDATE thread_messages m SET execution_id = NULL WHERE m.execution_id = ANY (gone);
    UPDATE executions e SET retry_of = NULL WHERE e.retry_of = ANY (gone);
    UPDATE schedules s SET last_execution_id = NULL FROM executions e
    WHERE e.id = ANY (gone) AND s.id = e.schedule_id AND s.last_execution_id = e.id;
    UPDATE schedule_runs r SET execution_id = NULL FROM executions e
    WHERE e.id = ANY (gone) AND r.schedule_id = e.schedule_id AND r.execution_id = e.id;
    -- What a bulk operation still had to do with them has failed.
    WITH dropped AS (DELETE FROM bulk_items i WHERE i.execution_id = ANY (gone) RETURNING i.operation_id, i.error)
    UPDATE bulk_operations o SET failed = o.failed + d.pending FROM (
        SELECT c.operation_id, count(*) AS pending FROM dropped c WHERE c.error IS NULL GROUP BY c.operation_id) AS d
    WHERE o.id = d.operation_id;
    DELETE FROM executions e WHERE e.id = ANY (gone);
END $$;
REVOKE ALL ON FUNCTION forget_execution_rows FROM PUBLIC;
