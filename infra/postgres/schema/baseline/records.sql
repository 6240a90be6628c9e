-- Evaluations, artifacts and costs, the statistics made of them, and budgets.

-- Record tables are partitioned by id, which is by the month of receipt.
CREATE TABLE evaluations (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    prompt text NOT NULL,
    response text NOT NULL,
    retrieved_docs json,
    semantic_drift double precision,
    uncertainty double precision,
    factual_support double precision,
    hallucination_probability double precision,
    hallucinated boolean,
    latency_sec double precision,
    throughput_qps double precision,
    mode text,
    model_name text,
    agent_name text,
    session_id text,
    execution_id uuid,
    artifact_id text,
    metadata json,
    metrics text NOT NULL CHECK (metrics IN ('sent', 'pending', 'computed', 'failed')),
    computed text[] NOT NULL DEFAULT '{}',
    attempt integer NOT NULL DEFAULT 0,
    claimed_until timestamptz,
    handovers integer NOT NULL DEFAULT 0
) PARTITION BY RANGE (id);
CREATE INDEX evaluations_tenant_id_created_at_id ON evaluations (tenant_id, created_at DESC, id DESC);
CREATE INDEX evaluations_agent_name ON evaluations (tenant_id, agent_name, created_at DESC, id DESC)
    WHERE agent_name IS NOT NULL;
CREATE INDEX evaluations_artifact_id ON evaluations (tenant_id, artifact_id) WHERE artifact_id IS NOT NULL;
CREATE INDEX evaluations_execution_id ON evaluations (execution_id) WHERE execution_id IS NOT NULL;
CREATE INDEX evaluations_hallucinated ON evaluations (tenant_id, created_at DESC, id DESC) WHERE hallucinated;
CREATE INDEX evaluations_pending ON evaluations (id) WHERE metrics = 'pending';
CREATE INDEX evaluations_session_id ON evaluations (tenant_id, session_id) WHERE session_id IS NOT NULL;

-- Metadata of artifacts. There is no index on members of arrays or words of texts: behind row-level security Postgres
-- checks rows with operators it knows to be leak-proof before it uses any other index. Failed artifacts are few and
-- are read.
CREATE TABLE artifacts (
    id uuid PRIMARY KEY,
    kurral_id text NOT NULL,
    run_id text NOT NULL,
    tenant_id text NOT NULL,
    execution_id uuid,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text,
    received_at timestamptz NOT NULL,
    schema_version text NOT NULL,
    environment text NOT NULL,
    semantic_buckets text[] NOT NULL,
    deterministic boolean NOT NULL,
    replay_level text NOT NULL CHECK (replay_level IN ('A', 'B', 'C')),
    determinism_score double precision NOT NULL,
    status text NOT NULL CHECK (status IN ('ok', 'error')),
    error_type text,
    error_message text,
    model_name text,
    model_version text,
    provider text,
    duration_ms double precision,
    cost_usd double precision,
    prompt_tokens bigint,
    completion_tokens bigint,
    total_tokens bigint,
    tool_calls integer NOT NULL,
    tool_errors integer NOT NULL,
    graph_hash text,
    tags text[] NOT NULL,
    size_bytes bigint NOT NULL,
    labelled_tenant text,
    failures tsvector
) PARTITION BY RANGE (id);
CREATE INDEX artifacts_tenant_id_created_at_id ON artifacts (tenant_id, created_at DESC, id DESC);
CREATE INDEX artifacts_error_type ON artifacts (tenant_id, error_type) WHERE error_type IS NOT NULL;
CREATE INDEX artifacts_execution_id ON artifacts (execution_id) WHERE execution_id IS NOT NULL;
CREATE INDEX artifacts_failures ON artifacts (tenant_id, created_at DESC, id DESC)
    WHERE failures IS NOT NULL;
CREATE INDEX artifacts_run_id ON artifacts (tenant_id, run_id);

-- A `kurral_id` is unique in its tenant over all months, which an index on partitions cannot enforce.
CREATE TABLE artifact_ids (
    tenant_id text NOT NULL,
    kurral_id text NOT NULL,
    id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    PRIMARY KEY (tenant_id, kurral_id)
);

