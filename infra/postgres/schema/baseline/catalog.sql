-- What tenants describe and upload: models, tools, agents, crews, workflows, schedules.

-- Keys of outside services, encrypted.
CREATE TABLE provider_keys (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    slug text NOT NULL,
    service text NOT NULL,
    sealed bytea NOT NULL,
    last_four text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, slug)
);

-- The registry of language models.
CREATE TABLE models (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    base_url text,
    api_key_name text,
    parameters json NOT NULL,
    price json,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    api text CHECK (api IN ('responses', 'chat')),
    FOREIGN KEY (tenant_id, api_key_name) REFERENCES provider_keys (tenant_id, slug) ON UPDATE CASCADE,
    UNIQUE (tenant_id, name)
);

-- A tenant's own tools. `key_names` are the slugs of the provider keys that the configuration names.
CREATE TABLE tools (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    slug text NOT NULL,
    description text NOT NULL,
    category text NOT NULL,
    tool_type text NOT NULL CHECK (tool_type IN ('custom', 'mcp')),
    configuration json NOT NULL,
    parameters json NOT NULL,
    key_names text[] NOT NULL,
    enabled boolean NOT NULL,
    effects boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, slug)
);

-- Built-in tools, which only the code knows, that a tenant has switched off.
CREATE TABLE disabled_tools (
    tenant_id text NOT NULL REFERENCES tenants,
    tool_id uuid NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, tool_id)
);

-- Prompt templates. A task keeps its template from being deleted; a deleted agent gives it up.
CREATE TABLE templates (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    description text,
    template text NOT NULL,
    variables text[] NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, name)
);

-- A deleted agent keeps its row for the executions that name it, and frees its name.
CREATE TABLE agents (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    name text NOT NULL,
    description text,
    kind text NOT NULL CHECK (kind IN ('code', 'llm')),
    status text NOT NULL CHECK (status IN ('draft', 'building', 'ready', 'failed', 'archived')),
    current_version_id uuid,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    max_concurrency integer CHECK (max_concurrency > 0),
    concurrency_policy text NOT NULL DEFAULT 'queue' CHECK (concurrency_policy IN ('queue', 'reject', 'replace')),
    role text,
    goal text,
    backstory text,
    instructions text,
    provider text,
    model text,
    fallback_model text,
    temperature double precision,
    max_tokens integer,
    max_steps integer,
    timeout integer,
    tools text[] NOT NULL DEFAULT '{}',
    allow_delegation boolean,
    "verbose" boolean,
    parent_id uuid REFERENCES agents,
    template_id uuid REFERENCES templates ON DELETE SET NULL
);
CREATE INDEX agents_parent_id ON agents (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX agents_template_id ON agents (template_id) WHERE template_id IS NOT NULL;
CREATE UNIQUE INDEX agents_tenant_id_name_key ON agents (tenant_id, name) WHERE deleted_at IS NULL;

-- A version of an agent, with the lease of the worker that builds it. `models` are those that uploaded code may call.
-- `unpacked_bytes` and `environment_bytes` are disk space on a worker: the version itself, and its installed
-- requirements, which versions may share.
CREATE TABLE agent_versions (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    agent_id uuid NOT NULL REFERENCES agents,
    number integer NOT NULL,
    version text NOT NULL,
    status text NOT NULL CHECK (status IN ('queued', 'building', 'ready', 'failed')),
    build_log text,
    error_message text,
    tarball_path text NOT NULL UNIQUE,
    bundle_path text,
    entrypoint text,
    config text,
    framework text,
    python text,
    timeout integer,
    memory integer,
    environment text,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    attempt integer NOT NULL,
    worker text,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    models text[],
    handovers integer NOT NULL DEFAULT 0,
    unpacked_bytes bigint NOT NULL DEFAULT 0,
    environment_bytes bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX agent_versions_agent_id_number_key ON agent_versions (agent_id, number);
CREATE INDEX agent_versions_environment ON agent_versions (environment) WHERE environment IS NOT NULL;
CREATE INDEX agent_versions_open ON agent_versions (id) WHERE status IN ('queued', 'building');
CREATE INDEX agent_versions_tenant_id_created_at ON agent_versions (tenant_id, created_at);
CREATE INDEX ix_agent_versions_bundle_path ON agent_versions (bundle_path);

-- `agents` and `tasks` hold ids.
CREATE TABLE crews (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    name text NOT NULL,
    description text,
    process text NOT NULL CHECK (process IN ('sequential', 'hierarchical')),
    model text,
    manager_model text,
    manager_agent text,
    planning boolean NOT NULL,
    planning_model text,
    max_rpm integer,
    "verbose" boolean NOT NULL,
    agents_yaml text,
    tasks_yaml text,
    agents text[] NOT NULL,
    tasks text[] NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, name)
);

-- `context` holds ids of other tasks; null is not the same as an empty list.
CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    name text NOT NULL,
    slug text NOT NULL,
    description text NOT NULL,
    expected_output text,
    agent text,
    tools text[] NOT NULL,
    context text[],
    async_execution boolean NOT NULL,
    markdown boolean NOT NULL,
    output_file text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    template_id uuid REFERENCES templates,
    variables json,
    UNIQUE (tenant_id, slug)
);
CREATE INDEX tasks_template_id ON tasks (template_id) WHERE template_id IS NOT NULL;

-- A workflow as it was written. The names in its steps are resolved when it is started.
CREATE TABLE workflows (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    name text NOT NULL,
    description text,
    status text NOT NULL CHECK (status IN ('active', 'archived')),
    inputs json,
    steps json NOT NULL,
    outputs json,
    steps_total integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (tenant_id, name)
);

-- `next_run_at` is null while nothing is due.
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
    CHECK (num_nonnulls(agent_id, crew_id, workflow_id) = 1),
    CHECK (enabled OR next_run_at IS NULL),
    UNIQUE (tenant_id, name)
) WITH (fillfactor = 70);
CREATE INDEX schedules_next_run_at ON schedules (next_run_at) WHERE next_run_at IS NOT NULL;

-- A due time that has come. The primary key keeps it from being met twice.
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
CREATE INDEX schedule_runs_due_at ON schedule_runs (due_at);
-- At most one due time of a schedule waits for the end of an execution.
CREATE UNIQUE INDEX schedule_runs_queued ON schedule_runs (schedule_id) WHERE outcome = 'queued';
