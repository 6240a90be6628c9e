"""The tenant fence holds in every transaction: behind poolers, with any login, and for the owner of the tables."""

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec.structs import replace

from domain.shared.errors import DomainError
from domain.shared.secrets import Secret
from infra.embedded.postgres import find_binaries
from infra.postgres import session
from infra.postgres.db import create_engine
from infra.postgres.migrate import migrate_database
from infra.postgres.store import PostgresStore
from infra.wiring import open_resources
from scripts.release import set_tenant_plan
from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import register_tenant
from tests.support.pgbouncer import (
    ManagedDatabase,
    create_managed_database,
    needs_pgbouncer,
    run_pgbouncer,
    run_role_dropping_proxy,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANTS = ("one", "two", "three")


@pytest.fixture(scope="module")
async def managed_database(system: System) -> AsyncIterator[ManagedDatabase]:
    """Create a managed database, migrated by an owner who is no superuser, with three tenants of one user each."""
    async with create_managed_database(system) as database:
        await migrate_database(database.build_url())
        server = await asyncpg.connect(database.superuser_url)
        for name in TENANTS:
            await server.execute("INSERT INTO tenants (id, plan, created_at) VALUES ($1, 'standard', $2)", name, NOW)
            await server.execute(
                "INSERT INTO users (id, tenant_id, email, password_hash, role, is_active, created_at, updated_at) "
                "VALUES (gen_random_uuid(), $1, $2, '', 'admin', true, $3, $3)",
                *(name, f"{name}@example.com", NOW),
            )
        await server.close()
        yield database


@asynccontextmanager
async def open_store(url: str, size: int = 4) -> AsyncIterator[PostgresStore]:
    engine = create_engine(url, pool_size=size, application="tests")
    store = PostgresStore(engine, None, lambda: NOW)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


async def list_visible_tenants(store: PostgresStore, tenant_id: str | None) -> set[str]:
    """Return the tenants whose users a transaction sees, and check that it works as the application's role."""
    transaction = store.autocommit() if tenant_id is None else store.tenant_transaction(tenant_id)
    async with transaction as tx:
        raw = tx._raw  # type: ignore[attr-defined]
        assert await raw.fetchval("SELECT current_user::text") == "paddock_app"
        return {row["tenant_id"] for row in await raw.fetch("SELECT tenant_id FROM users")}


async def test_dropped_role_parameter_shows_no_other_tenant(managed_database: ManagedDatabase) -> None:
    async with (
        run_role_dropping_proxy(managed_database.server_url) as port,
        open_store(managed_database.build_url(port)) as store,
    ):
        await store.check_health()
        assert await list_visible_tenants(store, "one") == {"one"}
        assert await list_visible_tenants(store, None) == set()
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(False) is None


async def test_login_of_a_superuser_is_restricted_too(managed_database: ManagedDatabase) -> None:
    parsed = urlsplit(managed_database.superuser_url)
    async with run_role_dropping_proxy(managed_database.server_url) as port:
        netloc = f"{parsed.username}:{parsed.password}@127.0.0.1:{port}"
        async with open_store(parsed._replace(netloc=netloc).geturl()) as store:
            await store.check_health()
            assert await list_visible_tenants(store, "one") == {"one"}
            assert await list_visible_tenants(store, None) == set()


async def test_health_reports_a_superuser_session_without_the_role(
    managed_database: ManagedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remove the role from the opening statement, and check that health reports what the session can see."""
    async with open_store(managed_database.superuser_url) as store:
        await store.check_health()
        session_start = session.SessionStart(opening="BEGIN; ", single=True)
        monkeypatch.setattr("infra.postgres.store.get_session_start", lambda connection: session_start)
        async with store.tenant_transaction("one") as tx:
            rows = await tx._raw.fetch("SELECT tenant_id FROM users")  # type: ignore[attr-defined]
            assert {row["tenant_id"] for row in rows} == set(TENANTS)
        with pytest.raises(DomainError) as error:
            await store.check_health()
        assert (error.value.code, "work as 'paddock'" in error.value.detail) == ("database_unsafe", True)


async def test_forced_row_security_restricts_the_owner(managed_database: ManagedDatabase) -> None:
    """Check forced row-level security, without which the owner of the tables sees all rows."""
    server, owner = (
        await asyncpg.connect(managed_database.superuser_url),
        await asyncpg.connect(managed_database.build_url()),
    )
    try:
        assert await owner.fetch("SELECT * FROM users") == []
        await owner.execute("SELECT set_config('paddock.tenant_id', 'two', false)")
        assert [row["tenant_id"] for row in await owner.fetch("SELECT tenant_id FROM users")] == ["two"]
        await owner.execute("SELECT set_config('paddock.every_tenant', 'on', false)")
        assert await owner.fetchval("SELECT count(*) FROM users") == 3
        await owner.execute("RESET paddock.every_tenant; RESET paddock.tenant_id")
        await server.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
        assert await owner.fetchval("SELECT count(*) FROM users") == 3
        # The next migration closes a table that was left open.
        await migrate_database(managed_database.build_url())
        assert await owner.fetch("SELECT * FROM users") == []
    finally:
        await owner.close()
        await server.close()


async def test_owner_does_not_drop_a_partition_with_hidden_rows(managed_database: ManagedDatabase) -> None:
    server, owner = (
        await asyncpg.connect(managed_database.superuser_url),
        await asyncpg.connect(managed_database.build_url()),
    )
    try:
        await server.execute("SELECT make_partitions('evaluations', '2020-01-15', 0)")
        await server.execute(
            "INSERT INTO evaluations (id, tenant_id, user_id, created_at, prompt, response, metrics) "
            "VALUES (first_id('2020-01-15'), 'one', gen_random_uuid(), now(), '', '', 'sent')"
        )
        assert await owner.fetchval("SELECT drop_empty_partition('evaluations', '2020-06-01')") == 0
        assert await server.fetchval("SELECT count(*) FROM evaluations_2020_01") == 1
        await server.execute("DELETE FROM evaluations_2020_01")
        assert await owner.fetchval("SELECT drop_empty_partition('evaluations', '2020-06-01')") == 1
    finally:
        await owner.close()
        await server.close()


async def test_new_partition_is_guarded_at_once(managed_database: ManagedDatabase) -> None:
    async with open_store(managed_database.build_url()) as store, store.system_transaction() as tx:
        await tx.partitions.create_partitions(datetime(2031, 5, 1, tzinfo=UTC), 0)
    server = await asyncpg.connect(managed_database.superuser_url)
    try:
        query = (
            "SELECT bool_and(relrowsecurity AND relforcerowsecurity) FROM pg_class WHERE relname LIKE '%\\_2031\\_05'"
        )
        assert await server.fetchval(query) is True
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE ROLE {role}", "cannot take on the role"),
        ("SELECT '{role}'", "cannot take on the role"),
        ("CREATE ROLE {role} BYPASSRLS; GRANT {role} TO {login}", "can bypass row-level security"),
        ("CREATE ROLE {role} SUPERUSER; GRANT {role} TO {login}", "can bypass row-level security"),
        ("CREATE ROLE {role}; GRANT {role} TO paddock; GRANT paddock TO {role}", "cannot take on the role"),
        ("CREATE ROLE {role}; ALTER TABLE tenants OWNER TO {role}; GRANT {role} TO {login}", "rights of the tables'"),
    ],
)
async def test_unsafe_sessions_are_refused_at_connect_and_at_start(
    managed_database: ManagedDatabase, system: System, statement: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"role_{secrets.token_hex(6)}"
    server = await asyncpg.connect(managed_database.superuser_url)
    monkeypatch.setattr(session, "APP_ROLE", role)
    try:
        try:
            await server.execute(statement.format(role=role, login=managed_database.login))
        except asyncpg.InvalidGrantOperationError:
            await server.execute(f"CREATE ROLE {role}")
        async with open_store(managed_database.build_url()) as store:
            for _ in range(2):
                with pytest.raises(DomainError) as error:
                    async with store.tenant_transaction("one"):
                        pass
                assert (error.value.code, message in error.value.detail) == ("database_unsafe", True), error.value
        settings = replace(system.settings, database_url=Secret(managed_database.build_url()))
        with pytest.raises(session.UnsafeSession, match=message):
            async with open_resources(settings, "tests"):
                pass
    finally:
        await server.execute(f"ALTER TABLE tenants OWNER TO {managed_database.login}")
        await server.execute(f"DROP ROLE IF EXISTS {role}")
        await server.close()


async def test_health_reports_a_role_that_gains_rights_later(managed_database: ManagedDatabase) -> None:
    server, role = await asyncpg.connect(managed_database.superuser_url), f"role_{secrets.token_hex(6)}"
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(session, "APP_ROLE", role)
        try:
            await server.execute(f"CREATE ROLE {role}; GRANT {role} TO {managed_database.login}")
            async with open_store(managed_database.build_url()) as store:
                await store.check_health()
                await server.execute(f"ALTER ROLE {role} BYPASSRLS")
                with pytest.raises(DomainError, match="NOSUPERUSER NOBYPASSRLS"):
                    await store.check_health()
        finally:
            await server.execute(f"DROP ROLE IF EXISTS {role}")
            await server.close()


async def test_plan_is_set_by_an_owner_without_superuser_rights(
    managed_database: ManagedDatabase, system: System
) -> None:
    settings = replace(system.settings, database_owner_url=Secret(managed_database.build_url()))
    assert await set_tenant_plan(settings, "three", "premium") == 0
    assert await set_tenant_plan(settings, "missing", "premium") == 1


async def test_owner_dumps_all_rows_as_documented(managed_database: ManagedDatabase) -> None:
    def run_pg_dump(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                str(find_binaries() / "pg_dump"),
                "--data-only",
                "--table=users",
                f"--dbname={managed_database.build_url()}",
                *args,
            ],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "row-level security" in run_pg_dump().stderr
    assert "example.com" not in run_pg_dump("--enable-row-security").stdout
    dump = run_pg_dump("--enable-row-security", PGOPTIONS="-c paddock.every_tenant=on")
    assert dump.returncode == 0, dump.stderr
    assert all(f"{name}@example.com" in dump.stdout for name in TENANTS)


@needs_pgbouncer
async def test_many_tenants_share_few_pgbouncer_sessions(managed_database: ManagedDatabase) -> None:
    # Two processes' worth of clients: names of prepared statements would collide in shared sessions.
    async with (
        run_pgbouncer(managed_database, size=2) as port,
        open_store(managed_database.build_url(port), 8) as first,
        open_store(managed_database.build_url(port), 8) as second,
    ):

        async def check_visible_tenants(number: int) -> None:
            store, tenant_id = (first, second)[number % 2], (*TENANTS, "", None)[number % 5]
            assert await list_visible_tenants(store, tenant_id) == ({tenant_id} if tenant_id else set())
            async with store.system_transaction() as tx:
                await tx.queues.list_stats(tx.now)
                await tx.queues.count_runs_by_status(tx.now)

        await asyncio.gather(*(check_visible_tenants(number) for number in range(200)))
        await asyncio.gather(first.check_health(), second.check_health())


@needs_pgbouncer
async def test_system_works_behind_pgbouncer_with_an_ordinary_owner(system: System) -> None:
    async with create_managed_database(system) as database, run_pgbouncer(database) as port:
        settings = {
            "PADDOCK_DATABASE_URL": database.build_url(port),
            "PADDOCK_DATABASE_OWNER_URL": database.build_url(port),
        }
        async with (
            run_system(**settings) as pooled_system,
            register_tenant(pooled_system.url) as acme,
            register_tenant(pooled_system.url) as other_tenant,
        ):
            echo = await acme.deploy_agent("def handle(p):\n    print('said')\n    return p\n")
            runs = await asyncio.gather(*(acme.run_agent(echo, {"n": number}) for number in range(12)))
            assert [(run["status"], run["result"]) for run in runs] == [("completed", {"n": n}) for n in range(12)]
            assert (await other_tenant.http.get("/executions")).json()["total"] == 0
            assert (await other_tenant.http.get(f"/executions/{runs[0]['id']}")).status_code == 404
            key = await acme.create_key()
            async with acme.open_client(key) as http:
                record = {"prompt": "What is two and two?", "response": "Four.", "agent_name": "sums"}
                answer = await http.post("/evaluations", json=record)
                assert answer.status_code in (200, 201, 202), answer.text
                for _ in range(200):
                    evaluations = (await http.get("/evaluations")).json()
                    if evaluations["total"] == 1 and evaluations["items"][0].get("metrics_status", "done") != "pending":
                        break
                    await asyncio.sleep(0.1)
                assert evaluations["total"] == 1
            health = (await acme.http.get(f"{pooled_system.url}/health")).json()
            assert (health["services"]["database"], health["problems"]) == ("healthy", {})
            assert not [line for line in pooled_system.lines if "Traceback" in line or " error " in line], (
                pooled_system.lines[-20:]
            )