-- Compressed bodies on their way to object storage.
CREATE TABLE artifact_bodies (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    key text NOT NULL,
    packed bytea NOT NULL,
    since timestamptz NOT NULL,
    claimed_until timestamptz
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE artifact_bodies ALTER packed SET STORAGE EXTERNAL;

-- Objects of deleted artifacts. One whose body was being written is deleted again at `again_at`: the write may have
-- finished after the deletion.
CREATE TABLE doomed_objects (
    key text PRIMARY KEY,
    tenant_id text NOT NULL,
    due timestamptz NOT NULL,
    again_at timestamptz
);
CREATE INDEX doomed_objects_due ON doomed_objects (due);

-- Model calls. They are few compared with other records, so every filter of lists has its index.
CREATE TABLE costs (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    user_id uuid,
    created_at timestamptz NOT NULL,
    agent_id uuid,
    agent_name text,
    execution_id uuid,
    key_id uuid,
    workflow_id uuid,
    provider text NOT NULL,
    model text NOT NULL,
    model_name text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost_usd double precision NOT NULL CHECK (cost_usd >= 0 AND cost_usd < 1e9),
    estimated boolean NOT NULL,
    status text NOT NULL CHECK (status IN ('ok', 'error', 'cancelled')),
    error_type text,
    duration_ms double precision NOT NULL,
    first_token_ms double precision
) PARTITION BY RANGE (id);
CREATE INDEX costs_agent_id ON costs (tenant_id, agent_id, created_at DESC, id DESC);
CREATE INDEX costs_execution_id ON costs (execution_id) WHERE execution_id IS NOT NULL;
CREATE INDEX costs_key_id ON costs (tenant_id, key_id, created_at) WHERE key_id IS NOT NULL;
CREATE INDEX costs_model ON costs (tenant_id, model, created_at DESC, id DESC);
CREATE INDEX costs_model_name ON costs (tenant_id, model_name, created_at DESC, id DESC);
CREATE INDEX costs_provider ON costs (tenant_id, provider, created_at DESC, id DESC);
CREATE INDEX costs_status ON costs (tenant_id, status, created_at DESC, id DESC);
CREATE INDEX costs_tenant_id_created_at_id ON costs (tenant_id, created_at DESC, id DESC);
CREATE INDEX costs_workflow_id ON costs (tenant_id, workflow_id, created_at) WHERE workflow_id IS NOT NULL;

-- `spent` and `warned_at` belong to the period that began at `period_start`.
CREATE TABLE budgets (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    scope text NOT NULL CHECK (scope IN ('tenant', 'key', 'agent', 'workflow')),
    subject uuid,
    limit_nanos bigint NOT NULL CHECK (limit_nanos > 0),
    period text NOT NULL CHECK (period IN ('day', 'week', 'month', 'total')),
    enabled boolean NOT NULL,
    period_start timestamptz NOT NULL,
    spent bigint NOT NULL,
    warned_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CHECK ((subject IS NULL) = (scope = 'tenant'))
) WITH (fillfactor = 70);
CREATE INDEX budgets_tenant_id ON budgets (tenant_id);

-- Reservations for model calls under way. Rows come and go all the time, so dead rows must not be scanned for long:
-- hence the autovacuum settings, here and in similar tables.
CREATE TABLE cost_holds (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    execution_id uuid,
    subjects uuid[] NOT NULL,
    amount bigint NOT NULL,
    until timestamptz NOT NULL,
    root_id uuid
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX cost_holds_tenant_id ON cost_holds (tenant_id);
CREATE INDEX cost_holds_until ON cost_holds (until);

-- What each commit changed in the sums of one hour and one combination of dimensions. Deltas are written and folded
-- into rollups all the time.
CREATE TABLE stat_deltas (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('evaluations', 'artifacts', 'costs')),
    hour timestamptz NOT NULL,
    dims text[] NOT NULL,
    measures numeric[] NOT NULL,
    bins bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX stat_deltas_tenant_id_kind_hour ON stat_deltas (tenant_id, kind, hour);

-- The sums of an hour, day or month for one combination of dimensions. `dims_key` stands for `dims` in the key.
CREATE TABLE stat_rollups (
    tenant_id text NOT NULL,
    kind text NOT NULL,
    level text NOT NULL CHECK (level IN ('hour', 'day', 'month')),
    start timestamptz NOT NULL,
    dims_key uuid NOT NULL,
    dims text[] NOT NULL,
    measures numeric[] NOT NULL,
    bins bytea NOT NULL,
    PRIMARY KEY (tenant_id, kind, level, start, dims_key)
) WITH (fillfactor = 70);
