"""How long a tenant keeps its records."""

from infra.postgres.script import run

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run(
        """
        ALTER TABLE tenants ADD retention_days integer CHECK (retention_days > 0);
        GRANT UPDATE (retention_days) ON tenants TO paddock_app;
        CREATE FUNCTION retained() RETURNS TABLE (tenant_id text, days integer)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
            SELECT t.id, t.retention_days FROM tenants t WHERE t.retention_days IS NOT NULL ORDER BY t.id
        $$;
        REVOKE ALL ON FUNCTION retained FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION retained TO paddock_app;
        """
    )
