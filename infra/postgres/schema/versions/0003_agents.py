"""Agents and their versions."""

from infra.postgres.script import run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run(
        """
        CREATE TABLE agents (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            name text NOT NULL,
            description text,
            kind text NOT NULL CHECK (kind IN ('code')),
            status text NOT NULL CHECK (status IN ('draft', 'building', 'ready', 'failed', 'archived')),
            current_version_id uuid,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            deleted_at timestamptz
        );
        CREATE UNIQUE INDEX agents_tenant_id_name_key ON agents (tenant_id, name) WHERE deleted_at IS NULL;
        CREATE TABLE agent_versions (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            agent_id uuid NOT NULL REFERENCES agents,
            number integer NOT NULL,
            version text NOT NULL,
            status text NOT NULL CHECK (status IN ('queued', 'building', 'ready', 'failed')),
            build_log text,
            error_message text,
            tarball_path text NOT NULL UNIQUE,
            bundle_path text,
            entrypoint text,
            config text,
            framework text,
            python text,
            timeout integer,
            memory integer,
            environment text,
            sha256 text NOT NULL,
            size_bytes bigint NOT NULL,
            attempt integer NOT NULL,
            worker text,
            lease_expires_at timestamptz,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        );
        CREATE UNIQUE INDEX agent_versions_agent_id_number_key ON agent_versions (agent_id, number);
        CREATE INDEX ix_agent_versions_bundle_path ON agent_versions (bundle_path);
        CREATE INDEX agent_versions_open ON agent_versions (id) WHERE status IN ('queued', 'building');
        """
    )
    for table in ("agents", "agent_versions"):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT SELECT, INSERT, UPDATE ON {table} TO paddock_app")
    run(
        """
        CREATE FUNCTION known_objects(paths text[]) RETURNS SETOF text
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT p FROM unnest(paths) AS p
            WHERE EXISTS (SELECT FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                          WHERE (v.tarball_path = p OR v.bundle_path = p
                                 OR 'environments/' || v.environment || '.tar.gz' = p) AND a.deleted_at IS NULL)
        $$;
        REVOKE ALL ON FUNCTION known_objects FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION known_objects TO paddock_app;
        """
    )
