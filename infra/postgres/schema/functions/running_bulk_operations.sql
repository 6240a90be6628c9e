-- Lists bulk operations of any tenant that have executions to deal with: the oldest one of each tenant, then the second
-- ones, so that many of one tenant keep none of another waiting.
CREATE OR REPLACE FUNCTION running_bulk_operations(most integer) RETURNS TABLE (tenant_id text, id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT r.tenant_id, r.id FROM (
        SELECT o.tenant_id, o.id, row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.id) AS place
        FROM bulk_operations o WHERE o.status = 'running'
    ) AS r ORDER BY r.place, r.id LIMIT most
$$;
REVOKE ALL ON FUNCTION running_bulk_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION running_bulk_operations TO paddock_app;
