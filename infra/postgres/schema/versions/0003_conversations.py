"""Give runs conversations, and what finds and steers them: threads, schemas, tags, delays, priorities and keys."""

from infra.postgres.schema.sql_files import run_sql

revision = "0003_conversations"
down_revision = "0002_agent_work"

_THREADS_SQL = """
-- A conversation. `summary` stands for the messages up to `summarized_seq` where a model has to read less than all.
-- `last_seq` is the number of its last message, `forked_from` the thread whose messages up to `forked_seq` it copied.
CREATE TABLE threads (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    title text,
    tags text[] NOT NULL DEFAULT '{}',
    metadata json,
    summary text,
    summarized_seq bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    forked_from uuid,
    forked_seq bigint,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX threads_tenant_id_id ON threads (tenant_id, id DESC);
CREATE INDEX threads_tags ON threads USING gin (tags);

-- A message, as `domain.llms.ChatMessage` in `content`; `tokens` is an estimate of its size for a model. The messages
-- of one run are written when it is settled, all or none.
CREATE TABLE thread_messages (
    thread_id uuid NOT NULL REFERENCES threads,
    seq bigint NOT NULL,
    tenant_id text NOT NULL,
    role text NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    content json NOT NULL,
    tokens integer NOT NULL,
    execution_id uuid,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (thread_id, seq)
);
CREATE INDEX thread_messages_execution_id ON thread_messages (execution_id) WHERE execution_id IS NOT NULL;

-- A state of a thread is deleted with the thread.
ALTER TABLE agent_states ADD COLUMN thread_id uuid;
CREATE INDEX agent_states_thread_id ON agent_states (thread_id) WHERE thread_id IS NOT NULL;

CREATE POLICY bound ON threads TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON thread_messages TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON threads, thread_messages TO paddock_app;
"""

_EXECUTIONS_SQL = """
-- `messages` is a conversation that the start brought along, for a run outside a thread. A run that is `blocked` is
-- pending and not claimed: until `run_at` (`delayed`), or while its thread, or its `concurrency_key` with a limit of
-- `concurrency_limit`, has no room (`busy`). It waits at one `gate` at a time: of its thread, then of its key.
-- One that has not begun by `expires_at` is cancelled. Within a tenant's lane the lowest `turn_at` goes first: when it
-- was due, shifted by its `priority`, so that none waits for good. `output_schema` is that of an uploaded agent itself,
-- in place of its version's.
ALTER TABLE executions
    ADD COLUMN thread_id uuid,
    ADD COLUMN messages json,
    ADD COLUMN tags text[] NOT NULL DEFAULT '{}',
    ADD COLUMN metadata json,
    ADD COLUMN run_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -10 AND 10),
    ADD COLUMN concurrency_key text,
    ADD COLUMN concurrency_limit integer,
    ADD COLUMN blocked text CHECK (blocked IN ('delayed', 'busy')),
    ADD COLUMN gate text CHECK (gate IN ('thread', 'key')),
    ADD COLUMN turn_at timestamptz,
    ADD COLUMN output_schema json,
    ADD CHECK ((gate IS NOT NULL) = (blocked IS NOT DISTINCT FROM 'busy'));
CREATE INDEX executions_thread_id ON executions (thread_id, id) WHERE thread_id IS NOT NULL;
"""

