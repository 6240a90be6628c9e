"""Plans: executions that are made of others, which are their children."""

from infra.postgres.script import run

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    run(
        """
        ALTER TABLE executions
            DROP CONSTRAINT executions_kind_check,
            ADD CONSTRAINT executions_kind_check CHECK (kind IN ('agent', 'tool', 'crew', 'workflow', 'generation')),
            DROP CONSTRAINT executions_lane_check,
            ADD CONSTRAINT executions_lane_check CHECK (lane IN ('run', 'llm', 'plan')),
            -- What its agent was called then.
            ADD COLUMN agent_name text,
            ADD COLUMN crew_id uuid, ADD COLUMN schedule_id uuid,
            -- The plan that this is a step of, the one that all belongs to, and which step: `review`, `review[3]`.
            ADD COLUMN parent_id uuid REFERENCES executions, ADD COLUMN root_id uuid, ADD COLUMN step text;
        UPDATE executions SET agent_name = regexp_replace(run_name, '-[^-]*$', '') WHERE agent_id IS NOT NULL;
        DROP INDEX executions_tenant_id_id;
        -- Lists show what was started, not the steps of it.
        CREATE INDEX executions_tenant_id_id ON executions (tenant_id, id DESC) WHERE parent_id IS NULL;
        CREATE INDEX executions_parent_id ON executions (parent_id, id) WHERE parent_id IS NOT NULL;
        CREATE INDEX executions_root_id ON executions (root_id, id) WHERE root_id IS NOT NULL;
        CREATE INDEX executions_crew_id ON executions (crew_id, id DESC) WHERE crew_id IS NOT NULL;
        CREATE INDEX executions_workflow_id ON executions (workflow_id, id DESC) WHERE workflow_id IS NOT NULL;
        CREATE INDEX executions_schedule_id ON executions (schedule_id, id DESC) WHERE schedule_id IS NOT NULL;

        -- Plans are no part of either: they are captured as what they are made of, and hold no worker. Claims and
        -- captures look often, and would go through them all each time.
        DROP INDEX executions_unrecorded, executions_held;
        CREATE INDEX executions_unrecorded ON executions (completed_at)
            WHERE completed_at IS NOT NULL AND NOT recorded AND lane <> 'plan';
        CREATE INDEX executions_held ON executions (tenant_id, queue_id)
            WHERE status IN ('preparing', 'running') AND lane <> 'plan';

        ALTER TABLE execution_events DROP CONSTRAINT execution_events_type_check,
            ADD CONSTRAINT execution_events_type_check CHECK (type IN (
                'status', 'log', 'token', 'thinking', 'model_call', 'tool_call', 'tool_result', 'cost', 'approval',
                'warning', 'step'));

        CREATE TABLE plans (
            execution_id uuid PRIMARY KEY REFERENCES executions,
            tenant_id text NOT NULL,
            plan json NOT NULL,
            -- Calls of models in a minute, over all that it runs.
            max_rpm integer,
            -- How often its steps were written down: who knows this one knows them all.
            revision integer NOT NULL DEFAULT 0
        );
        -- When models were called in the last minute, where that is bounded.
        CREATE TABLE plan_calls (
            execution_id uuid PRIMARY KEY,
            tenant_id text NOT NULL,
            calls timestamptz[] NOT NULL
        );
        CREATE TABLE plan_steps (
            execution_id uuid NOT NULL REFERENCES plans,
            step text NOT NULL,
            -- -1 is the step itself, others are items of the list that it is mapped over.
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
        -- What may have changed for a plan, or will at some time. Rows are only ever added and deleted, so that nobody
        -- who settles a child waits for who advances its plan, nor the other way round.
        CREATE TABLE plan_signals (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            execution_id uuid NOT NULL,
            tenant_id text NOT NULL,
            due_at timestamptz NOT NULL
        );
        CREATE INDEX plan_signals_due_at ON plan_signals (due_at);
        CREATE INDEX plan_signals_execution_id ON plan_signals (execution_id);
        ALTER TABLE plan_signals SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

        -- However a child comes to its end, or waits for decisions, its plan learns of it in the same transaction.
        CREATE FUNCTION signal_plan() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
            IF NEW.parent_id IS NOT NULL THEN
                INSERT INTO plan_signals (execution_id, tenant_id, due_at)
                VALUES (NEW.parent_id, NEW.tenant_id, to_timestamp(0));
            END IF;
            IF NEW.lane = 'plan' AND NEW.status = 'cancelled' THEN
                INSERT INTO plan_signals (execution_id, tenant_id, due_at)
                VALUES (NEW.id, NEW.tenant_id, to_timestamp(0));
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER signal_plan AFTER UPDATE OF status, waiting_for ON executions FOR EACH ROW
            WHEN (
                (NEW.status <> OLD.status AND (
                    (NEW.parent_id IS NOT NULL AND (
                        NEW.status IN ('completed', 'failed', 'cancelled', 'waiting') OR OLD.status = 'waiting'))
                    OR (NEW.lane = 'plan' AND NEW.status = 'cancelled')))
                OR (NEW.parent_id IS NOT NULL AND NEW.status = 'waiting' AND OLD.status = 'waiting'
                    AND NEW.waiting_for::text IS DISTINCT FROM OLD.waiting_for::text))
            EXECUTE FUNCTION signal_plan();

        -- Plans of any tenants that something may have changed for, and how many seconds to the next that is known of.
        CREATE FUNCTION due_plans(at timestamptz, most integer)
        RETURNS TABLE (execution_id uuid, tenant_id text, next double precision)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off AS $$
            SELECT d.*, NULL::double precision FROM (
                SELECT s.execution_id, s.tenant_id FROM plan_signals s WHERE s.due_at <= at
                GROUP BY 1, 2 ORDER BY min(s.id) LIMIT most) AS d
            UNION ALL
            SELECT NULL, NULL, extract(epoch FROM min(s.due_at) - at)::double precision
            FROM plan_signals s WHERE s.due_at > at
        $$;
        REVOKE ALL ON FUNCTION due_plans, signal_plan FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION due_plans TO paddock_app;

        CREATE OR REPLACE FUNCTION unrecorded_executions(most integer) RETURNS TABLE (tenant_id text, id uuid)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT e.tenant_id, e.id FROM executions e
            WHERE e.completed_at IS NOT NULL AND NOT e.recorded AND e.lane <> 'plan'
            ORDER BY e.completed_at LIMIT most
        $$;

        -- As before; plans do not count as running, what they are made of does.
        CREATE OR REPLACE FUNCTION claim_runs(
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
                WHERE e.status IN ('preparing', 'running') AND e.lane <> 'plan' GROUP BY 1, 2
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


        -- As before, but a run's own limit is that of all that it belongs to, `root`.
        ALTER TABLE cost_holds ADD COLUMN root_id uuid;
        UPDATE cost_holds SET root_id = execution_id;
        DROP FUNCTION hold_cost, spend_cost;
        CREATE FUNCTION hold_cost(
            hold uuid, run uuid, root uuid, whose uuid[], run_limit bigint, wanted bigint, at_least bigint,
            at timestamptz, ends timestamptz
        ) RETURNS TABLE (
            granted bigint, held boolean, budget_id uuid, scope text, period text, limit_nanos bigint, amount bigint
        )
        LANGUAGE plpgsql AS $$
        #variable_conflict use_column
        DECLARE
            tenant text := current_setting('paddock.tenant_id');
            locked uuid[];
            tight record;
        BEGIN
            IF run_limit IS NULL AND NOT EXISTS (
                SELECT FROM budgets b
                WHERE b.tenant_id = tenant AND b.enabled AND (b.subject IS NULL OR b.subject = ANY (whose))
            ) THEN
                RETURN QUERY SELECT wanted, false, NULL::uuid, NULL::text, NULL::text, NULL::bigint, NULL::bigint;
                RETURN;
            END IF;
            SELECT array_agg(l.id) INTO locked FROM (
                SELECT b.id FROM budgets b
                WHERE b.tenant_id = tenant AND b.enabled AND (b.subject IS NULL OR b.subject = ANY (whose))
                ORDER BY b.id FOR NO KEY UPDATE) AS l;
            IF run_limit IS NOT NULL THEN
                PERFORM FROM executions e WHERE e.id = root FOR NO KEY UPDATE;
            END IF;
            -- From here on every statement sees what those committed that were waited for.
            SELECT r.* INTO tight FROM (
                SELECT b.id, b.scope, b.period, b.limit_nanos,
                       b.limit_nanos - CASE WHEN b.period_start < budget_began(b.period, at) THEN 0 ELSE b.spent END
                       - (SELECT coalesce(sum(h.amount), 0)::bigint FROM cost_holds h
                          WHERE h.tenant_id = tenant AND h.until > at
                            AND (b.subject IS NULL OR b.subject = ANY (h.subjects))) AS room
                FROM budgets b WHERE b.id = ANY (locked)
                UNION ALL
                SELECT NULL, 'run', 'total', run_limit,
                       run_limit
                       - coalesce((SELECT (e.total_cost * 1e9)::bigint FROM executions e WHERE e.id = root), 0)
                       - (SELECT coalesce(sum(h.amount), 0)::bigint FROM cost_holds h
                          WHERE h.tenant_id = tenant AND h.until > at AND h.root_id = root)
                WHERE run_limit IS NOT NULL
            ) AS r ORDER BY r.room, r.id LIMIT 1;
            IF tight.room < at_least THEN
                RETURN QUERY SELECT NULL::bigint, false, tight.id, tight.scope, tight.period, tight.limit_nanos,
                                    tight.room;
                RETURN;
            END IF;
            -- What nobody came back for. Not waited for: another call may be at it.
            DELETE FROM cost_holds h WHERE h.id IN (
                SELECT o.id FROM cost_holds o WHERE o.tenant_id = tenant AND o.until <= at FOR UPDATE SKIP LOCKED);
            wanted := least(wanted, coalesce(tight.room, wanted));
            INSERT INTO cost_holds (id, tenant_id, execution_id, root_id, subjects, amount, until)
            VALUES (hold, tenant, run, root, whose, wanted, ends);
            RETURN QUERY SELECT wanted, true, NULL::uuid, NULL::text, NULL::text, NULL::bigint, NULL::bigint;
        END $$;

        -- Gives up a hold and counts a cost in every budget that applies, enabled or not, and in the execution with all
        -- that it belongs to, whatever has become of them. Returns what has reached 80 % and was not warned of yet.
        CREATE FUNCTION spend_cost(
            hold uuid, run uuid, whose uuid[], run_limit bigint, cost bigint, at timestamptz
        ) RETURNS TABLE (budget_id uuid, scope text, period text, limit_nanos bigint, amount bigint)
        LANGUAGE plpgsql AS $$
        #variable_conflict use_column
        DECLARE
            tenant text := current_setting('paddock.tenant_id');
            locked uuid[];
            above uuid := run;
            spent_by_run bigint;
        BEGIN
            IF cost > 0 THEN
                PERFORM pg_advisory_xact_lock_shared(spending_lock());
                SELECT array_agg(l.id) INTO locked FROM (
                    SELECT b.id FROM budgets b
                    WHERE b.tenant_id = tenant AND (b.subject IS NULL OR b.subject = ANY (whose))
                    ORDER BY b.id FOR NO KEY UPDATE) AS l;
            END IF;
            DELETE FROM cost_holds h WHERE h.id IN (
                SELECT o.id FROM cost_holds o WHERE o.id = hold FOR UPDATE SKIP LOCKED);
            IF cost <= 0 THEN
                RETURN;
            END IF;
            -- From the run up to the root, which all who lock several of them do. The limit is that of the root.
            WHILE above IS NOT NULL LOOP
                UPDATE executions e
                SET total_cost = ((e.total_cost * 1e9)::bigint + cost)::double precision / 1e9::double precision
                WHERE e.id = above RETURNING e.parent_id, (e.total_cost * 1e9)::bigint INTO above, spent_by_run;
            END LOOP;
            RETURN QUERY
            WITH old AS (
                SELECT b.id, CASE WHEN p.fresh THEN 0 ELSE b.spent END AS spent,
                       CASE WHEN NOT p.fresh THEN b.warned_at END AS warned_at
                FROM budgets b
                CROSS JOIN LATERAL (SELECT b.period_start < budget_began(b.period, at) AS fresh) AS p
                WHERE b.id = ANY (locked)
            ), moved AS (
                UPDATE budgets b SET
                    spent = o.spent + cost,
                    period_start = greatest(b.period_start, budget_began(b.period, at)),
                    warned_at = CASE WHEN o.warned_at IS NULL AND b.enabled
                                          AND (o.spent + cost)::numeric * 5 >= b.limit_nanos::numeric * 4
                                     THEN at ELSE o.warned_at END
                FROM old o WHERE b.id = o.id
                RETURNING b.id, b.scope, b.period, b.limit_nanos, b.spent,
                          o.warned_at IS NULL AND b.warned_at IS NOT NULL AS warned
            )
            SELECT * FROM (
                SELECT m.id, m.scope, m.period, m.limit_nanos, m.spent FROM moved m WHERE m.warned
                UNION ALL
                SELECT NULL, 'run', 'total', run_limit, spent_by_run
                WHERE spent_by_run::numeric * 5 >= run_limit::numeric * 4
                  AND (spent_by_run - cost)::numeric * 5 < run_limit::numeric * 4
            ) AS w ORDER BY w.id;
        END $$;
        """
    )
    for table, rights in (
        ("plans", "SELECT, INSERT, UPDATE"),
        ("plan_calls", "SELECT, INSERT, UPDATE"),
        ("plan_steps", "SELECT, INSERT, UPDATE"),
        ("plan_signals", "SELECT, INSERT, DELETE"),
    ):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
