"""Crews, and the tasks that they are made of."""

from infra.postgres.script import run

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    run(
        """
        CREATE TABLE tasks (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            name text NOT NULL,
            slug text NOT NULL,
            description text NOT NULL,
            expected_output text,
            agent text,
            tools text[] NOT NULL,
            -- Ids of others. None at all is not the same as an empty list.
            context text[],
            async_execution boolean NOT NULL,
            markdown boolean NOT NULL,
            output_file text,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, slug)
        );
        CREATE TABLE crews (
            id uuid PRIMARY KEY,
            tenant_id text NOT NULL REFERENCES tenants,
            user_id uuid NOT NULL REFERENCES users,
            name text NOT NULL,
            description text,
            process text NOT NULL CHECK (process IN ('sequential', 'hierarchical')),
            model text,
            manager_model text,
            manager_agent text,
            planning boolean NOT NULL,
            planning_model text,
            max_rpm integer,
            "verbose" boolean NOT NULL,
            agents_yaml text,
            tasks_yaml text,
            -- Ids of agents and of tasks.
            agents text[] NOT NULL,
            tasks text[] NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            UNIQUE (tenant_id, name)
        );
        """
    )
    for table in ("tasks", "crews"):
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        run(
            f"CREATE POLICY bound ON {table} TO paddock_app "
            "USING (tenant_id = current_setting('paddock.tenant_id', true))"
        )
        run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO paddock_app")