_GATES_SQL = """
-- What claims read, without what is blocked.
DROP INDEX executions_pending;
CREATE INDEX executions_pending ON executions (lane, tenant_id, queue_id, (coalesce(turn_at, created_at)), id)
    WHERE status = 'pending' AND blocked IS NULL;
CREATE INDEX executions_delayed ON executions (run_at, id) WHERE blocked = 'delayed';
CREATE INDEX executions_expiring ON executions (expires_at)
    WHERE expires_at IS NOT NULL AND status = 'pending' AND started_at IS NULL;
-- Who holds a thread or a key, and who waits at their gates, in the order of admission.
CREATE INDEX executions_thread_held ON executions (thread_id)
    WHERE thread_id IS NOT NULL AND status IN ('pending', 'preparing', 'running', 'waiting')
      AND (blocked IS NULL OR gate = 'key');
CREATE INDEX executions_thread_waiting ON executions (thread_id, (coalesce(run_at, created_at)), id)
    WHERE gate = 'thread';
CREATE INDEX executions_key_held ON executions (tenant_id, concurrency_key)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'preparing', 'running', 'waiting')
      AND blocked IS NULL;
CREATE INDEX executions_key_waiting ON executions (tenant_id, concurrency_key, (coalesce(turn_at, created_at)), id)
    WHERE gate = 'key';

-- A gate where somebody may be admitted, noted in the transaction that made it so. Rows are only added and deleted.
CREATE TABLE gate_signals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX gate_signals_name ON gate_signals (name, kind, tenant_id);
CREATE POLICY bound ON gate_signals TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT ON gate_signals TO paddock_app;

CREATE OR REPLACE VIEW open_work AS
    SELECT 'build' AS lane, id AS row_id, tenant_id, attempt, status = 'queued' AS waiting,
           updated_at AS since, lease_expires_at
    FROM agent_versions WHERE status IN ('queued', 'building')
    UNION ALL
    SELECT lane, id, tenant_id, attempt, status = 'pending', updated_at, lease_expires_at
    FROM executions WHERE status IN ('pending', 'preparing', 'running') AND blocked IS NULL
    UNION ALL
    SELECT 'record', id, tenant_id, 0, claimed_until IS NULL, since, NULL
    FROM artifact_bodies
    UNION ALL
    SELECT 'record', id, tenant_id, attempt, claimed_until IS NULL, created_at, NULL
    FROM evaluations WHERE metrics = 'pending';
"""

_CATALOG_SQL = """
ALTER TABLE agents
    ADD COLUMN input_schema json, ADD COLUMN output_schema json,
    ADD COLUMN expose text[] NOT NULL DEFAULT '{}',
    ADD COLUMN context_tokens integer, ADD COLUMN summary boolean,
    ADD COLUMN tags text[] NOT NULL DEFAULT '{}', ADD COLUMN metadata json;
ALTER TABLE agent_versions ADD COLUMN input_schema json, ADD COLUMN output_schema json;
ALTER TABLE workflows ADD COLUMN expose text[] NOT NULL DEFAULT '{}', ADD COLUMN output_schema json;
ALTER TABLE tasks ADD COLUMN output_json json;
ALTER TABLE crews ADD COLUMN expose text[] NOT NULL DEFAULT '{}';
-- What a schedule's executions start with.
ALTER TABLE schedules ADD COLUMN tags text[] NOT NULL DEFAULT '{}', ADD COLUMN metadata json,
    ADD COLUMN expires_in double precision, ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN concurrency_key text, ADD COLUMN concurrency_limit integer;
"""

_CREWS_SQL = """
-- `inputs` are values that a run of the crew need not give.
ALTER TABLE crews ADD COLUMN inputs json NOT NULL DEFAULT '{}';

-- Calls of one agent in a plan; of all of them for an empty `agent`.
ALTER TABLE plan_calls ADD COLUMN agent text NOT NULL DEFAULT '';
ALTER TABLE plan_calls DROP CONSTRAINT plan_calls_pkey, ADD PRIMARY KEY (execution_id, agent);

-- What a run of a crew may use of what the crew knows, and whether it remembers what it comes to.
ALTER TABLE crews
    ADD COLUMN memory json NOT NULL DEFAULT 'false',
    ADD COLUMN knowledge_sources json NOT NULL DEFAULT '[]',
    ADD COLUMN knowledge_config json;
CREATE TABLE crew_memories (
    id uuid PRIMARY KEY,
    crew_id uuid NOT NULL REFERENCES crews ON DELETE CASCADE,
    tenant_id text NOT NULL,
    scope text NOT NULL,
    content text NOT NULL,
    run_id uuid NOT NULL,
    execution_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (crew_id, execution_id)
);
CREATE INDEX crew_memories_scope ON crew_memories (crew_id, scope, id DESC);
CREATE POLICY bound ON crew_memories TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT, INSERT, DELETE ON crew_memories TO paddock_app;
"""

