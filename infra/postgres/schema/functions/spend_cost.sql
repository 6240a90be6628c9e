-- Releases a reservation and adds the cost of a model call to every budget that applies, enabled or not, and to the
-- execution and all executions it belongs to, whatever their status. Returns the budgets and the cost limit that have
-- just reached 80 % for the first time in their period. Runs with the rights of the caller, so it sees the bound
-- tenant only. Amounts are nano-dollars.
CREATE OR REPLACE FUNCTION spend_cost(
    hold uuid, run uuid, whose uuid[], run_limit bigint, cost bigint, at timestamptz
) RETURNS TABLE (budget_id uuid, scope text, period text, limit_nanos bigint, amount bigint)
LANGUAGE plpgsql
AS $$
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
    -- From the execution up to the root: every statement that locks several of them uses this order. The limit is
    -- that of the root.
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
