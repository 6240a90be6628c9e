"""What one tenant leaves to its neighbours: the last places of workers, and room on their disks."""

from infra.postgres.script import run

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    run(
        """
        -- What a version takes on a worker's disk, and what its installed requirements take, which others may share.
        ALTER TABLE agent_versions
            ADD unpacked_bytes bigint NOT NULL DEFAULT 0,
            ADD environment_bytes bigint NOT NULL DEFAULT 0;

        -- Which of these versions and environments belong to agents that were not deleted: the others leave the caches.
        CREATE FUNCTION known_versions(ids uuid[]) RETURNS SETOF uuid
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT v.id FROM agent_versions v JOIN agents a ON a.id = v.agent_id
            WHERE v.id = ANY (ids) AND a.deleted_at IS NULL
        $$;
        CREATE FUNCTION known_environments(names text[]) RETURNS SETOF text
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT n FROM unnest(names) AS n
            WHERE EXISTS (SELECT FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                          WHERE v.environment = n AND a.deleted_at IS NULL)
        $$;
        CREATE INDEX agent_versions_environment ON agent_versions (environment) WHERE environment IS NOT NULL;

        -- As before; the last `spare` of the slots are for tenants that have nothing running in this lane, if there
        -- is more than one tenant at all.
        DO $do$
        DECLARE
            before text := pg_get_functiondef('claim_runs'::regproc);
            after text := before;
            change text[];
        BEGIN
            FOREACH change SLICE 1 IN ARRAY ARRAY[
                ['of_lane text)', 'of_lane text, spare integer DEFAULT 0)'],
                ['count(*) AS runs FROM executions e',
                 'count(*) AS runs, count(*) FILTER (WHERE e.lane = of_lane) AS here FROM executions e'],
                ['sum(h.runs) AS runs FROM held', 'sum(h.runs) AS runs, sum(h.here) AS here FROM held'],
                ['SELECT f.id, least(t.max_concurrency, most) AS bound,',
                 'SELECT f.id, least(t.max_concurrency, most) AS bound, coalesce(o.here, 0) AS here,
                       row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.id) AS nth,'],
                ['SELECT r.id FROM ranked r WHERE r.bound IS NULL OR r.turn <= r.bound
                ORDER BY r.turn, r.id LIMIT slots',
                 'SELECT p.id FROM (
                    SELECT r.id, r.here = 0 AND r.nth = 1 AS newcomer,
                           row_number() OVER (ORDER BY r.here + r.nth > 1, r.turn, r.id) AS place
                    FROM ranked r WHERE r.bound IS NULL OR r.turn <= r.bound
                ) AS p
                WHERE p.place <= slots AND (p.newcomer OR p.place <= slots - CASE
                    WHEN (SELECT count(*) FROM (SELECT FROM tenants LIMIT 2) AS two) > 1 THEN spare ELSE 0 END)']
            ] LOOP
                IF position(change[1] IN after) = 0 THEN
                    RAISE EXCEPTION 'claim_runs has another form: %', change[1];
                END IF;
                after := replace(after, change[1], change[2]);
            END LOOP;
            DROP FUNCTION claim_runs;
            EXECUTE after;
        END $do$;

        -- As before; with `newcomers`, of tenants alone that have none being built, if there is more than one tenant.
        DROP FUNCTION next_build;
        CREATE FUNCTION next_build(newcomers boolean DEFAULT false) RETURNS TABLE (row_id uuid, tenant_id text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            SELECT v.id, v.tenant_id FROM agent_versions v LEFT JOIN (
                SELECT b.tenant_id, count(*) AS builds FROM agent_versions b WHERE b.status = 'building' GROUP BY 1
            ) AS held ON held.tenant_id = v.tenant_id
            WHERE v.status = 'queued' AND (
                NOT newcomers OR held.builds IS NULL
                OR (SELECT count(*) FROM (SELECT FROM tenants LIMIT 2) AS two) < 2)
            ORDER BY coalesce(held.builds, 0), v.id LIMIT 1
        $$;
        REVOKE ALL ON FUNCTION known_versions, known_environments, claim_runs, next_build FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION known_versions, known_environments, claim_runs, next_build TO paddock_app;
        """
    )
