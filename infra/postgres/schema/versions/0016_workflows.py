"""Workflows."""

from infra.postgres.script import run

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run(
        """
        CREATE TABLE workflows (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            name text NOT NULL,
            description text,
            status text NOT NULL CHECK (status IN ('active', 'archived')),
            inputs json,
            steps json NOT NULL,
            outputs json,
            steps_total integer NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, name)
        );
        ALTER TABLE workflows ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON workflows TO paddock_app
            USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT, INSERT, UPDATE, DELETE ON workflows TO paddock_app;
        """
    )
