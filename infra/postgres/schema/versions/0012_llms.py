"""Models, keys for outside services, tools."""

from infra.postgres.script import run

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run(
        """
        CREATE TABLE provider_keys (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            name text NOT NULL,
            slug text NOT NULL,
            service text NOT NULL,
            sealed bytea NOT NULL,
            last_four text,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, slug)
        );
        CREATE TABLE models (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            name text NOT NULL,
            provider text NOT NULL,
            model text NOT NULL,
            base_url text,
            api_key_name text,
            parameters json NOT NULL,
            price json,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, name),
            FOREIGN KEY (tenant_id, api_key_name) REFERENCES provider_keys (tenant_id, slug) ON UPDATE CASCADE
        );
        CREATE TABLE tools (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            name text NOT NULL,
            slug text NOT NULL,
            description text NOT NULL,
            category text NOT NULL,
            tool_type text NOT NULL CHECK (tool_type IN ('custom', 'mcp')),
            configuration json NOT NULL,
            parameters json NOT NULL,
            -- The slugs of the provider keys that the configuration names.
            key_names text[] NOT NULL,
            enabled boolean NOT NULL,
            effects boolean NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, slug)
        );
        -- Which of the built-in tools, known to the code alone, a tenant does without.
        CREATE TABLE disabled_tools (
            tenant_id text NOT NULL REFERENCES tenants,
            tool_id uuid NOT NULL,
            since timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, tool_id)
        );
        """
    )
    for table in ("provider_keys", "models", "tools", "disabled_tools"):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO paddock_app")
    run(
        """
        -- For new keys of encryption. What is listed is of use to nobody without the old ones.
        CREATE FUNCTION sealed_keys(after uuid, most integer) RETURNS TABLE (id uuid, sealed bytea)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT k.id, k.sealed FROM provider_keys k WHERE after IS NULL OR k.id > after ORDER BY k.id LIMIT most
        $$;
        CREATE FUNCTION reseal_key(the_id uuid, old bytea, new bytea) RETURNS bigint
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH moved AS (
                UPDATE provider_keys k SET sealed = new WHERE k.id = the_id AND k.sealed = old RETURNING 1
            ) SELECT count(*) FROM moved
        $$;
        REVOKE ALL ON FUNCTION sealed_keys, reseal_key FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION sealed_keys, reseal_key TO paddock_app;

        -- The model that comes with Paddock. Its ids are UUIDv7 (RFC 9562) as all others, so that lists have an order.
        INSERT INTO models (id, tenant_id, name, provider, model, parameters, price, created_at, updated_at)
        SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
                   substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                   FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
               t.id, 'smollm2', 'local', 'smollm2', '{}', '{"input":0.0,"output":0.0,"cached_input":null}', now(), now()
        FROM tenants t;
        """
    )
