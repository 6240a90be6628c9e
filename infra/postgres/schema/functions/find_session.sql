-- Finds a session of any tenant that is not revoked, with its user.
CREATE OR REPLACE FUNCTION find_session(
    the_user uuid, the_session uuid
) RETURNS TABLE (user_id uuid, tenant_id text, role text, is_active boolean, plan text, session_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, s.id
    FROM sessions s JOIN users u ON u.id = s.user_id JOIN tenants t ON t.id = u.tenant_id
    WHERE s.id = the_session AND u.id = the_user AND s.revoked_at IS NULL
$$;
REVOKE ALL ON FUNCTION find_session FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_session TO paddock_app;
