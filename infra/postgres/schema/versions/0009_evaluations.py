"""Evaluations, in a partition for each month of their receipt; and the partitions themselves."""

from infra.postgres.script import run

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run(
        """
        CREATE TABLE evaluations (
            id uuid NOT NULL,
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
            PRIMARY KEY (id)
        ) PARTITION BY RANGE (id);
        CREATE INDEX evaluations_tenant_id_created_at_id ON evaluations (tenant_id, created_at DESC, id DESC);
        CREATE INDEX evaluations_hallucinated ON evaluations (tenant_id, created_at DESC, id DESC) WHERE hallucinated;
        CREATE INDEX evaluations_agent_name ON evaluations (tenant_id, agent_name, created_at DESC, id DESC)
            WHERE agent_name IS NOT NULL;
        CREATE INDEX evaluations_session_id ON evaluations (tenant_id, session_id) WHERE session_id IS NOT NULL;
        CREATE INDEX evaluations_execution_id ON evaluations (execution_id) WHERE execution_id IS NOT NULL;
        CREATE INDEX evaluations_artifact_id ON evaluations (tenant_id, artifact_id) WHERE artifact_id IS NOT NULL;
        CREATE INDEX evaluations_pending ON evaluations (id) WHERE metrics = 'pending';
        ALTER TABLE evaluations ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON evaluations TO paddock_app
            USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT, INSERT, UPDATE, DELETE ON evaluations TO paddock_app;

        -- The smallest id (UUIDv7) that can be given out at a time: ids are what record tables are partitioned by,
        -- so that an id alone leads to its partition, and late records need no old one.
        CREATE FUNCTION first_id(at timestamptz) RETURNS uuid
        LANGUAGE sql IMMUTABLE AS $$
            SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
        $$;

        -- Makes the partitions of a record table for the month of `at` and `ahead` more. Returns how many were missing.
        CREATE FUNCTION make_partitions(record_table text, at timestamptz, ahead integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
        DECLARE
            made integer := 0;
            begun timestamptz;
            ended timestamptz;
            part text;
        BEGIN
            IF record_table NOT IN ('evaluations', 'artifacts') THEN
                RAISE EXCEPTION 'no record table: %', record_table;
            END IF;
            PERFORM pg_advisory_xact_lock(1885430635, 2);
            FOR number IN 0..ahead LOOP
                begun := (date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => number))
                    AT TIME ZONE 'UTC';
                ended := (date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => number + 1))
                    AT TIME ZONE 'UTC';
                part := record_table || to_char(begun AT TIME ZONE 'UTC', '_YYYY_MM');
                IF to_regclass(part) IS NULL THEN
                    -- Attached rather than made in place: that leaves readers and writers of the table alone.
                    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                                   part, record_table);
                    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part);
                    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                                   record_table, part, first_id(begun), first_id(ended));
                    made := made + 1;
                END IF;
            END LOOP;
            RETURN made;
        END $$;

        -- Drops one partition of a record table whose month ended before `before` and which holds no row any more.
        -- The table is locked before its partition, as everybody else does it, and not waited for: whoever reads for
        -- long would hold up all that come after us. Returns how many it dropped.
        CREATE FUNCTION drop_empty_partition(record_table text, before timestamptz) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s' AS $$
        DECLARE
            part text;
            empty boolean;
            begun timestamptz;
        BEGIN
            IF record_table NOT IN ('evaluations', 'artifacts') THEN
                RAISE EXCEPTION 'no record table: %', record_table;
            END IF;
            PERFORM pg_advisory_xact_lock(1885430635, 2);
            FOR part IN
                SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = record_table::regclass
                  AND c.relname < record_table || to_char(before AT TIME ZONE 'UTC', '_YYYY_MM')
                ORDER BY 1
            LOOP
                begun := clock_timestamp();
                EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
                -- Just deleted rows make the look long until they are vacuumed; nobody is to be locked out for that.
                CONTINUE WHEN NOT empty OR clock_timestamp() - begun > interval '1 second';
                EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', record_table);
                EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
                IF empty THEN
                    EXECUTE format('DROP TABLE %I', part);
                    RETURN 1;
                END IF;
                RETURN 0;
            END LOOP;
            RETURN 0;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            RETURN 0;
        END $$;

        -- Takes evaluations of any tenants whose metrics are still to be computed.
        -- Up to `most_bytes` of texts, but for a first one that is larger.
        CREATE FUNCTION claim_evaluations(most integer, most_bytes bigint, now timestamptz, until timestamptz)
        RETURNS SETOF evaluations
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            -- What its workers died of again and again is not tried for ever.
            UPDATE evaluations e SET metrics = 'failed', claimed_until = NULL
            WHERE e.metrics = 'pending' AND e.attempt >= 3 AND e.claimed_until < now;
            WITH free AS (
                SELECT p.id, octet_length(p.prompt) + octet_length(p.response)
                           + coalesce(octet_length(p.retrieved_docs::text), 0) AS size
                FROM evaluations p
                WHERE p.metrics = 'pending' AND (p.claimed_until IS NULL OR p.claimed_until < now)
                ORDER BY p.id LIMIT most FOR UPDATE SKIP LOCKED
            ), light AS (
                SELECT f.id FROM (SELECT g.id, g.size, sum(g.size) OVER (ORDER BY g.id) AS total FROM free g) AS f
                WHERE f.total - f.size < most_bytes
            )
            UPDATE evaluations e SET attempt = e.attempt + 1, claimed_until = until
            FROM light l WHERE e.id = l.id RETURNING e.*
        $$;
        REVOKE ALL ON FUNCTION make_partitions, drop_empty_partition, claim_evaluations FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION make_partitions, drop_empty_partition, claim_evaluations TO paddock_app;
        SELECT make_partitions('evaluations', now(), 2);
        """
    )
