"""Artifacts, their bodies until they are in object storage, and what is to be deleted there."""

from infra.postgres.script import run

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run(
        """
        CREATE TABLE artifacts (
            id uuid NOT NULL,
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
            failures tsvector,
            PRIMARY KEY (id)
        ) PARTITION BY RANGE (id);
        CREATE INDEX artifacts_tenant_id_created_at_id ON artifacts (tenant_id, created_at DESC, id DESC);
        CREATE INDEX artifacts_run_id ON artifacts (tenant_id, run_id);
        CREATE INDEX artifacts_execution_id ON artifacts (execution_id) WHERE execution_id IS NOT NULL;
        CREATE INDEX artifacts_error_type ON artifacts (tenant_id, error_type) WHERE error_type IS NOT NULL;
        -- No index for members of arrays and words of texts: behind row-level security Postgres looks into rows with
        -- operators it knows to leak nothing, before any index of others. What failed is little, and is read.
        CREATE INDEX artifacts_failures ON artifacts (tenant_id, created_at DESC, id DESC) WHERE failures IS NOT NULL;
        -- A `kurral_id` is unique in its tenant whatever the month, which an index on partitions cannot promise.
        CREATE TABLE artifact_ids (
            tenant_id text NOT NULL,
            kurral_id text NOT NULL,
            id uuid NOT NULL,
            fingerprint bytea NOT NULL,
            PRIMARY KEY (tenant_id, kurral_id)
        );
        CREATE TABLE artifact_bodies (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL,
            key text NOT NULL,
            packed bytea NOT NULL,
            since timestamptz NOT NULL,
            claimed_until timestamptz
        );
        -- They are compressed already.
        ALTER TABLE artifact_bodies ALTER packed SET STORAGE EXTERNAL;
        ALTER TABLE artifact_bodies SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
        -- Objects of deleted artifacts. One whose body was being written is deleted again at `again_at`: the
        -- writing may have outlived the deleting.
        CREATE TABLE doomed_objects (
            key text PRIMARY KEY,
            tenant_id text NOT NULL,
            due timestamptz NOT NULL,
            again_at timestamptz
        );
        CREATE INDEX doomed_objects_due ON doomed_objects (due);
        ALTER TABLE executions ADD recorded boolean NOT NULL DEFAULT false;
        CREATE INDEX executions_unrecorded ON executions (completed_at)
            WHERE completed_at IS NOT NULL AND NOT recorded;

        CREATE FUNCTION claim_bodies(most integer, most_bytes bigint, now timestamptz, until timestamptz)
        RETURNS TABLE (id uuid, key text, packed bytea)
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH free AS (
                SELECT b.id, octet_length(b.packed) AS size FROM artifact_bodies b
                WHERE b.claimed_until IS NULL OR b.claimed_until < now
                ORDER BY b.id LIMIT most FOR UPDATE SKIP LOCKED
            ), light AS (
                SELECT f.id FROM (SELECT g.id, g.size, sum(g.size) OVER (ORDER BY g.id) AS total FROM free g) AS f
                WHERE f.total - f.size < most_bytes
            )
            UPDATE artifact_bodies b SET claimed_until = until FROM light l WHERE b.id = l.id
            RETURNING b.id, b.key, b.packed
        $$;
        -- Returns which of them are not wanted any more. The same again says the same: what does not wait may just
        -- be stored already.
        CREATE FUNCTION stored_bodies(ids uuid[]) RETURNS SETOF uuid
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            DELETE FROM artifact_bodies b WHERE b.id = ANY (ids);
            SELECT i.id FROM unnest(ids) AS i(id) WHERE NOT EXISTS (SELECT FROM artifacts a WHERE a.id = i.id)
        $$;
        CREATE FUNCTION release_bodies(ids uuid[]) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            UPDATE artifact_bodies b SET claimed_until = NULL WHERE b.id = ANY (ids)
        $$;
        CREATE FUNCTION due_objects(now timestamptz, most integer) RETURNS SETOF text
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT d.key FROM doomed_objects d WHERE d.due <= now ORDER BY d.due LIMIT most
        $$;
        CREATE FUNCTION gone_objects(keys text[], now timestamptz) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            DELETE FROM doomed_objects d WHERE d.key = ANY (keys) AND d.again_at IS NULL AND d.due <= now;
            UPDATE doomed_objects d SET due = d.again_at, again_at = NULL
            WHERE d.key = ANY (keys) AND d.again_at IS NOT NULL;
        $$;
        CREATE FUNCTION unrecorded_executions(most integer) RETURNS TABLE (tenant_id text, id uuid)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT e.tenant_id, e.id FROM executions e WHERE e.completed_at IS NOT NULL AND NOT e.recorded
            ORDER BY e.completed_at LIMIT most
        $$;
        REVOKE ALL ON FUNCTION claim_bodies, stored_bodies, release_bodies, due_objects, gone_objects,
            unrecorded_executions FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION claim_bodies, stored_bodies, release_bodies, due_objects, gone_objects,
            unrecorded_executions TO paddock_app;

        -- What records wait for is seen like the other lanes' work. Its claims run out by themselves.
        CREATE OR REPLACE VIEW open_work AS
            SELECT 'build' AS lane, id AS row_id, tenant_id, attempt, status = 'queued' AS waiting,
                   updated_at AS since, lease_expires_at
            FROM agent_versions WHERE status IN ('queued', 'building')
            UNION ALL
            SELECT 'run', id, tenant_id, attempt, status = 'pending', updated_at, lease_expires_at
            FROM executions WHERE status IN ('pending', 'preparing', 'running')
            UNION ALL
            SELECT 'record', id, tenant_id, 0, claimed_until IS NULL, since, NULL FROM artifact_bodies
            UNION ALL
            SELECT 'record', id, tenant_id, attempt, claimed_until IS NULL, created_at, NULL
            FROM evaluations WHERE metrics = 'pending';
        SELECT make_partitions('artifacts', now(), 2);
        """
    )
    for table, rights in (
        ("artifacts", "SELECT, INSERT, DELETE"),
        ("artifact_ids", "SELECT, INSERT, DELETE"),
        ("artifact_bodies", "SELECT, INSERT, DELETE"),
        ("doomed_objects", "SELECT, INSERT"),
    ):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