_FINDING_SQL = """
-- By what executions are found: a tag (`t:nightly`), a member of the metadata (`m:customer:7`) or a word of the texts
-- (`w:invoice`), each read newest first from the key. Row-level security lets no index on members of arrays or words
-- of a tsvector serve. Steps of plans have none. `execution_term_lists` has the terms of each execution, so that they
-- can be replaced and deleted.
CREATE TABLE execution_terms (
    tenant_id text NOT NULL,
    term text COLLATE "C" NOT NULL,
    execution_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, term, execution_id)
);
CREATE TABLE execution_term_lists (
    execution_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    terms text[] NOT NULL
);
-- Executions that started or ended, whose words are to be written. Rows are only added and deleted, so settling an
-- execution never waits for the writer.
CREATE TABLE execution_term_queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id uuid NOT NULL,
    tenant_id text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
INSERT INTO execution_term_queue (execution_id, tenant_id)
SELECT id, tenant_id FROM executions WHERE parent_id IS NULL ORDER BY id DESC;

CREATE POLICY bound ON execution_terms TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON execution_term_lists TO paddock_app
    USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON execution_term_queue TO paddock_app
    USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT, INSERT, DELETE ON execution_terms, execution_term_queue TO paddock_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON execution_term_lists TO paddock_app;
"""

_DELETION_SQL = """
-- Events are kept for `event_retention_days`, if executions are kept longer; those of executions that ended up to
-- `events_removed_until` are gone.
ALTER TABLE tenants ADD COLUMN event_retention_days integer, ADD COLUMN events_removed_until timestamptz;
GRANT UPDATE (event_retention_days) ON tenants TO paddock_app;
CREATE INDEX executions_retry_of ON executions (retry_of) WHERE retry_of IS NOT NULL;

-- One action on many executions. `scopes` are those that the caller had. `total` are the executions at the start, of
-- which `done` and `failed` are dealt with.
CREATE TABLE bulk_operations (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    key_id uuid,
    scopes text[] NOT NULL,
    action text NOT NULL CHECK (action IN ('cancel', 'retry', 'delete')),
    status text NOT NULL CHECK (status IN ('running', 'completed', 'cancelled')),
    total integer NOT NULL,
    done integer NOT NULL,
    failed integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz
);
CREATE INDEX bulk_operations_tenant_id_id ON bulk_operations (tenant_id, id DESC);
CREATE INDEX bulk_operations_running ON bulk_operations (id) WHERE status = 'running';
-- The executions that an operation has not dealt with, and those that it failed on, with an `error`.
CREATE TABLE bulk_items (
    operation_id uuid NOT NULL REFERENCES bulk_operations,
    execution_id uuid NOT NULL,
    tenant_id text NOT NULL,
    error_code text,
    error text,
    PRIMARY KEY (operation_id, execution_id)
);
CREATE INDEX bulk_items_execution_id ON bulk_items (execution_id);
CREATE INDEX bulk_items_pending ON bulk_items (operation_id, execution_id) WHERE error IS NULL;

CREATE POLICY bound ON bulk_operations TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
CREATE POLICY bound ON bulk_items TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
GRANT SELECT, INSERT, UPDATE ON bulk_operations TO paddock_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON bulk_items TO paddock_app;
"""


def upgrade() -> None:
    """Add tables and columns."""
    for statements in (
        _THREADS_SQL,
        _EXECUTIONS_SQL,
        _GATES_SQL,
        _CATALOG_SQL,
        _CREWS_SQL,
        _FINDING_SQL,
        _DELETION_SQL,
    ):
        run_sql(statements)
