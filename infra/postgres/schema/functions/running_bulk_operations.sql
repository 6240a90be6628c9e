-- Lists bulk operations of any tenant that have executions to deal with, the oldest first.
CREATE OR REPLACE FUNCTION running_bulk_operations(most integer) RETURNS TABLE (tenant_id text, id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT o.tenant_id, o.id FROM bulk_operations o WHERE o.status = 'running' ORDER BY o.id LIMIT most
$$;
REVOKE ALL ON FUNCTION running_bulk_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION running_bulk_operations TO paddock_app;
