"""First answers by Idempotency-Key."""

from infra.postgres.script import run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run(
        """
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
        ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON idempotency_keys TO paddock_app
            USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT, INSERT, UPDATE ON idempotency_keys TO paddock_app;
        CREATE FUNCTION forget_answers(before timestamptz) RETURNS bigint
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH gone AS (DELETE FROM idempotency_keys WHERE created_at < before RETURNING 1)
            SELECT count(*) FROM gone
        $$;
        REVOKE ALL ON FUNCTION forget_answers FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION forget_answers TO paddock_app;
        """
    )
