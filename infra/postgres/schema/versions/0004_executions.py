"""Executions, and their append-only event log."""

from infra.postgres.script import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run(
        """
        CREATE TABLE executions (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            run_name text NOT NULL,
            kind text NOT NULL CHECK (kind IN ('agent')),
            agent_id uuid REFERENCES agents,
            agent_version_id uuid REFERENCES agent_versions,
            status text NOT NULL CHECK (status IN (
                'pending', 'preparing', 'running', 'waiting', 'completed', 'failed', 'cancelled')),
            input_data json,
            output_data json,
            error_message text,
            error_type text,
            attempt integer NOT NULL,
            max_attempts integer NOT NULL,
            timeout integer NOT NULL,
            retry_of uuid,
            steps_total integer NOT NULL,
            steps_completed integer NOT NULL,
            total_cost double precision NOT NULL,
            last_seq integer NOT NULL,
            worker text,
            lease_expires_at timestamptz,
            created_at timestamptz NOT NULL,
            started_at timestamptz,
            completed_at timestamptz,
            updated_at timestamptz NOT NULL
        ) WITH (fillfactor = 80);
        CREATE INDEX executions_tenant_id_id ON executions (tenant_id, id DESC);
        CREATE INDEX executions_agent_id_id ON executions (agent_id, id DESC);
        CREATE INDEX executions_agent_version_id_id ON executions (agent_version_id, id DESC);
        CREATE INDEX executions_open ON executions (id)
            WHERE status IN ('pending', 'preparing', 'running', 'waiting');
        CREATE INDEX executions_completed_at ON executions (completed_at) WHERE completed_at IS NOT NULL;
        CREATE TABLE execution_events (
            execution_id uuid NOT NULL REFERENCES executions,
            seq integer NOT NULL,
            tenant_id text NOT NULL,
            at timestamptz NOT NULL,
            type text NOT NULL CHECK (type IN ('status', 'log')),
            data json NOT NULL,
            PRIMARY KEY (execution_id, seq)
        );
        """
    )
    for table, rights in (("executions", "SELECT, INSERT, UPDATE"), ("execution_events", "SELECT, INSERT")):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
