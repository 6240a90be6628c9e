"""Fair lanes: what is claimed next is decided over all tenants, within the limits of agents and tenants."""

from infra.postgres.script import run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run(
        """
        ALTER TABLE agents
            ADD max_concurrency integer CHECK (max_concurrency > 0),
            ADD concurrency_policy text NOT NULL DEFAULT 'queue'
                CHECK (concurrency_policy IN ('queue', 'reject', 'replace'));
        ALTER TABLE tenants ADD max_concurrency integer CHECK (max_concurrency > 0);
        GRANT UPDATE (max_concurrency) ON tenants TO paddock_app;
        ALTER TABLE workers ADD warm integer NOT NULL DEFAULT 0, ADD blank integer NOT NULL DEFAULT 0;
        CREATE INDEX executions_pending ON executions (tenant_id, agent_id, id) WHERE status = 'pending';
        CREATE INDEX executions_held ON executions (tenant_id, agent_id) WHERE status IN ('preparing', 'running');
        -- Claiming reads the short indexes above again and again: dead entries in them must go soon.
        ALTER TABLE executions SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

        -- Claims up to `slots` pending runs over all tenants, and notes it in their logs. Turn by turn: a tenant's
        -- turn is its place in its own queue plus what it has running, and the lowest turn goes first, so that
        -- whoever has the least goes next, however long the queues of others are. `most` bounds every tenant.
        CREATE FUNCTION claim_runs(
            worker_id text, slots integer, claimed_at timestamptz, until timestamptz, at_hand uuid[], most integer
        ) RETURNS SETOF executions
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$ BEGIN
            -- One at a time: two workers that count at once would both find room for the same last one.
            PERFORM pg_advisory_xact_lock(1885430635, 1);
            RETURN QUERY
            WITH RECURSIVE queues AS (
                (SELECT e.tenant_id, e.agent_id FROM executions e WHERE e.status = 'pending'
                 ORDER BY e.tenant_id, e.agent_id LIMIT 1)
                UNION ALL
                SELECT next.tenant_id, next.agent_id FROM queues q CROSS JOIN LATERAL (
                    SELECT e.tenant_id, e.agent_id FROM executions e
                    WHERE e.status = 'pending' AND (e.tenant_id, e.agent_id) > (q.tenant_id, q.agent_id)
                    ORDER BY e.tenant_id, e.agent_id LIMIT 1) AS next
            ), held AS (
                SELECT e.tenant_id, e.agent_id, count(*) AS runs FROM executions e
                WHERE e.status IN ('preparing', 'running') GROUP BY 1, 2
            ), of_tenant AS (
                SELECT h.tenant_id, sum(h.runs) AS runs FROM held h GROUP BY 1
            ), first AS (
                SELECT q.tenant_id, f.id
                FROM queues q JOIN agents a ON a.id = q.agent_id LEFT JOIN held h ON h.agent_id = q.agent_id
                CROSS JOIN LATERAL (
                    SELECT e.id FROM executions e
                    WHERE e.status = 'pending' AND e.tenant_id = q.tenant_id AND e.agent_id = q.agent_id
                    ORDER BY e.id
                    LIMIT greatest(0, least(slots, coalesce(a.max_concurrency - coalesce(h.runs, 0), slots)))
                ) AS f
            ), ranked AS (
                SELECT f.id, least(t.max_concurrency, most) AS bound,
                       coalesce(o.runs, 0) + row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.id) AS turn
                FROM first f JOIN tenants t ON t.id = f.tenant_id LEFT JOIN of_tenant o ON o.tenant_id = f.tenant_id
            ), chosen AS (
                SELECT r.id FROM ranked r WHERE r.bound IS NULL OR r.turn <= r.bound
                ORDER BY r.turn, r.id LIMIT slots
            ), free AS (
                SELECT e.id FROM executions e WHERE e.id IN (SELECT c.id FROM chosen c) AND e.status = 'pending'
                FOR UPDATE SKIP LOCKED
            ), moved AS (
                UPDATE executions e SET
                    status = CASE WHEN e.agent_version_id = ANY (at_hand) THEN 'running' ELSE 'preparing' END,
                    attempt = e.attempt + 1, last_seq = e.last_seq + 1, worker = worker_id,
                    lease_expires_at = until, started_at = coalesce(e.started_at, claimed_at), updated_at = claimed_at
                FROM free WHERE e.id = free.id RETURNING e.*
            ), noted AS (
                INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
                SELECT m.id, m.last_seq, m.tenant_id, claimed_at, 'status', json_build_object(
                    'status', m.status, 'attempt', m.attempt,
                    'error_type', m.error_type, 'error_message', m.error_message)
                FROM moved m
            )
            SELECT * FROM moved ORDER BY id;
        END $$;

        -- Settles runs of any tenants by exact id and fencing token, with the last lines of their logs, and
        -- returns those that were still held, and whether runs wait. Line n belongs to the run `line_owners[n]`.
        CREATE FUNCTION settle_runs(
            ids uuid[], attempts integer[], statuses text[], outputs text[], error_types text[],
            error_messages text[], lines integer[], settled_at timestamptz, line_owners uuid[],
            line_attempts integer[], line_numbers integer[], line_times timestamptz[], line_data text[]
        ) RETURNS TABLE (id uuid, attempt integer, waiting boolean)
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            WITH given AS (
                SELECT * FROM unnest(ids, attempts, statuses, outputs, error_types, error_messages, lines)
                    AS g(id, attempt, status, output, error_type, error_message, lines)
            ), held AS (
                SELECT e.id, e.attempt FROM executions e JOIN given g ON e.id = g.id AND e.attempt = g.attempt
                WHERE e.status IN ('preparing', 'running') ORDER BY e.id FOR UPDATE OF e
            ), moved AS (
                UPDATE executions e SET
                    status = g.status, output_data = g.output::json, error_type = g.error_type,
                    error_message = g.error_message, last_seq = e.last_seq + g.lines + 1,
                    steps_completed = CASE WHEN g.status = 'completed' THEN e.steps_total ELSE e.steps_completed END,
                    lease_expires_at = NULL, completed_at = settled_at, updated_at = settled_at
                FROM given g JOIN held h ON h.id = g.id AND h.attempt = g.attempt WHERE e.id = g.id
                RETURNING e.id, e.tenant_id, e.last_seq, e.status, e.attempt, e.error_type, e.error_message, g.lines
            ), noted AS (
                INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
                SELECT m.id, m.last_seq - 1 - m.lines + w.number, m.tenant_id, w.at, 'log', w.data::json
                FROM moved m JOIN unnest(line_owners, line_attempts, line_numbers, line_times, line_data)
                    AS w(owner, attempt, number, at, data) ON w.owner = m.id AND w.attempt = m.attempt
                UNION ALL
                SELECT m.id, m.last_seq, m.tenant_id, settled_at, 'status', json_build_object(
                    'status', m.status, 'attempt', m.attempt,
                    'error_type', m.error_type, 'error_message', m.error_message)
                FROM moved m
            )
            SELECT m.id, m.attempt, EXISTS (SELECT FROM executions e WHERE e.status = 'pending') FROM moved m
        $$;

        -- The queued version to build next: of the tenant with the fewest being built, the oldest.
        CREATE FUNCTION next_build() RETURNS TABLE (row_id uuid, tenant_id text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            SELECT v.id, v.tenant_id FROM agent_versions v LEFT JOIN (
                SELECT b.tenant_id, count(*) AS builds FROM agent_versions b WHERE b.status = 'building' GROUP BY 1
            ) AS held ON held.tenant_id = v.tenant_id
            WHERE v.status = 'queued' ORDER BY coalesce(held.builds, 0), v.id LIMIT 1
        $$;
        REVOKE ALL ON FUNCTION claim_runs, settle_runs, next_build FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION claim_runs, settle_runs, next_build TO paddock_app;
        """
    )
