"""Tenants, users, invitations, sessions; the role of the application, and how a tenant is bound.

Every table with a tenant has row-level security: a row is visible when its tenant is the one bound
by `set_config('paddock.tenant_id', …)`. The application works as `paddock_app`, which owns nothing
and bypasses nothing. What must be found before a tenant is known goes through functions of the
owner that answer one exact match.
"""

from infra.postgres.script import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run(
        """
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'paddock_app') THEN
                CREATE ROLE paddock_app NOLOGIN;
            END IF;
            EXECUTE format('GRANT paddock_app TO %I', current_user);
        END $$;
        """
    )
    run("GRANT USAGE ON SCHEMA public TO paddock_app")
    run(
        """
        CREATE TABLE tenants (
            id text PRIMARY KEY CHECK (id <> ''),
            plan text NOT NULL CHECK (plan IN ('standard', 'premium')),
            created_at timestamptz NOT NULL
        );
        CREATE TABLE users (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            email text NOT NULL CONSTRAINT users_email_key UNIQUE,
            username text,
            full_name text,
            password_hash text NOT NULL,
            role text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
            is_active boolean NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        );
        CREATE UNIQUE INDEX users_username_key ON users (lower(username));
        CREATE INDEX ix_users_tenant_id ON users (tenant_id);
        CREATE TABLE invites (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            email text NOT NULL,
            role text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
            token_hash bytea NOT NULL UNIQUE,
            expires_at timestamptz NOT NULL,
            accepted_at timestamptz,
            created_at timestamptz NOT NULL
        );
        CREATE INDEX ix_invites_tenant_id ON invites (tenant_id);
        CREATE TABLE sessions (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            created_at timestamptz NOT NULL,
            revoked_at timestamptz
        );
        CREATE INDEX ix_sessions_user_id ON sessions (user_id);
        CREATE TABLE refresh_tokens (
            token_hash bytea PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
            expires_at timestamptz NOT NULL,
            used_at timestamptz
        );
        CREATE INDEX ix_refresh_tokens_session_id ON refresh_tokens (session_id);
        CREATE INDEX ix_refresh_tokens_expires_at ON refresh_tokens (expires_at);

        ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON tenants TO paddock_app USING (id = current_setting('paddock.tenant_id', true));
        """
    )
    for table in ("users", "invites", "sessions", "refresh_tokens"):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
    run("GRANT SELECT, INSERT ON tenants TO paddock_app")
    run("GRANT SELECT, INSERT, UPDATE ON users, invites, sessions, refresh_tokens TO paddock_app")
    run(
        """
        CREATE FUNCTION find_login(name text) RETURNS TABLE (
            user_id uuid, tenant_id text, role text, is_active boolean, plan text, password_hash text
        ) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, u.password_hash
            FROM users u JOIN tenants t ON t.id = u.tenant_id
            WHERE u.email = lower(name) OR lower(u.username) = lower(name)
            ORDER BY u.email = lower(name) DESC LIMIT 1
        $$;
        CREATE FUNCTION find_session(the_user uuid, the_session uuid) RETURNS TABLE (
            user_id uuid, tenant_id text, role text, is_active boolean, plan text, session_id uuid
        ) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, s.id
            FROM sessions s JOIN users u ON u.id = s.user_id JOIN tenants t ON t.id = u.tenant_id
            WHERE s.id = the_session AND u.id = the_user AND s.revoked_at IS NULL
        $$;
        CREATE FUNCTION find_refresh(hash bytea) RETURNS TABLE (
            user_id uuid, tenant_id text, role text, is_active boolean, plan text, session_id uuid,
            used boolean, revoked boolean, expires_at timestamptz
        ) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT u.id, u.tenant_id, u.role, u.is_active, t.plan, s.id,
                   r.used_at IS NOT NULL, s.revoked_at IS NOT NULL, r.expires_at
            FROM refresh_tokens r JOIN sessions s ON s.id = r.session_id
                 JOIN users u ON u.id = s.user_id JOIN tenants t ON t.id = u.tenant_id
            WHERE r.token_hash = hash
        $$;
        CREATE FUNCTION forget_sessions(before timestamptz) RETURNS bigint
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH gone AS (
                DELETE FROM sessions s WHERE NOT EXISTS (
                    SELECT FROM refresh_tokens r WHERE r.session_id = s.id AND r.expires_at >= before
                ) AND s.created_at < before RETURNING 1
            ) SELECT count(*) FROM gone
        $$;
        REVOKE ALL ON FUNCTION find_login, find_session, find_refresh, forget_sessions FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION find_login, find_session, find_refresh, forget_sessions TO paddock_app;
        """
    )
