-- Tenants, users, their sessions and keys.

-- A tenant. `plan` picks its rate limit. `by_proxy` marks tenants that the sign-in of a trusted proxy created.
CREATE TABLE tenants (
    id text PRIMARY KEY CHECK (id <> ''),
    plan text NOT NULL CHECK (plan IN ('standard', 'premium')),
    created_at timestamptz NOT NULL,
    max_concurrency integer CHECK (max_concurrency > 0),
    retention_days integer CHECK (retention_days > 0),
    by_proxy boolean NOT NULL DEFAULT false
);

-- E-mail addresses and user names are unique over all tenants, because a login does not name a tenant.
CREATE TABLE users (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    email text NOT NULL UNIQUE,
    username text,
    full_name text,
    password_hash text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
    is_active boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    external_id text
);
CREATE INDEX ix_users_tenant_id ON users (tenant_id);
CREATE UNIQUE INDEX users_external_id_key ON users (tenant_id, external_id) WHERE external_id IS NOT NULL;
CREATE UNIQUE INDEX users_username_key ON users (lower(username));

-- Tokens are stored as hashes, here and in the tables of sessions.
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
CREATE INDEX invites_expires_at ON invites (expires_at);
CREATE INDEX ix_invites_tenant_id ON invites (tenant_id);

-- A login: the family that its refresh tokens belong to.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    user_id uuid NOT NULL REFERENCES users,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX ix_sessions_user_id ON sessions (user_id);

-- A used token is kept, so that a second use is noticed.
CREATE TABLE refresh_tokens (
    token_hash bytea PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants,
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX ix_refresh_tokens_expires_at ON refresh_tokens (expires_at);
CREATE INDEX ix_refresh_tokens_session_id ON refresh_tokens (session_id);

-- A key is stored as its SHA-256.
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

-- The first response to each Idempotency-Key, kept for a day.
CREATE TABLE idempotency_keys (
    tenant_id text NOT NULL,
    owner text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    status integer NOT NULL,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, owner, key)
);
CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at);
