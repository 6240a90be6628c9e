"""Schedules, and what became of their due times."""

from infra.postgres.script import run

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    run(
        """
        CREATE TABLE schedules (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            name text NOT NULL,
            cron_expression text NOT NULL,
            timezone text NOT NULL,
            agent_id uuid,
            crew_id uuid,
            workflow_id uuid,
            inputs json NOT NULL,
            model text,
            mode text,
            cost_limit double precision,
            enabled boolean NOT NULL,
            overlap text NOT NULL CHECK (overlap IN ('skip', 'queue', 'allow')),
            catch_up integer NOT NULL,
            next_run_at timestamptz,
            last_run_at timestamptz,
            last_execution_id uuid,
            last_error text,
            run_count bigint NOT NULL,
            missed_count bigint NOT NULL,
            skipped_count bigint NOT NULL,
            failed_count bigint NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, name),
            CHECK (num_nonnulls(agent_id, crew_id, workflow_id) = 1),
            CHECK (enabled OR next_run_at IS NULL)
        ) WITH (fillfactor = 70);
        CREATE INDEX schedules_next_run_at ON schedules (next_run_at) WHERE next_run_at IS NOT NULL;
        -- A due time that has come. The key is what keeps it from being met twice.
        CREATE TABLE schedule_runs (
            schedule_id uuid NOT NULL REFERENCES schedules ON DELETE CASCADE,
            due_at timestamptz NOT NULL,
            tenant_id text NOT NULL,
            outcome text NOT NULL CHECK (outcome IN ('fired', 'queued', 'skipped', 'missed', 'failed')),
            execution_id uuid,
            reason text,
            settled_at timestamptz NOT NULL,
            PRIMARY KEY (schedule_id, due_at)
        );
        -- One waits at most.
        CREATE UNIQUE INDEX schedule_runs_queued ON schedule_runs (schedule_id) WHERE outcome = 'queued';
        CREATE INDEX schedule_runs_due_at ON schedule_runs (due_at);
        -- What a schedule has started is very much; what of that has not ended is little.
        CREATE INDEX executions_open_of_schedule ON executions (schedule_id)
            WHERE schedule_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'cancelled');

        -- Schedules of any tenants that are due, or whose due time has waited for the end of an execution; and, in a
        -- row without a schedule, when the next one is due.
        CREATE FUNCTION due_schedules(now timestamptz, most integer)
        RETURNS TABLE (schedule_id uuid, tenant_id text, next_at timestamptz)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            (SELECT s.id, s.tenant_id, NULL::timestamptz FROM schedules s WHERE s.next_run_at <= now
             ORDER BY s.next_run_at LIMIT most)
            UNION
            (SELECT q.schedule_id, q.tenant_id, NULL FROM schedule_runs q
             WHERE q.outcome = 'queued' AND NOT EXISTS (
                SELECT FROM executions e WHERE e.schedule_id = q.schedule_id
                AND e.status NOT IN ('completed', 'failed', 'cancelled'))
             LIMIT most)
            UNION ALL
            SELECT NULL, NULL, min(s.next_run_at) FROM schedules s WHERE s.next_run_at > now
        $$;
        CREATE FUNCTION forget_schedule_runs(before timestamptz) RETURNS bigint
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH gone AS (DELETE FROM schedule_runs r WHERE r.due_at < before AND r.outcome <> 'queued' RETURNING 1)
            SELECT count(*) FROM gone
        $$;
        REVOKE ALL ON FUNCTION due_schedules, forget_schedule_runs FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION due_schedules, forget_schedule_runs TO paddock_app;
        """
    )
    for table, rights in (
        ("schedules", "SELECT, INSERT, UPDATE, DELETE"),
        ("schedule_runs", "SELECT, INSERT, UPDATE"),
    ):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
