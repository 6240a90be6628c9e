-- Finds a refresh token of any tenant by its hash, with its session and its user.
CREATE OR REPLACE FUNCTION find_refresh(
    hash bytea
) RETURNS TABLE (
    user_id uuid, tenant_id text, role text, is_active boolean, plan text, session_id uuid, used boolean,
    revoked boolean, expires_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, s.id,
           r.used_at IS NOT NULL, s.revoked_at IS NOT NULL, r.expires_at
    FROM refresh_tokens r JOIN sessions s ON s.id = r.session_id
         JOIN users u ON u.id = s.user_id JOIN tenants t ON t.id = u.tenant_id
    WHERE r.token_hash = hash
$$;
REVOKE ALL ON FUNCTION find_refresh FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_refresh TO paddock_app;
