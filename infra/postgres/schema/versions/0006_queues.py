"""Open work over all tenants, as ids and times alone; and the workers' signs of life."""

from infra.postgres.script import run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run(
        """
        CREATE TABLE workers (
            id text PRIMARY KEY,
            lane text NOT NULL,
            host text NOT NULL,
            pid integer NOT NULL,
            slots integer NOT NULL,
            busy integer NOT NULL,
            problem text,
            started_at timestamptz NOT NULL,
            seen_at timestamptz NOT NULL
        );
        GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO paddock_app;

        -- A view reads as its owner, past row-level security: it must never show what a tenant wrote.
        CREATE VIEW open_work AS
            SELECT 'build' AS lane, id AS row_id, tenant_id, attempt, status = 'queued' AS waiting,
                   updated_at AS since, lease_expires_at
            FROM agent_versions WHERE status IN ('queued', 'building')
            UNION ALL
            SELECT 'run', id, tenant_id, attempt, status = 'pending', updated_at, lease_expires_at
            FROM executions WHERE status IN ('pending', 'preparing', 'running');
        GRANT SELECT ON open_work TO paddock_app;

        -- A worker holds rows of many tenants; it extends them all at once, by exact id and fencing token.
        -- Only leases that end before `stale` are written; all rows that are still held are returned.
        CREATE FUNCTION extend_leases(
            lane text, ids uuid[], attempts integer[], until timestamptz, stale timestamptz
        ) RETURNS SETOF uuid
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
            IF lane = 'run' THEN
                UPDATE executions e SET lease_expires_at = until
                FROM (SELECT x.id FROM executions x JOIN unnest(ids, attempts) AS h(id, attempt)
                      ON x.id = h.id AND x.attempt = h.attempt
                      WHERE x.status IN ('preparing', 'running') AND x.lease_expires_at < stale
                      ORDER BY x.id FOR UPDATE OF x) AS held
                WHERE e.id = held.id;
                RETURN QUERY SELECT e.id FROM executions e JOIN unnest(ids, attempts) AS h(id, attempt)
                ON e.id = h.id AND e.attempt = h.attempt WHERE e.status IN ('preparing', 'running');
            ELSE
                UPDATE agent_versions v SET lease_expires_at = until
                FROM (SELECT x.id FROM agent_versions x JOIN unnest(ids, attempts) AS h(id, attempt)
                      ON x.id = h.id AND x.attempt = h.attempt
                      WHERE x.status = 'building' AND x.lease_expires_at < stale
                      ORDER BY x.id FOR UPDATE OF x) AS held
                WHERE v.id = held.id;
                RETURN QUERY SELECT v.id FROM agent_versions v JOIN unnest(ids, attempts) AS h(id, attempt)
                ON v.id = h.id AND v.attempt = h.attempt WHERE v.status = 'building';
            END IF;
        END $$;
        CREATE FUNCTION failed_since(since timestamptz, tenant text) RETURNS TABLE (lane text, failed bigint)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT 'run', count(*) FROM executions
            WHERE completed_at >= since AND status = 'failed' AND (tenant IS NULL OR tenant_id = tenant)
            UNION ALL
            SELECT 'build', count(*) FROM agent_versions
            WHERE updated_at >= since AND status = 'failed' AND (tenant IS NULL OR tenant_id = tenant)
        $$;
        CREATE FUNCTION run_states(since timestamptz) RETURNS TABLE (status text, runs bigint)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT e.status, count(*) FROM executions e
            WHERE e.status IN ('pending', 'preparing', 'running', 'waiting') GROUP BY 1
            UNION ALL
            SELECT e.status, count(*) FROM executions e WHERE e.completed_at >= since GROUP BY 1
        $$;
        REVOKE ALL ON FUNCTION extend_leases, failed_since, run_states FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION extend_leases, failed_since, run_states TO paddock_app;
        """
    )
