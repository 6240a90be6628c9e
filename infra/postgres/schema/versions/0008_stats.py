"""Sums of records: deltas of commits, and the rollups that workers fold them into."""

from infra.postgres.script import run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run(
        """
        CREATE TABLE stat_deltas (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            tenant_id text NOT NULL,
            kind text NOT NULL CHECK (kind IN ('artifacts', 'evaluations')),
            hour timestamptz NOT NULL,
            dims text[] NOT NULL,
            measures numeric[] NOT NULL,
            bins bytea NOT NULL
        );
        CREATE INDEX stat_deltas_tenant_id_kind_hour ON stat_deltas (tenant_id, kind, hour);
        -- Written and folded away all the time: what is gone must not be looked at for long.
        ALTER TABLE stat_deltas SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
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
        -- Which tenants have deltas, without looking at each delta: one step through the index per tenant.
        -- Those after a given one in the order of tenants, so that a round that ends early goes on where it ended.
        CREATE FUNCTION unfolded(after_tenant text, after_kind text, most integer)
        RETURNS TABLE (tenant_id text, kind text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH RECURSIVE found AS (
                (SELECT d.tenant_id, d.kind FROM stat_deltas d
                 WHERE (d.tenant_id, d.kind) > (after_tenant, after_kind) ORDER BY d.tenant_id, d.kind LIMIT 1)
                UNION ALL
                SELECT n.tenant_id, n.kind FROM found f CROSS JOIN LATERAL (
                    SELECT d.tenant_id, d.kind FROM stat_deltas d
                    WHERE (d.tenant_id, d.kind) > (f.tenant_id, f.kind) ORDER BY d.tenant_id, d.kind LIMIT 1) AS n
            )
            SELECT f.tenant_id, f.kind FROM found f LIMIT most
        $$;
        REVOKE ALL ON FUNCTION unfolded FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION unfolded TO paddock_app;
        """
    )
    for table, rights in (
        ("stat_deltas", "SELECT, INSERT, DELETE"),
        ("stat_rollups", "SELECT, INSERT, UPDATE, DELETE"),
    ):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
