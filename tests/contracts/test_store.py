"""Row-level security in the database: the application's role sees only rows of its tenant."""

import re

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from domain.shared.errors import DomainError
from infra.postgres.db import Base, create_engine
from tests.support.clients import TenantClient

TENANT_TABLES = (
    *("tenants", "users", "invites", "sessions", "refresh_tokens", "api_keys", "agents", "agent_versions"),
    *("executions", "execution_events", "idempotency_keys", "evaluations", "artifacts", "artifact_ids"),
    *("artifact_bodies", "doomed_objects", "stat_deltas", "stat_rollups"),
    *("provider_keys", "models", "tools", "disabled_tools", "costs", "budgets", "cost_holds"),
    *("templates", "workflows", "crews", "crew_memories", "tasks", "schedules", "schedule_runs"),
    *("execution_steps", "workspace_files", "trace_exports"),
    *("plans", "plan_steps", "plan_signals", "plan_calls"),
    *("secrets", "files", "agent_states"),
    *("threads", "thread_messages", "gate_signals"),
    *("execution_terms", "execution_term_lists", "execution_term_queue", "bulk_operations", "bulk_items"),
)


@pytest.fixture
async def application_engine(system):
    engine = create_engine(system.settings.database_url.reveal(), pool_size=2, application="tests")
    yield engine
    await engine.dispose()


async def test_application_role_cannot_bypass_security(
    application_engine, acme: TenantClient, shared_tenant: TenantClient
) -> None:
    async with application_engine.connect() as connection:
        role = (
            await connection.execute(
                text("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user")
            )
        ).one()
        assert tuple(role) == (False, False, False)
        for table in TENANT_TABLES:
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0, table
        with pytest.raises(DBAPIError, match="permission denied|must be owner|row-level|cannot"):
            await connection.execute(text("SET row_security = off"))
            await connection.execute(text("SELECT count(*) FROM users"))


async def test_every_table_with_a_tenant_has_forced_row_security(application_engine) -> None:
    """Check partitions too, and force it for the owner too."""
    async with application_engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT c.relname, c.relispartition, c.relrowsecurity AND c.relforcerowsecurity AS held, "
                "ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid) AS policies "
                "FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace "
                "AND (c.relname = 'tenants' OR EXISTS (SELECT FROM pg_attribute a "
                "WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))"
            )
        )
        tables = rows.all()
    assert {row.relname for row in tables if not row.relispartition} == set(TENANT_TABLES)
    assert [row.relname for row in tables if not row.held] == []
    assert [row.relname for row in tables if "of_the_owner" not in row.policies] == []
    assert [row.relname for row in tables if "bound" not in row.policies and not row.relispartition] == []


async def test_partitions_are_read_through_their_table_only(application_engine, shared_tenant: TenantClient) -> None:
    async with application_engine.connect() as connection:
        query = "SELECT c.relname, c.relrowsecurity FROM pg_class c WHERE c.relispartition AND c.relkind = 'r'"
        security_by_partition = {row.relname: row.relrowsecurity for row in await connection.execute(text(query))}
        assert len(security_by_partition) >= 6
        assert all(security_by_partition.values())
        for name in security_by_partition:
            with pytest.raises(DBAPIError, match="permission denied"):
                await connection.execute(text(f"SELECT count(*) FROM {name}"))


async def test_rows_of_other_tenants_cannot_be_written(
    application_engine, acme: TenantClient, shared_tenant: TenantClient
) -> None:
    async with application_engine.connect() as connection:
        await connection.execute(text("SELECT set_config('paddock.tenant_id', :t, false)"), {"t": acme.tenant_id})
        assert (await connection.execute(text("SELECT count(*) FROM users"))).scalar_one() == 1
        result = await connection.execute(
            text("UPDATE users SET full_name = 'x' WHERE tenant_id = :other"), {"other": shared_tenant.tenant_id}
        )
        assert result.rowcount == 0
        with pytest.raises(DBAPIError, match="row-level security"):
            await connection.execute(
                text("INSERT INTO sessions SELECT gen_random_uuid(), :other, id, now() FROM users"),
                {"other": shared_tenant.tenant_id},
            )


async def test_events_can_be_added_and_never_changed(application_engine, shared_tenant: TenantClient) -> None:
    async with application_engine.connect() as connection:
        for statement in ("UPDATE execution_events SET seq = 0", "DELETE FROM execution_events"):
            with pytest.raises(DBAPIError, match="permission denied"):
                await connection.execute(text(statement))


async def test_migrations_match_the_row_classes(system) -> None:
    engine = create_engine(system.settings.database_owner_url.reveal(), pool_size=1, application="tests", as_owner=True)
    try:
        async with engine.connect() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(
                    MigrationContext.configure(
                        sync,
                        opts={
                            "include_name": lambda name, kind, _: (
                                kind in ("table", "column", "schema") and not re.search(r"_\d{4}_\d{2}$", name or "")
                            )
                        },
                    ),
                    Base.metadata,
                )
            )
    finally:
        await engine.dispose()
    table_differences = [
        difference
        for difference in differences
        if difference[0] in ("add_table", "remove_table", "add_column", "remove_column")
    ]
    assert [difference for difference in table_differences if "alembic_version" not in str(difference)] == []


async def test_rolled_back_transaction_rings_no_bell(resources, shared_tenant: TenantClient) -> None:
    from domain.shared.jobs import Job

    jobs_before = await resources.queue.count_jobs("build")
    with pytest.raises(RuntimeError):
        async with resources.store.tenant_transaction(shared_tenant.tenant_id) as tx:
            tx.ring_job(Job(lane="build", row_id="ver_x", tenant_id=shared_tenant.tenant_id, attempt=0))
            raise RuntimeError
    assert await resources.queue.count_jobs("build") == jobs_before


async def test_domain_errors_roll_back(resources, shared_tenant: TenantClient) -> None:
    from domain import agents
    from domain.agents import PatchAgent

    with pytest.raises(DomainError):
        async with resources.store.tenant_transaction(shared_tenant.tenant_id) as tx:
            await agents.patch_agent(tx, "hello", PatchAgent(description="changed"))
            await agents.get_agent(tx, "no such agent")
    assert (await shared_tenant.http.get("/agents/hello")).json()["description"] != "changed"
