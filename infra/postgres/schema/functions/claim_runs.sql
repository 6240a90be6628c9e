-- Claims up to `slots` pending executions of the lane `of_lane` over all tenants, and writes a status event for each.
-- Blocked ones are not looked at, and what expired before it began is left to upkeep. A tenant's own are claimed by the
-- time of their turn, which their priority shifts.
-- The order is fair: the rank of an execution is its place in its tenant's queue plus what that tenant has running,
-- and the lowest rank is claimed first. A tenant with little running therefore goes first, however long the queues of
-- other tenants are. `most` limits what every tenant has running, over all lanes; plans do not count, their steps do.
-- The last `spare` slots are reserved for tenants that have nothing running in this lane, if the installation has more
-- than one tenant.
CREATE OR REPLACE FUNCTION claim_runs(
    worker_id text, slots integer, claimed_at timestamptz, until timestamptz, at_hand uuid[], most integer,
    of_lane text, spare integer DEFAULT 0
) RETURNS SETOF executions
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$ BEGIN
    -- One claim at a time: two workers that count at the same time would both find room for the same last execution.
    PERFORM pg_advisory_xact_lock(1885430635, 1);
    RETURN QUERY
    WITH RECURSIVE queues AS (
        (SELECT e.tenant_id, e.queue_id FROM executions e
         WHERE e.status = 'pending' AND e.blocked IS NULL AND e.lane = of_lane
         ORDER BY e.tenant_id, e.queue_id LIMIT 1)
        UNION ALL
        SELECT next.tenant_id, next.queue_id FROM queues q CROSS JOIN LATERAL (
            SELECT e.tenant_id, e.queue_id FROM executions e
            WHERE e.status = 'pending' AND e.blocked IS NULL AND e.lane = of_lane
              AND (e.tenant_id, e.queue_id) > (q.tenant_id, q.queue_id)
            ORDER BY e.tenant_id, e.queue_id LIMIT 1) AS next
    ), held AS (
        SELECT e.tenant_id, e.queue_id, count(*) AS runs, count(*) FILTER (WHERE e.lane = of_lane) AS here
        FROM executions e
        WHERE e.status IN ('preparing', 'running') AND e.lane <> 'plan' GROUP BY 1, 2
    ), of_tenant AS (
        SELECT h.tenant_id, sum(h.runs) AS runs, sum(h.here) AS here FROM held h GROUP BY 1
    ), first AS (
        SELECT q.tenant_id, f.id, f.turn_at
        FROM queues q LEFT JOIN agents a ON a.id = q.queue_id
        LEFT JOIN held h ON h.tenant_id = q.tenant_id AND h.queue_id = q.queue_id
        CROSS JOIN LATERAL (
            SELECT e.id, coalesce(e.turn_at, e.created_at) AS turn_at FROM executions e
            WHERE e.status = 'pending' AND e.blocked IS NULL AND e.lane = of_lane
              AND e.tenant_id = q.tenant_id AND e.queue_id = q.queue_id
              AND (e.expires_at IS NULL OR e.expires_at > claimed_at OR e.started_at IS NOT NULL)
            ORDER BY coalesce(e.turn_at, e.created_at), e.id
            LIMIT greatest(0, least(slots, coalesce(a.max_concurrency - coalesce(h.runs, 0), slots)))
        ) AS f
    ), ranked AS (
        SELECT f.id, least(t.max_concurrency, most) AS bound, coalesce(o.here, 0) AS here,
               row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.turn_at, f.id) AS nth,
               coalesce(o.runs, 0) + row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.turn_at, f.id) AS turn
        FROM first f JOIN tenants t ON t.id = f.tenant_id LEFT JOIN of_tenant o ON o.tenant_id = f.tenant_id
    ), chosen AS (
        SELECT p.id FROM (
            SELECT r.id, r.here = 0 AND r.nth = 1 AS newcomer,
                   row_number() OVER (ORDER BY r.here + r.nth > 1, r.turn, r.id) AS place
            FROM ranked r WHERE r.bound IS NULL OR r.turn <= r.bound
        ) AS p
        WHERE p.place <= slots AND (p.newcomer OR p.place <= slots - CASE
            WHEN (SELECT count(*) FROM (SELECT FROM tenants LIMIT 2) AS two) > 1 THEN spare ELSE 0 END)
    ), free AS (
        SELECT e.id FROM executions e
        WHERE e.id IN (SELECT c.id FROM chosen c) AND e.status = 'pending' AND e.blocked IS NULL
        FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE executions e SET
            status = CASE WHEN e.lane = 'llm' OR e.agent_version_id = ANY (at_hand) THEN 'running'
                          ELSE 'preparing' END,
            attempt = e.attempt + 1, last_seq = e.last_seq + 1, worker = worker_id,
            lease_expires_at = until, started_at = coalesce(e.started_at, greatest(claimed_at, e.run_at)),
            updated_at = claimed_at
        FROM free WHERE e.id = free.id RETURNING e.*
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT m.id, m.last_seq, m.tenant_id, claimed_at, 'status', json_build_object(
            'status', m.status, 'attempt', m.attempt,
            'error_type', m.error_type, 'error_message', m.error_message)
        FROM moved m
    ), freed AS (
        -- Reservations of an earlier attempt are released: no model call of it will be settled any more.
        DELETE FROM cost_holds h USING moved m WHERE h.execution_id = m.id AND m.attempt > 1
    )
    SELECT * FROM moved ORDER BY id;
END $$;
REVOKE ALL ON FUNCTION claim_runs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_runs TO paddock_app;
