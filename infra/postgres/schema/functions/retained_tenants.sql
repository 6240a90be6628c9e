-- Returns the tenants that keep their data for a number of days only: the tenant's own number, else `otherwise`, where
-- 0 means that data is kept for good.
CREATE OR REPLACE FUNCTION retained_tenants(otherwise integer) RETURNS TABLE (tenant_id text, days integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT t.id, coalesce(t.retention_days, otherwise) FROM tenants t
    WHERE t.retention_days IS NOT NULL OR otherwise > 0 ORDER BY t.id
$$;
REVOKE ALL ON FUNCTION retained_tenants FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retained_tenants TO paddock_app;
