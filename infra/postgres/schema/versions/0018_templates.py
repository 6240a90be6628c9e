"""Prompt templates, and agents and tasks that use one."""

from infra.postgres.script import run

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    run(
        """
        CREATE TABLE templates (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            name text NOT NULL,
            description text,
            template text NOT NULL,
            variables text[] NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, name)
        );
        -- What is there holds its template; what was deleted gives it up.
        ALTER TABLE agents ADD COLUMN template_id uuid REFERENCES templates ON DELETE SET NULL;
        CREATE INDEX agents_template_id ON agents (template_id) WHERE template_id IS NOT NULL;
        ALTER TABLE tasks ADD COLUMN template_id uuid REFERENCES templates, ADD COLUMN variables json;
        CREATE INDEX tasks_template_id ON tasks (template_id) WHERE template_id IS NOT NULL;
        ALTER TABLE templates ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON templates TO paddock_app USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT, INSERT, UPDATE, DELETE ON templates TO paddock_app
        """
    )
