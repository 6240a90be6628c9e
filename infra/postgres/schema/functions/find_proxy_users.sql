-- Finds the user of a tenant with this external id, and the user of any tenant with this e-mail address.
CREATE OR REPLACE FUNCTION find_proxy_users(
    the_tenant text, the_external text, the_email text
) RETURNS TABLE (
    user_id uuid, tenant_id text, role text, is_active boolean, plan text, email text, external_id text,
    has_password boolean
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, u.email, u.external_id, u.password_hash <> ''
    FROM users u JOIN tenants t ON t.id = u.tenant_id
    WHERE u.email = the_email OR (u.tenant_id = the_tenant AND u.external_id = the_external)
$$;
REVOKE ALL ON FUNCTION find_proxy_users FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_proxy_users TO paddock_app;
