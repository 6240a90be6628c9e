-- Finds an API key, its user and its tenant by the SHA-256 of the key.
CREATE OR REPLACE FUNCTION find_key(
    hash bytea
) RETURNS TABLE (
    key_id uuid, user_id uuid, tenant_id text, role text, plan text, scopes text[], rate_limit_per_minute integer,
    expires_at timestamptz, is_active boolean, key_hash bytea
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT k.id, u.id, k.tenant_id, u.role, t.plan, k.scopes,
           k.rate_limit_per_minute, k.expires_at, k.is_active AND u.is_active, k.key_hash
    FROM api_keys k JOIN users u ON u.id = k.user_id JOIN tenants t ON t.id = k.tenant_id
    WHERE k.key_hash = hash
$$;
REVOKE ALL ON FUNCTION find_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_key TO paddock_app;
