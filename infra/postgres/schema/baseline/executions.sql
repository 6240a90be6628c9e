-- Executions, their logs, steps and files, plans, and the workers that run them.

-- An execution, with the lease of the worker that runs it and the number of its last event. `attempt` is the fencing
-- token and only ever grows; claims after an approval (`resumes`) and after the stop of a worker (`handovers`) do not
-- count against `max_attempts`. `queue_id` names the queue it waits in: that of its agent, or the one for all without
-- an agent. `spec` is a copy of a model agent, and `agent_name` its name, as they were at the start. `parent_id` is
-- the plan that it is a step of, `root_id` the plan that everything belongs to, `step` which step (`review`,
-- `review[3]`). Claims read the short partial indexes again and again, so dead entries must go soon: hence the
-- autovacuum settings.
CREATE TABLE executions (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    run_name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('agent', 'tool', 'crew', 'workflow', 'generation')),
    agent_id uuid REFERENCES agents,
    agent_version_id uuid REFERENCES agent_versions,
    status text NOT NULL CHECK (
        status IN ('pending', 'preparing', 'running', 'waiting', 'completed', 'failed', 'cancelled')),
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
    updated_at timestamptz NOT NULL,
    recorded boolean NOT NULL DEFAULT false,
    lane text NOT NULL DEFAULT 'run' CHECK (lane IN ('run', 'llm', 'plan')),
    queue_id uuid NOT NULL
        GENERATED ALWAYS AS (coalesce(agent_id, '00000000-0000-0000-0000-000000000000'::uuid)) STORED,
    mode text CHECK (mode IN ('safe', 'sandbox', 'yolo')),
    model text,
    spec json,
    cost_limit double precision CHECK (cost_limit > 0),
    key_id uuid,
    workflow_id uuid,
    resumes integer NOT NULL DEFAULT 0,
    waiting_for json,
    agent_name text,
    crew_id uuid,
    schedule_id uuid,
    parent_id uuid REFERENCES executions,
    root_id uuid,
    step text,
    handovers integer NOT NULL DEFAULT 0
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX executions_agent_id_id ON executions (agent_id, id DESC);
CREATE INDEX executions_agent_version_id_id ON executions (agent_version_id, id DESC);
CREATE INDEX executions_completed_at ON executions (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX executions_crew_id ON executions (crew_id, id DESC) WHERE crew_id IS NOT NULL;
CREATE INDEX executions_ended_roots ON executions (tenant_id, completed_at)
    WHERE parent_id IS NULL AND completed_at IS NOT NULL;
-- Plans hold no worker and have no artifact; their steps do.
CREATE INDEX executions_held ON executions (tenant_id, queue_id)
    WHERE status IN ('preparing', 'running') AND lane <> 'plan';
CREATE INDEX executions_open ON executions (id) WHERE status IN ('pending', 'preparing', 'running', 'waiting');
-- A schedule starts many executions; few of them are open.
CREATE INDEX executions_open_of_schedule ON executions (schedule_id)
    WHERE schedule_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'cancelled');
CREATE INDEX executions_parent_id ON executions (parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX executions_pending ON executions (lane, tenant_id, queue_id, id) WHERE status = 'pending';
CREATE INDEX executions_root_id ON executions (root_id, id) WHERE root_id IS NOT NULL;
CREATE INDEX executions_schedule_id ON executions (schedule_id, id DESC) WHERE schedule_id IS NOT NULL;
-- Lists show what was started, not its steps.
CREATE INDEX executions_tenant_id_id ON executions (tenant_id, id DESC) WHERE parent_id IS NULL;
CREATE INDEX executions_unrecorded ON executions (completed_at)
    WHERE completed_at IS NOT NULL AND NOT recorded AND lane <> 'plan';
CREATE INDEX executions_workflow_id ON executions (workflow_id, id DESC) WHERE workflow_id IS NOT NULL;

-- The append-only event log.
CREATE TABLE execution_events (
    execution_id uuid NOT NULL REFERENCES executions,
    seq integer NOT NULL,
    tenant_id text NOT NULL,
    at timestamptz NOT NULL,
    type text NOT NULL CHECK (type IN (
        'status', 'log', 'token', 'thinking', 'model_call', 'tool_call', 'tool_result', 'cost', 'approval',
        'warning', 'step')),
    data json NOT NULL,
    PRIMARY KEY (execution_id, seq)
);

-- What an execution has done, by its path in the run. A claim after a lost worker continues from here.
CREATE TABLE execution_steps (
    execution_id uuid NOT NULL REFERENCES executions,
    path text NOT NULL,
    tenant_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('model', 'tool')),
    name text NOT NULL,
    status text NOT NULL CHECK (status IN ('started', 'waiting', 'approved', 'rejected', 'finished')),
    attempt integer NOT NULL,
    call_id text,
    input json,
    output json,
    decided_by uuid,
    decided_at timestamptz,
    reason text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (execution_id, path)
);

-- The workspace of an execution: names here, bytes in object storage under `key`.
CREATE TABLE workspace_files (
    execution_id uuid NOT NULL REFERENCES executions,
    path text NOT NULL,
    tenant_id text NOT NULL,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    key text NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (execution_id, path)
);
CREATE INDEX workspace_files_key ON workspace_files (key);

-- `max_rpm` limits model calls per minute over everything the plan runs. `revision` counts how often its steps were
-- saved: a coordinator that knows the revision knows all steps.
CREATE TABLE plans (
    execution_id uuid PRIMARY KEY REFERENCES executions,
    tenant_id text NOT NULL,
    plan json NOT NULL,
    max_rpm integer,
    revision integer NOT NULL DEFAULT 0
);

-- `item` is -1 for the step itself, and otherwise an item of the list that the step is mapped over.
CREATE TABLE plan_steps (
    execution_id uuid NOT NULL REFERENCES plans,
    step text NOT NULL,
    item integer NOT NULL,
    tenant_id text NOT NULL,
    status text NOT NULL CHECK (
        status IN ('pending', 'waiting', 'running', 'completed', 'failed', 'skipped', 'cancelled')),
    tries integer NOT NULL,
    child_id uuid,
    due_at timestamptz,
    error_type text,
    error_message text,
    approved boolean,
    decided_by uuid,
    decided_at timestamptz,
    reason text,
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (execution_id, step, item)
) WITH (fillfactor = 70);

-- Something that may have changed for a plan, or will at `due_at`. Rows are only added and deleted, so settling a step
-- never waits for the coordinator of its plan, nor the other way round.
CREATE TABLE plan_signals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id uuid NOT NULL,
    tenant_id text NOT NULL,
    due_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX plan_signals_due_at ON plan_signals (due_at);
CREATE INDEX plan_signals_execution_id ON plan_signals (execution_id);

-- The times of model calls within the last minute, for plans that limit them.
CREATE TABLE plan_calls (
    execution_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    calls timestamptz[] NOT NULL
);

-- Worker processes, by their last heartbeat. They belong to the host, not to a tenant.
CREATE TABLE workers (
    id text PRIMARY KEY,
    lane text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    slots integer NOT NULL,
    busy integer NOT NULL,
    problem text,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    warm integer NOT NULL DEFAULT 0,
    blank integer NOT NULL DEFAULT 0,
    metrics_port integer
);

-- When somebody last asked for traces to be exported: one row, or none.
CREATE TABLE trace_export (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    wanted_at timestamptz NOT NULL
);

-- Finished executions whose traces are to be exported.
CREATE TABLE trace_exports (
    execution_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    due_at timestamptz NOT NULL,
    tries integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX trace_exports_due_at ON trace_exports (due_at);
