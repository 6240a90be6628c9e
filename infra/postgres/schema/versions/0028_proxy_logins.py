"""Users whom a trusted proxy signs in, by their id there, and the tenants that such logins made."""

from infra.postgres.script import run

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    run(
        """
        ALTER TABLE tenants ADD by_proxy boolean NOT NULL DEFAULT false;
        ALTER TABLE users ADD external_id text;
        CREATE UNIQUE INDEX users_external_id_key ON users (tenant_id, external_id) WHERE external_id IS NOT NULL;

        -- The user with this external id in this tenant, and the user with this e-mail address in any.
        CREATE FUNCTION find_proxy_users(the_tenant text, the_external text, the_email text) RETURNS TABLE (
            user_id uuid, tenant_id text, role text, is_active boolean, plan text, email text, external_id text,
            has_password boolean
        ) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, u.email, u.external_id, u.password_hash <> ''
            FROM users u JOIN tenants t ON t.id = u.tenant_id
            WHERE u.email = the_email OR (u.tenant_id = the_tenant AND u.external_id = the_external)
        $$;
        REVOKE ALL ON FUNCTION find_proxy_users FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION find_proxy_users TO paddock_app;
        """
    )
