-- Returns the tenants that keep events for a number of days only, and executions for longer: the tenant's own number,
-- else `otherwise`, where 0 means as long as the executions.
CREATE OR REPLACE FUNCTION event_retained_tenants(otherwise integer) RETURNS TABLE (tenant_id text, days integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT t.id, coalesce(t.event_retention_days, otherwise) FROM tenants t
    WHERE t.event_retention_days IS NOT NULL OR otherwise > 0 ORDER BY t.id
$$;
REVOKE ALL ON FUNCTION event_retained_tenants FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_retained_tenants TO paddock_app;
