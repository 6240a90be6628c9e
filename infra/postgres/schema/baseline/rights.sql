-- The application's role, what it may do, and row-level security.

-- The application works as `paddock_app`, which owns nothing and bypasses nothing.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'paddock_app') THEN
        CREATE ROLE paddock_app NOLOGIN;
    END IF;
    EXECUTE format('GRANT paddock_app TO %I', current_user);
END $$;
GRANT USAGE ON SCHEMA public TO paddock_app;

-- Open work over all tenants, as ids and times alone. A view reads with the rights of its owner, past row-level
-- security: it must never show what a tenant wrote. Records wait like the work of other lanes; their claims expire on
-- their own.
CREATE VIEW open_work AS
    SELECT 'build' AS lane, id AS row_id, tenant_id, attempt, status = 'queued' AS waiting,
           updated_at AS since, lease_expires_at
    FROM agent_versions WHERE status IN ('queued', 'building')
    UNION ALL
    SELECT lane, id, tenant_id, attempt, status = 'pending', updated_at, lease_expires_at
    FROM executions WHERE status IN ('pending', 'preparing', 'running')
    UNION ALL
    SELECT 'record', id, tenant_id, 0, claimed_until IS NULL, since, NULL
    FROM artifact_bodies
    UNION ALL
    SELECT 'record', id, tenant_id, attempt, claimed_until IS NULL, created_at, NULL
    FROM evaluations WHERE metrics = 'pending';

-- A row is visible if its tenant is the one that the transaction is bound to by
-- `set_config('paddock.tenant_id', ..., true)`. What has to be found before a tenant is known goes through functions
-- of the owner that answer one exact match.
CREATE POLICY bound ON tenants TO paddock_app USING (id = current_setting('paddock.tenant_id', true));
DO $$
DECLARE
    guarded regclass;
BEGIN
    FOR guarded IN
        SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'tenant_id'
    LOOP
        EXECUTE format('CREATE POLICY bound ON %s TO paddock_app '
                       'USING (tenant_id = current_setting(''paddock.tenant_id'', true))', guarded);
    END LOOP;
END $$;

GRANT SELECT ON open_work, trace_exports TO paddock_app;
GRANT SELECT, INSERT ON tenants, execution_events, doomed_objects TO paddock_app;
GRANT SELECT, INSERT, UPDATE ON
    users, invites, sessions, refresh_tokens, idempotency_keys, agents, agent_versions, executions, execution_steps,
    workspace_files, plans, plan_steps, plan_calls, schedule_runs
TO paddock_app;
GRANT SELECT, INSERT, DELETE ON plan_signals, cost_holds, artifacts, artifact_ids, artifact_bodies, costs, stat_deltas
TO paddock_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    api_keys, provider_keys, models, tools, disabled_tools, templates, crews, tasks, workflows, schedules, workers,
    budgets, evaluations, stat_rollups
TO paddock_app;
GRANT UPDATE (max_concurrency, retention_days) ON tenants TO paddock_app;
-- Rows are locked before they are deleted, which takes the right to update a column.
GRANT UPDATE (id) ON costs TO paddock_app;
GRANT UPDATE (until) ON cost_holds TO paddock_app;
