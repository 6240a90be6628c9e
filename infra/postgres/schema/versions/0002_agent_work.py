"""Give agents what they need for real work: environment, secrets, hosts that they reach, files and state."""

from infra.postgres.schema.sql_files import run_sql

revision = "0002_agent_work"
down_revision = "0001_baseline"

_UPGRADE_SQL = """
-- `env` overrides the variables of the version. A tenant's `egress` is null for what versions declare, empty for none.
ALTER TABLE agents ADD COLUMN env json;
ALTER TABLE agent_versions ADD COLUMN env json, ADD COLUMN secrets text[], ADD COLUMN egress text[];
ALTER TABLE tenants ADD COLUMN egress text[];
GRANT UPDATE (egress) ON tenants TO paddock_app;

-- `env` is a copy of the agent's at the start, `files` the names that the run was given and the files behind them,
-- `state` the name of the agent's state that it reads and leaves.
ALTER TABLE executions ADD COLUMN env json, ADD COLUMN files json, ADD COLUMN state text;
-- Those that a schedule's executions start with.
ALTER TABLE schedules ADD COLUMN files json, ADD COLUMN state text;

ALTER TABLE execution_events DROP CONSTRAINT execution_events_type_check;
ALTER TABLE execution_events ADD CONSTRAINT execution_events_type_check CHECK (type IN (
    'status', 'log', 'token', 'thinking', 'model_call', 'tool_call', 'tool_result', 'cost', 'approval',
    'warning', 'step', 'output', 'progress', 'egress'));
-- It takes the types of events now; functions are applied after migrations.
DROP FUNCTION IF EXISTS settle_runs;

-- Secrets of agents, encrypted. `agent_ids` is null for all agents of the tenant.
CREATE TABLE secrets (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    sealed bytea NOT NULL,
    agent_ids uuid[],
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, name)
);

-- Uploaded files: metadata here, bytes in object storage under `key`, which workspaces may refer to as well.
CREATE TABLE files (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    name text NOT NULL,
    content_type text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 text NOT NULL,
    key text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz
);
CREATE INDEX files_tenant_id_id ON files (tenant_id, id DESC);
CREATE INDEX files_expires_at ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX files_key ON files (key);
-- What runs leave counts against the tenant's quota, each object once.
CREATE INDEX workspace_files_tenant_id_key ON workspace_files (tenant_id, key) INCLUDE (size_bytes);

-- What the runs of an agent keep for each other, by name. `revision` is another one with every change, and never one
-- that a deleted state had. A foreign key would lock the agent when a run is settled, and deadlock with its deletion,
-- which deletes its states.
CREATE SEQUENCE agent_state_revisions;
CREATE TABLE agent_states (
    agent_id uuid NOT NULL,
    name text NOT NULL,
    tenant_id text NOT NULL,
    value json NOT NULL,
    revision bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (agent_id, name)
);

CREATE POLICY bound ON secrets TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON files TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON agent_states TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON secrets, files, agent_states TO paddock_app;
GRANT USAGE ON SEQUENCE agent_state_revisions TO paddock_app;
"""


def upgrade() -> None:
    """Add columns and tables."""
    run_sql(_UPGRADE_SQL)
