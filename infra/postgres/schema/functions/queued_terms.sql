-- Lists executions of any tenant whose words are to be written, the oldest first.
CREATE OR REPLACE FUNCTION queued_terms(most integer) RETURNS TABLE (id bigint, tenant_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT q.id, q.tenant_id FROM execution_term_queue q ORDER BY q.id LIMIT most
$$;
REVOKE ALL ON FUNCTION queued_terms FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queued_terms TO paddock_app;
