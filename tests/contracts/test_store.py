"""Row-level security stands behind the application: its role sees nothing it was not bound to."""

import re

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from domain.shared.errors import DomainError
from infra.postgres.db import Base, create_engine
from tests.support.clients import TenantClient

WITH_TENANT = (
    *("tenants", "users", "invites", "sessions", "refresh_tokens", "api_keys", "agents", "agent_versions"),
    *("executions", "execution_events", "idempotency_keys", "evaluations", "artifacts", "artifact_ids"),
    *("artifact_bodies", "doomed_objects", "stat_deltas", "stat_rollups"),
    *("provider_keys", "models", "tools", "disabled_tools", "costs", "budgets", "cost_holds"),
    *("templates", "workflows", "crews", "tasks", "schedules", "schedule_runs"),
    *("execution_steps", "workspace_files", "trace_exports"),
    *("plans", "plan_steps", "plan_signals", "plan_calls"),
    *("secrets", "files", "agent_states"),
)


@pytest.fixture
async def application(system):
    engine = create_engine(system.settings.database_url.reveal(), pool_size=2, application="tests")
    yield engine
    await engine.dispose()


async def test_the_role_can_bypass_nothing(application, acme: TenantClient, shared_tenant: TenantClient) -> None:
    async with application.connect() as connection:
        role = (
            await connection.execute(
                text("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user")
            )
        ).one()
        assert tuple(role) == (False, False, False)
        for table in WITH_TENANT:
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0, table
        with pytest.raises(DBAPIError, match="permission denied|must be owner|row-level|cannot"):
            await connection.execute(text("SET row_security = off"))
            await connection.execute(text("SELECT count(*) FROM users"))


async def test_every_table_with_a_tenant_is_guarded(application) -> None:
    """Partitions too, and from their owner too."""
    async with application.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT c.relname, c.relispartition, c.relrowsecurity AND c.relforcerowsecurity AS held, "
                "ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid) AS policies "
                "FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace "
                "AND (c.relname = 'tenants' OR EXISTS (SELECT FROM pg_attribute a "
                "WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))"
            )
        )
        found = rows.all()
    assert {row.relname for row in found if not row.relispartition} == set(WITH_TENANT)
    assert [row.relname for row in found if not row.held] == []
    assert [row.relname for row in found if "of_the_owner" not in row.policies] == []
    assert [row.relname for row in found if "bound" not in row.policies and not row.relispartition] == []


async def test_partitions_are_reached_through_their_table_alone(application, shared_tenant: TenantClient) -> None:
    async with application.connect() as connection:
        query = "SELECT c.relname, c.relrowsecurity FROM pg_class c WHERE c.relispartition AND c.relkind = 'r'"
        found = {row.relname: row.relrowsecurity for row in await connection.execute(text(query))}
        assert len(found) >= 6
        assert all(found.values())
        for name in found:
            with pytest.raises(DBAPIError, match="permission denied"):
                await connection.execute(text(f"SELECT count(*) FROM {name}"))


async def test_bound_to_one_tenant_the_rows_of_others_cannot_be_written(
    application, acme: TenantClient, shared_tenant: TenantClient
) -> None:
    async with application.connect() as connection:
        await connection.execute(text("SELECT set_config('paddock.tenant_id', :t, false)"), {"t": acme.tenant_id})
        assert (await connection.execute(text("SELECT count(*) FROM users"))).scalar_one() == 1
        changed = await connection.execute(
            text("UPDATE users SET full_name = 'x' WHERE tenant_id = :other"), {"other": shared_tenant.tenant_id}
        )
        assert changed.rowcount == 0
        with pytest.raises(DBAPIError, match="row-level security"):
            await connection.execute(
                text("INSERT INTO sessions SELECT gen_random_uuid(), :other, id, now() FROM users"),
                {"other": shared_tenant.tenant_id},
            )


async def test_events_can_be_added_and_never_changed(application, shared_tenant: TenantClient) -> None:
    async with application.connect() as connection:
        for statement in ("UPDATE execution_events SET seq = 0", "DELETE FROM execution_events"):
            with pytest.raises(DBAPIError, match="permission denied"):
                await connection.execute(text(statement))


async def test_migrations_and_row_classes_agree(system) -> None:
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
    real = [one for one in differences if one[0] in ("add_table", "remove_table", "add_column", "remove_column")]
    assert [one for one in real if "alembic_version" not in str(one)] == []


async def test_nothing_is_rung_for_what_was_not_committed(resources, shared_tenant: TenantClient) -> None:
    from domain.shared.jobs import Job

    before = await resources.queue.count_jobs("build")
    with pytest.raises(RuntimeError):
        async with resources.store.tenant_transaction(shared_tenant.tenant_id) as tx:
            tx.ring_job(Job(lane="build", row_id="ver_x", tenant_id=shared_tenant.tenant_id, attempt=0))
            raise RuntimeError
    assert await resources.queue.count_jobs("build") == before


async def test_errors_of_the_domain_roll_back(resources, shared_tenant: TenantClient) -> None:
    from domain import agents
    from domain.agents import PatchAgent

    with pytest.raises(DomainError):
        async with resources.store.tenant_transaction(shared_tenant.tenant_id) as tx:
            await agents.patch_agent(tx, "hello", PatchAgent(description="changed"))
            await agents.get_agent(tx, "no such agent")
    assert (await shared_tenant.http.get("/agents/hello")).json()["description"] != "changed"
