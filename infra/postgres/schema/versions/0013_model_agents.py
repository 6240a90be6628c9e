"""Model agents: what they are, their lane, their steps and files; events of many runs at once."""

from infra.postgres.script import run

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run(
        """
        ALTER TABLE agents
            DROP CONSTRAINT agents_kind_check, ADD CONSTRAINT agents_kind_check CHECK (kind IN ('code', 'llm')),
            ADD role text, ADD goal text, ADD backstory text, ADD instructions text, ADD provider text, ADD model text,
            ADD fallback_model text, ADD temperature double precision, ADD max_tokens integer, ADD max_steps integer,
            ADD timeout integer, ADD tools text[] NOT NULL DEFAULT '{}', ADD allow_delegation boolean,
            ADD "verbose" boolean, ADD parent_id uuid REFERENCES agents;
        CREATE INDEX agents_parent_id ON agents (parent_id) WHERE parent_id IS NOT NULL;
        -- The models that an uploaded agent may call.
        ALTER TABLE agent_versions ADD models text[];

        ALTER TABLE executions
            DROP CONSTRAINT executions_kind_check,
            ADD CONSTRAINT executions_kind_check CHECK (kind IN ('agent', 'tool')),
            ADD lane text NOT NULL DEFAULT 'run' CHECK (lane IN ('run', 'llm')),
            -- What waits for its turn together: the executions of an agent, or those of none.
            ADD queue_id uuid NOT NULL
                GENERATED ALWAYS AS (coalesce(agent_id, '00000000-0000-0000-0000-000000000000'::uuid)) STORED,
            ADD mode text CHECK (mode IN ('safe', 'sandbox', 'yolo')), ADD model text, ADD spec json,
            ADD cost_limit double precision CHECK (cost_limit > 0), ADD key_id uuid, ADD workflow_id uuid,
            -- Claims that came after an approval rather than after a loss.
            ADD resumes integer NOT NULL DEFAULT 0, ADD waiting_for json;
        DROP INDEX executions_pending, executions_held;
        CREATE INDEX executions_pending ON executions (lane, tenant_id, queue_id, id) WHERE status = 'pending';
        CREATE INDEX executions_held ON executions (tenant_id, queue_id) WHERE status IN ('preparing', 'running');
        ALTER TABLE execution_events DROP CONSTRAINT execution_events_type_check,
            ADD CONSTRAINT execution_events_type_check CHECK (type IN (
                'status', 'log', 'token', 'thinking', 'model_call', 'tool_call', 'tool_result', 'cost', 'approval',
                'warning'));

        -- What a run has done, by its place in the run: a claim after a loss goes on from here.
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
        -- The workspace of a run: names here, bytes in object storage under `key`.
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

        -- A run of any lane is held and extended alike.
        CREATE OR REPLACE FUNCTION extend_leases(
            lane text, ids uuid[], attempts integer[], until timestamptz, stale timestamptz
        ) RETURNS SETOF uuid
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
            IF lane IN ('run', 'llm') THEN
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

        -- As before, for one lane; a tenant's bound counts what it has running in all lanes.
        DROP FUNCTION claim_runs;
        CREATE FUNCTION claim_runs(
            worker_id text, slots integer, claimed_at timestamptz, until timestamptz, at_hand uuid[], most integer,
            of_lane text
        ) RETURNS SETOF executions
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$ BEGIN
            -- One at a time: two workers that count at once would both find room for the same last one.
            PERFORM pg_advisory_xact_lock(1885430635, 1);
            RETURN QUERY
            WITH RECURSIVE queues AS (
                (SELECT e.tenant_id, e.queue_id FROM executions e WHERE e.status = 'pending' AND e.lane = of_lane
                 ORDER BY e.tenant_id, e.queue_id LIMIT 1)
                UNION ALL
                SELECT next.tenant_id, next.queue_id FROM queues q CROSS JOIN LATERAL (
                    SELECT e.tenant_id, e.queue_id FROM executions e
                    WHERE e.status = 'pending' AND e.lane = of_lane
                      AND (e.tenant_id, e.queue_id) > (q.tenant_id, q.queue_id)
                    ORDER BY e.tenant_id, e.queue_id LIMIT 1) AS next
            ), held AS (
                SELECT e.tenant_id, e.queue_id, count(*) AS runs FROM executions e
                WHERE e.status IN ('preparing', 'running') GROUP BY 1, 2
            ), of_tenant AS (
                SELECT h.tenant_id, sum(h.runs) AS runs FROM held h GROUP BY 1
            ), first AS (
                SELECT q.tenant_id, f.id
                FROM queues q LEFT JOIN agents a ON a.id = q.queue_id
                LEFT JOIN held h ON h.tenant_id = q.tenant_id AND h.queue_id = q.queue_id
                CROSS JOIN LATERAL (
                    SELECT e.id FROM executions e
                    WHERE e.status = 'pending' AND e.lane = of_lane
                      AND e.tenant_id = q.tenant_id AND e.queue_id = q.queue_id
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
                    status = CASE WHEN e.lane = 'llm' OR e.agent_version_id = ANY (at_hand) THEN 'running'
                                  ELSE 'preparing' END,
                    attempt = e.attempt + 1, last_seq = e.last_seq + 1, worker = worker_id,
                    lease_expires_at = until, started_at = coalesce(e.started_at, claimed_at), updated_at = claimed_at
                FROM free WHERE e.id = free.id RETURNING e.*
            ), noted AS (
                INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
                SELECT m.id, m.last_seq, m.tenant_id, claimed_at, 'status', json_build_object(
                    'status', m.status, 'attempt', m.attempt,
                    'error_type', m.error_type, 'error_message', m.error_message)
                FROM moved m
            ), freed AS (
                -- What an attempt before held for a call of a model is not held any more: nobody will settle it.
                DELETE FROM cost_holds h USING moved m WHERE h.execution_id = m.id AND m.attempt > 1
            )
            SELECT * FROM moved ORDER BY id;
        END $$;

        CREATE OR REPLACE FUNCTION settle_runs(
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
                RETURNING e.id, e.tenant_id, e.last_seq, e.status, e.attempt, e.error_type, e.error_message, g.lines,
                          e.lane
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
            SELECT m.id, m.attempt,
                   EXISTS (SELECT FROM executions e WHERE e.status = 'pending' AND e.lane = m.lane) FROM moved m
        $$;

        -- Appends to the logs of runs of any tenants, by exact id and fencing token, in one statement for all that
        -- stream at once. Event n belongs to the run `owners[n]`, of which it is number `numbers[n]` here. Returns
        -- the runs that were held.
        CREATE FUNCTION append_events(
            ids uuid[], attempts integer[], counts integer[], owners uuid[], numbers integer[], times timestamptz[],
            types text[], datas text[]
        ) RETURNS TABLE (id uuid, attempt integer)
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            WITH given AS (
                SELECT * FROM unnest(ids, attempts, counts) AS g(id, attempt, events)
            ), held AS (
                SELECT e.id FROM executions e JOIN given g ON e.id = g.id AND e.attempt = g.attempt
                WHERE e.status IN ('preparing', 'running') ORDER BY e.id FOR UPDATE OF e
            ), moved AS (
                UPDATE executions e SET last_seq = e.last_seq + g.events
                FROM given g JOIN held h ON h.id = g.id WHERE e.id = g.id
                RETURNING e.id, e.attempt, e.tenant_id, e.last_seq - g.events AS base
            ), noted AS (
                INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
                SELECT m.id, m.base + w.number, m.tenant_id, w.at, w.type, w.data::json
                FROM moved m JOIN unnest(owners, numbers, times, types, datas) AS w(owner, number, at, type, data)
                    ON w.owner = m.id
            )
            SELECT m.id, m.attempt FROM moved m
        $$;

        -- What follows in the logs of runs, for all who read along: each asks for a run of its own tenant, after
        -- the number that it has seen. A run that is not there, or is another tenant's, is left out.
        CREATE FUNCTION read_events(ids uuid[], tenants text[], seen integer[], most integer)
        RETURNS TABLE (place integer, status text, last_seq integer, seq integer, at timestamptz, type text, data json)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            SELECT a.place::integer, e.status, e.last_seq, v.seq, v.at, v.type, v.data
            FROM unnest(ids, tenants, seen) WITH ORDINALITY AS a(id, tenant, seen, place)
            JOIN executions e ON e.id = a.id AND e.tenant_id = a.tenant
            LEFT JOIN LATERAL (
                -- Up to a mebibyte and one event more: tools' results may be large, and readers many.
                SELECT w.seq, w.at, w.type, w.data FROM (
                    SELECT x.*, sum(octet_length(x.data::text)) OVER (ORDER BY x.seq) - octet_length(x.data::text)
                        AS before
                    FROM (SELECT o.seq, o.at, o.type, o.data FROM execution_events o
                          WHERE o.execution_id = e.id AND o.seq > a.seen ORDER BY o.seq LIMIT most) AS x
                ) AS w WHERE w.before < 1048576
            ) AS v ON true
            ORDER BY a.place, v.seq
        $$;
        REVOKE ALL ON FUNCTION claim_runs, append_events, read_events FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION claim_runs, append_events, read_events TO paddock_app;

        CREATE OR REPLACE FUNCTION failed_since(since timestamptz, tenant text)
        RETURNS TABLE (lane text, failed bigint)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT e.lane, count(*) FROM executions e
            WHERE e.completed_at >= since AND e.status = 'failed' AND (tenant IS NULL OR e.tenant_id = tenant)
            GROUP BY e.lane
            UNION ALL
            SELECT 'build', count(*) FROM agent_versions
            WHERE updated_at >= since AND status = 'failed' AND (tenant IS NULL OR tenant_id = tenant)
        $$;
        CREATE OR REPLACE VIEW open_work AS
            SELECT 'build' AS lane, id AS row_id, tenant_id, attempt, status = 'queued' AS waiting,
                   updated_at AS since, lease_expires_at
            FROM agent_versions WHERE status IN ('queued', 'building')
            UNION ALL
            SELECT lane, id, tenant_id, attempt, status = 'pending', updated_at, lease_expires_at
            FROM executions WHERE status IN ('pending', 'preparing', 'running')
            UNION ALL
            SELECT 'record', id, tenant_id, 0, claimed_until IS NULL, since, NULL FROM artifact_bodies
            UNION ALL
            SELECT 'record', id, tenant_id, attempt, claimed_until IS NULL, created_at, NULL
            FROM evaluations WHERE metrics = 'pending';
        CREATE OR REPLACE FUNCTION known_objects(paths text[]) RETURNS SETOF text
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT p FROM unnest(paths) AS p
            WHERE EXISTS (SELECT FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                          WHERE (v.tarball_path = p OR v.bundle_path = p
                                 OR 'environments/' || v.environment || '.tar.gz' = p) AND a.deleted_at IS NULL)
               OR EXISTS (SELECT FROM workspace_files f WHERE f.key = p)
        $$;
        """
    )
    for table, rights in (("execution_steps", "SELECT, INSERT, UPDATE"), ("workspace_files", "SELECT, INSERT, UPDATE")):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
