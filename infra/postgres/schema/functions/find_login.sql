-- Finds a user of any tenant by e-mail address or user name, for a login. A login does not name a tenant.
CREATE OR REPLACE FUNCTION find_login(
    name text
) RETURNS TABLE (user_id uuid, tenant_id text, role text, is_active boolean, plan text, password_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, u.password_hash
    FROM users u JOIN tenants t ON t.id = u.tenant_id
    WHERE u.email = lower(name) OR lower(u.username) = lower(name)
    ORDER BY u.email = lower(name) DESC LIMIT 1
$$;
REVOKE ALL ON FUNCTION find_login FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_login TO paddock_app;
