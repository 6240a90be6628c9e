-- Returns the queued version to build next: the oldest one of the tenant with the fewest builds running. With
-- `newcomers`, only tenants without a running build are considered, if the installation has more than one tenant.
CREATE OR REPLACE FUNCTION next_build(newcomers boolean DEFAULT false) RETURNS TABLE (row_id uuid, tenant_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT v.id, v.tenant_id FROM agent_versions v LEFT JOIN (
        SELECT b.tenant_id, count(*) AS builds FROM agent_versions b WHERE b.status = 'building' GROUP BY 1
    ) AS held ON held.tenant_id = v.tenant_id
    WHERE v.status = 'queued' AND (
        NOT newcomers OR held.builds IS NULL
        OR (SELECT count(*) FROM (SELECT FROM tenants LIMIT 2) AS two) < 2)
    ORDER BY coalesce(held.builds, 0), v.id LIMIT 1
$$;
REVOKE ALL ON FUNCTION next_build FROM PUBLIC;
GRANT EXECUTE ON FUNCTION next_build TO paddock_app;
