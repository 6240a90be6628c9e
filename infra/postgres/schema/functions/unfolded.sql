-- Lists the tenants and kinds of records that have deltas to fold, after a given one, with one step through the index
-- for each instead of one for each delta. A round that ends early continues where it stopped.
CREATE OR REPLACE FUNCTION unfolded(
    after_tenant text, after_kind text, most integer
) RETURNS TABLE (tenant_id text, kind text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    WITH RECURSIVE found AS (
        (SELECT d.tenant_id, d.kind FROM stat_deltas d
         WHERE (d.tenant_id, d.kind) > (after_tenant, after_kind) ORDER BY d.tenant_id, d.kind LIMIT 1)
        UNION ALL
        SELECT n.tenant_id, n.kind FROM found f CROSS JOIN LATERAL (
            SELECT d.tenant_id, d.kind FROM stat_deltas d
            WHERE (d.tenant_id, d.kind) > (f.tenant_id, f.kind) ORDER BY d.tenant_id, d.kind LIMIT 1) AS n
    )
    SELECT f.tenant_id, f.kind FROM found f LIMIT most
$$;
REVOKE ALL ON FUNCTION unfolded FROM PUBLIC;
GRANT EXECUTE ON FUNCTION unfolded TO paddock_app;
