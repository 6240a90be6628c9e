"""What becomes too old goes: executions with all they left, versions, deleted agents, and what has expired."""

from infra.postgres.script import run

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    run(
        """
        CREATE INDEX executions_ended_roots ON executions (tenant_id, completed_at)
            WHERE parent_id IS NULL AND completed_at IS NOT NULL;
        CREATE INDEX agent_versions_tenant_id_created_at ON agent_versions (tenant_id, created_at);
        CREATE INDEX invites_expires_at ON invites (expires_at);
        CREATE INDEX cost_holds_until ON cost_holds (until);

        -- Tenants that keep what they have for so many days only: as each says, else as the installation does (0: for
        -- good).
        CREATE FUNCTION retained_tenants(otherwise integer) RETURNS TABLE (tenant_id text, days integer)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT t.id, coalesce(t.retention_days, otherwise) FROM tenants t
            WHERE t.retention_days IS NOT NULL OR otherwise > 0 ORDER BY t.id
        $$;

        -- Removes executions of the bound tenant that belong to something which ended before `before`, with all that
        -- they left in other tables. Innermost first: of what is removed nothing is left to refer to it. Up to `most`
        -- of them, and no more after `most_events` events. What still runs keeps all that it belongs to, and so does
        -- what has no artifact yet. Returns how many.
        CREATE FUNCTION forget_executions(before timestamptz, most integer, most_events bigint) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
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
            DELETE FROM execution_events v WHERE v.execution_id = ANY (old);
            DELETE FROM execution_steps s WHERE s.execution_id = ANY (old);
            DELETE FROM workspace_files f WHERE f.execution_id = ANY (old);
            DELETE FROM trace_exports x WHERE x.execution_id = ANY (old);
            DELETE FROM cost_holds h WHERE h.execution_id = ANY (old);
            DELETE FROM plan_signals g WHERE g.execution_id = ANY (old);
            DELETE FROM plan_calls c WHERE c.execution_id = ANY (old);
            DELETE FROM plan_steps s WHERE s.execution_id = ANY (old);
            DELETE FROM plans p WHERE p.execution_id = ANY (old);
            DELETE FROM executions e WHERE e.id = ANY (old);
            RETURN cardinality(old);
        END $$;

        -- The ids of versions and agents that plans of the bound tenant name: what a plan is made of was written down
        -- when it was started.
        CREATE FUNCTION named_in_plans() RETURNS SETOF text
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT DISTINCT m[1] FROM plans p, regexp_matches(p.plan::text, '((?:ver|agent)_[0-9a-z]{26})', 'g') AS m
            WHERE p.tenant_id = current_setting('paddock.tenant_id')
        $$;

        -- Removes versions of the bound tenant that are older than `before` and serve nothing: not active, not the
        -- newest of their agent (numbers are not given out again), not being built, not in `used`, and without
        -- executions. A deleted agent has no active and no newest one. Their objects then belong to nothing, and are
        -- swept. Returns how many.
        CREATE FUNCTION forget_versions(before timestamptz, used uuid[], most integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
        DECLARE
            tenant text := current_setting('paddock.tenant_id');
            gone integer;
        BEGIN
            DELETE FROM agent_versions d WHERE d.id IN (
                SELECT v.id FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                WHERE v.tenant_id = tenant AND v.created_at < before AND v.updated_at < before
                  AND v.status IN ('ready', 'failed') AND v.id <> ALL (used)
                  AND (a.deleted_at < before OR (
                      a.deleted_at IS NULL AND a.current_version_id IS DISTINCT FROM v.id AND EXISTS (
                          SELECT FROM agent_versions n WHERE n.agent_id = a.id AND n.number > v.number)))
                  AND NOT EXISTS (SELECT FROM executions e WHERE e.agent_version_id = v.id)
                ORDER BY v.created_at LIMIT most FOR UPDATE OF v, a SKIP LOCKED);
            GET DIAGNOSTICS gone = ROW_COUNT;
            RETURN gone;
        END $$;

        -- Removes agents of the bound tenant that were deleted before `before` and that nothing refers to any more.
        CREATE FUNCTION forget_agents(before timestamptz, used uuid[], most integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
        DECLARE
            tenant text := current_setting('paddock.tenant_id');
            gone integer;
        BEGIN
            DELETE FROM agents d WHERE d.id IN (
                SELECT a.id FROM agents a
                WHERE a.tenant_id = tenant AND a.deleted_at < before AND a.id <> ALL (used)
                  AND NOT EXISTS (SELECT FROM agent_versions v WHERE v.agent_id = a.id)
                  AND NOT EXISTS (SELECT FROM executions e WHERE e.agent_id = a.id)
                  AND NOT EXISTS (SELECT FROM agents c WHERE c.parent_id = a.id)
                ORDER BY a.id LIMIT most FOR UPDATE SKIP LOCKED);
            GET DIAGNOSTICS gone = ROW_COUNT;
            RETURN gone;
        END $$;

        -- Removes rows of any tenants that serve nothing since `before`, `most` at a time. Returns how many.
        CREATE FUNCTION forget_expired(what text, before timestamptz, most integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
        DECLARE
            gone integer;
        BEGIN
            CASE what
            WHEN 'answers' THEN
                DELETE FROM idempotency_keys d WHERE d.ctid = ANY (ARRAY (
                    SELECT k.ctid FROM idempotency_keys k WHERE k.created_at < before LIMIT most
                    FOR UPDATE SKIP LOCKED));
            WHEN 'refresh_tokens' THEN
                DELETE FROM refresh_tokens d WHERE d.token_hash IN (
                    SELECT r.token_hash FROM refresh_tokens r WHERE r.expires_at < before LIMIT most
                    FOR UPDATE SKIP LOCKED);
            WHEN 'sessions' THEN
                DELETE FROM sessions d WHERE d.id IN (
                    SELECT s.id FROM sessions s WHERE s.created_at < before AND NOT EXISTS (
                        SELECT FROM refresh_tokens r WHERE r.session_id = s.id AND r.expires_at >= before)
                    LIMIT most FOR UPDATE SKIP LOCKED);
            WHEN 'invites' THEN
                DELETE FROM invites d WHERE d.id IN (
                    SELECT i.id FROM invites i WHERE i.expires_at < before LIMIT most FOR UPDATE SKIP LOCKED);
            WHEN 'holds' THEN
                DELETE FROM cost_holds d WHERE d.id IN (
                    SELECT h.id FROM cost_holds h WHERE h.until < before LIMIT most FOR UPDATE SKIP LOCKED);
            WHEN 'schedule_runs' THEN
                DELETE FROM schedule_runs d WHERE d.ctid = ANY (ARRAY (
                    SELECT r.ctid FROM schedule_runs r WHERE r.due_at < before AND r.outcome <> 'queued' LIMIT most
                    FOR UPDATE SKIP LOCKED));
            WHEN 'trace_exports' THEN
                -- Of an export that nobody has asked for since.
                DELETE FROM trace_exports d WHERE d.execution_id IN (
                    SELECT x.execution_id FROM trace_exports x
                    WHERE NOT EXISTS (SELECT FROM trace_export w WHERE w.wanted_at >= before)
                    LIMIT most FOR UPDATE SKIP LOCKED);
            WHEN 'workers' THEN
                DELETE FROM workers d WHERE d.id IN (
                    SELECT w.id FROM workers w WHERE w.seen_at < before LIMIT most FOR UPDATE SKIP LOCKED);
            ELSE
                RAISE EXCEPTION 'nothing expires as %', what;
            END CASE;
            GET DIAGNOSTICS gone = ROW_COUNT;
            RETURN gone;
        END $$;
        REVOKE ALL ON FUNCTION retained_tenants, forget_executions, named_in_plans, forget_versions, forget_agents,
            forget_expired FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION retained_tenants, forget_executions, named_in_plans, forget_versions, forget_agents,
            forget_expired TO paddock_app;
        """
    )
