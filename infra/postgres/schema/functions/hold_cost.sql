-- Reserves up to `wanted`, and at least `at_least`, for a model call: in every budget that applies to it, and in the
-- cost limit of the run `root` that it belongs to. `granted` is null if one of them has less room, and the other
-- columns then name the one with the least. `held` is false if no budget or limit applies. Runs with the rights of the
-- caller, so it sees the bound tenant only. Amounts are nano-dollars.
CREATE OR REPLACE FUNCTION hold_cost(
    hold uuid, run uuid, root uuid, whose uuid[], run_limit bigint, wanted bigint, at_least bigint, at timestamptz,
    ends timestamptz
) RETURNS TABLE (
    granted bigint, held boolean, budget_id uuid, scope text, period text, limit_nanos bigint, amount bigint
)
LANGUAGE plpgsql
AS $$
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
    -- From here on, every statement sees the commits of the transactions that the locks above waited for.
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
    -- Expired reservations. Locked rows are skipped: another call may be deleting them.
    DELETE FROM cost_holds h WHERE h.id IN (
        SELECT o.id FROM cost_holds o WHERE o.tenant_id = tenant AND o.until <= at FOR UPDATE SKIP LOCKED);
    wanted := least(wanted, coalesce(tight.room, wanted));
    INSERT INTO cost_holds (id, tenant_id, execution_id, root_id, subjects, amount, until)
    VALUES (hold, tenant, run, root, whose, wanted, ends);
    RETURN QUERY SELECT wanted, true, NULL::uuid, NULL::text, NULL::text, NULL::bigint, NULL::bigint;
END $$;
