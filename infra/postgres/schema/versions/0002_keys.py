"""API keys."""

from infra.postgres.script import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run(
        """
        CREATE TABLE api_keys (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            name text NOT NULL,
            description text,
            key_hash bytea NOT NULL UNIQUE,
            key_prefix text NOT NULL,
            scopes text[] NOT NULL,
            rate_limit_per_minute integer,
            expires_at timestamptz,
            is_active boolean NOT NULL,
            last_used_at timestamptz,
            usage_count bigint NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        );
        CREATE INDEX ix_api_keys_tenant_id ON api_keys (tenant_id);
        ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON api_keys TO paddock_app
            USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys TO paddock_app;

        CREATE FUNCTION find_key(hash bytea) RETURNS TABLE (
            key_id uuid, user_id uuid, tenant_id text, role text, plan text, scopes text[],
            rate_limit_per_minute integer, expires_at timestamptz, is_active boolean, key_hash bytea
        ) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT k.id, u.id, k.tenant_id, u.role, t.plan, k.scopes,
                   k.rate_limit_per_minute, k.expires_at, k.is_active AND u.is_active, k.key_hash
            FROM api_keys k JOIN users u ON u.id = k.user_id JOIN tenants t ON t.id = k.tenant_id
            WHERE k.key_hash = hash
        $$;
        CREATE FUNCTION count_key_use(ids uuid[], uses bigint[], times timestamptz[]) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            UPDATE api_keys k SET usage_count = k.usage_count + u.uses,
                                  last_used_at = greatest(k.last_used_at, u.at)
            FROM unnest(ids, uses, times) AS u(id, uses, at) WHERE k.id = u.id
        $$;
        REVOKE ALL ON FUNCTION find_key, count_key_use FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION find_key, count_key_use TO paddock_app;
        """
    )
