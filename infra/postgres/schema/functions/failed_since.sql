-- Counts what has failed since a time, per lane: for one tenant, or for all if `tenant` is null.
CREATE OR REPLACE FUNCTION failed_since(since timestamptz, tenant text) RETURNS TABLE (lane text, failed bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT e.lane, count(*) FROM executions e
    WHERE e.completed_at >= since AND e.status = 'failed' AND (tenant IS NULL OR e.tenant_id = tenant)
    GROUP BY e.lane
    UNION ALL
    SELECT 'build', count(*) FROM agent_versions
    WHERE updated_at >= since AND status = 'failed' AND (tenant IS NULL OR tenant_id = tenant)
$$;
REVOKE ALL ON FUNCTION failed_since FROM PUBLIC;
GRANT EXECUTE ON FUNCTION failed_since TO paddock_app;
