"""Costs of model calls, budgets, and what calls under way hold of them."""

from infra.postgres.script import run

revision = "0014"
down_revision = "0013"

# Everything that knows the record tables by name learns of one more.
_KNOWN = "('evaluations', 'artifacts')"
_KNOWN_NOW = "('evaluations', 'artifacts', 'costs')"


def upgrade() -> None:
    run(
        f"""
        ALTER TABLE stat_deltas DROP CONSTRAINT stat_deltas_kind_check,
            ADD CONSTRAINT stat_deltas_kind_check CHECK (kind IN {_KNOWN_NOW});
        DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('make_partitions'::regproc), $q${_KNOWN}$q$, $q${_KNOWN_NOW}$q$);
            EXECUTE replace(pg_get_functiondef('drop_empty_partition'::regproc), $q${_KNOWN}$q$, $q${_KNOWN_NOW}$q$);
        END $do$;
        """
    )
    run(
        """
        CREATE TABLE costs (
            id uuid NOT NULL,
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
            first_token_ms double precision,
            PRIMARY KEY (id)
        ) PARTITION BY RANGE (id);
        -- Calls of models are few beside what else is written, so every filter of lists has its index.
        CREATE INDEX costs_tenant_id_created_at_id ON costs (tenant_id, created_at DESC, id DESC);
        CREATE INDEX costs_agent_id ON costs (tenant_id, agent_id, created_at DESC, id DESC);
        CREATE INDEX costs_provider ON costs (tenant_id, provider, created_at DESC, id DESC);
        CREATE INDEX costs_model ON costs (tenant_id, model, created_at DESC, id DESC);
        CREATE INDEX costs_model_name ON costs (tenant_id, model_name, created_at DESC, id DESC);
        CREATE INDEX costs_status ON costs (tenant_id, status, created_at DESC, id DESC);
        CREATE INDEX costs_execution_id ON costs (execution_id) WHERE execution_id IS NOT NULL;
        CREATE INDEX costs_key_id ON costs (tenant_id, key_id, created_at) WHERE key_id IS NOT NULL;
        CREATE INDEX costs_workflow_id ON costs (tenant_id, workflow_id, created_at) WHERE workflow_id IS NOT NULL;
        SELECT make_partitions('costs', now(), 2);

        CREATE TABLE budgets (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL,
            scope text NOT NULL CHECK (scope IN ('tenant', 'key', 'agent', 'workflow')),
            subject uuid CHECK ((subject IS NULL) = (scope = 'tenant')),
            limit_nanos bigint NOT NULL CHECK (limit_nanos > 0),
            period text NOT NULL CHECK (period IN ('day', 'week', 'month', 'total')),
            enabled boolean NOT NULL,
            -- `spent` and `warned_at` are of the period that began at `period_start`.
            period_start timestamptz NOT NULL,
            spent bigint NOT NULL,
            warned_at timestamptz,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        ) WITH (fillfactor = 70);
        CREATE INDEX budgets_tenant_id ON budgets (tenant_id);
        CREATE TABLE cost_holds (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL,
            execution_id uuid,
            subjects uuid[] NOT NULL,
            amount bigint NOT NULL,
            until timestamptz NOT NULL
        );
        CREATE INDEX cost_holds_tenant_id ON cost_holds (tenant_id);
        -- Rows come and go all the time: what is gone must not be looked at for long.
        ALTER TABLE cost_holds SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

        -- Held by all who settle a call of the bound tenant, and alone by who sums up what was spent.
        CREATE FUNCTION spending_lock() RETURNS bigint LANGUAGE sql STABLE AS $$
            SELECT hashtextextended('spending ' || current_setting('paddock.tenant_id'), 0)
        $$;
        -- As `domain.costs.budgets.find_period_start` has it.
        CREATE FUNCTION budget_began(period text, at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
            SELECT CASE WHEN period = 'total' THEN '2000-01-01 00:00:00+00'::timestamptz
                        ELSE date_trunc(period, at, 'UTC') END
        $$;

        -- Both of these bind and see nothing but the tenant's own rows, as whoever calls them.
        --
        -- Sets `at_least` to `wanted` aside for a call, of every budget that applies to it and of its run's own limit.
        -- `granted` is null if one has less room, the others tell which then. `held` is false if nothing limits the
        -- call.
        CREATE FUNCTION hold_cost(
            hold uuid, run uuid, whose uuid[], run_limit bigint, wanted bigint, at_least bigint, at timestamptz,
            ends timestamptz
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
                PERFORM FROM executions e WHERE e.id = run FOR NO KEY UPDATE;
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
                       - coalesce((SELECT (e.total_cost * 1e9)::bigint FROM executions e WHERE e.id = run), 0)
                       - (SELECT coalesce(sum(h.amount), 0)::bigint FROM cost_holds h
                          WHERE h.tenant_id = tenant AND h.until > at AND h.execution_id = run)
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
            INSERT INTO cost_holds (id, tenant_id, execution_id, subjects, amount, until)
            VALUES (hold, tenant, run, whose, wanted, ends);
            RETURN QUERY SELECT wanted, true, NULL::uuid, NULL::text, NULL::text, NULL::bigint, NULL::bigint;
        END $$;

        -- Gives up a hold and counts a cost in every budget that applies, enabled or not, and in the execution,
        -- whatever has become of it. Returns what has reached 80 % and was not warned of yet.
        CREATE FUNCTION spend_cost(
            hold uuid, run uuid, whose uuid[], run_limit bigint, cost bigint, at timestamptz
        ) RETURNS TABLE (budget_id uuid, scope text, period text, limit_nanos bigint, amount bigint)
        LANGUAGE plpgsql AS $$
        #variable_conflict use_column
        DECLARE
            tenant text := current_setting('paddock.tenant_id');
            locked uuid[];
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
            UPDATE executions e
            SET total_cost = ((e.total_cost * 1e9)::bigint + cost)::double precision / 1e9::double precision
            WHERE e.id = run RETURNING (e.total_cost * 1e9)::bigint INTO spent_by_run;
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
        # Rows are locked before they are deleted, which takes the right to update something.
        ("costs", "SELECT, INSERT, DELETE, UPDATE (id)"),
        ("budgets", "SELECT, INSERT, UPDATE, DELETE"),
        ("cost_holds", "SELECT, INSERT, UPDATE (until), DELETE"),
    ):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT {rights} ON {table} TO paddock_app")
