"""The tenants' fence stands in every transaction: behind poolers, with any login, and against the tables' owner."""

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
async def elsewhere(system: System) -> AsyncIterator[ManagedDatabase]:
    """A managed database, migrated by an owner who is no superuser, that holds three tenants with a user each."""
    async with create_managed_database(system) as made:
        await migrate_database(made.build_url())
        server = await asyncpg.connect(made.superuser_url)
        for name in TENANTS:
            await server.execute("INSERT INTO tenants (id, plan, created_at) VALUES ($1, 'standard', $2)", name, NOW)
            await server.execute(
                "INSERT INTO users (id, tenant_id, email, password_hash, role, is_active, created_at, updated_at) "
                "VALUES (gen_random_uuid(), $1, $2, '', 'admin', true, $3, $3)",
                *(name, f"{name}@example.com", NOW),
            )
        await server.close()
        yield made


@asynccontextmanager
async def stored(url: str, size: int = 4) -> AsyncIterator[PostgresStore]:
    engine = create_engine(url, pool_size=size, application="tests")
    store = PostgresStore(engine, None, lambda: NOW)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


async def seen(store: PostgresStore, bound: str | None) -> set[str]:
    """Whose users a transaction shows, and that it works as the application's role."""
    begun = store.autocommit() if bound is None else store.tenant_transaction(bound)
    async with begun as tx:
        raw = tx._raw  # type: ignore[attr-defined]
        assert await raw.fetchval("SELECT current_user::text") == "paddock_app"
        return {row["tenant_id"] for row in await raw.fetch("SELECT tenant_id FROM users")}


async def test_a_dropped_role_shows_no_other_tenant(elsewhere: ManagedDatabase) -> None:
    async with run_role_dropping_proxy(elsewhere.server_url) as port, stored(elsewhere.build_url(port)) as store:
        await store.check_health()
        assert await seen(store, "one") == {"one"}
        assert await seen(store, None) == set()
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(False) is None


async def test_a_superuser_who_logs_in_is_held_too(elsewhere: ManagedDatabase) -> None:
    parsed = urlsplit(elsewhere.superuser_url)
    async with run_role_dropping_proxy(elsewhere.server_url) as port:
        netloc = f"{parsed.username}:{parsed.password}@127.0.0.1:{port}"
        async with stored(parsed._replace(netloc=netloc).geturl()) as store:
            await store.check_health()
            assert await seen(store, "one") == {"one"}
            assert await seen(store, None) == set()


async def test_without_the_role_in_each_transaction_a_superuser_sees_all_and_health_says_so(
    elsewhere: ManagedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack, with its guard taken away: what the opening statement is there for, and what the check is."""
    async with stored(elsewhere.superuser_url) as store:
        await store.check_health()
        bare = session.SessionStart(opening="BEGIN; ", single=True)
        monkeypatch.setattr("infra.postgres.store.get_session_start", lambda connection: bare)
        async with store.tenant_transaction("one") as tx:
            rows = await tx._raw.fetch("SELECT tenant_id FROM users")  # type: ignore[attr-defined]
            assert {row["tenant_id"] for row in rows} == set(TENANTS)
        with pytest.raises(DomainError) as caught:
            await store.check_health()
        assert (caught.value.code, "work as 'paddock'" in caught.value.detail) == ("database_unsafe", True)


async def test_the_owner_is_held_where_no_role_is_taken_on(elsewhere: ManagedDatabase) -> None:
    """The second fence: forced row-level security. Without it, the owner of the tables sees all."""
    server, owner = await asyncpg.connect(elsewhere.superuser_url), await asyncpg.connect(elsewhere.build_url())
    try:
        assert await owner.fetch("SELECT * FROM users") == []
        await owner.execute("SELECT set_config('paddock.tenant_id', 'two', false)")
        assert [row["tenant_id"] for row in await owner.fetch("SELECT tenant_id FROM users")] == ["two"]
        await owner.execute("SELECT set_config('paddock.every_tenant', 'on', false)")
        assert await owner.fetchval("SELECT count(*) FROM users") == 3
        await owner.execute("RESET paddock.every_tenant; RESET paddock.tenant_id")
        await server.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
        assert await owner.fetchval("SELECT count(*) FROM users") == 3
        # A table that a later migration left open, or a hand, is closed by the next one.
        await migrate_database(elsewhere.build_url())
        assert await owner.fetch("SELECT * FROM users") == []
    finally:
        await owner.close()
        await server.close()


async def test_the_owner_does_not_drop_a_partition_whose_rows_it_cannot_see(elsewhere: ManagedDatabase) -> None:
    server, owner = await asyncpg.connect(elsewhere.superuser_url), await asyncpg.connect(elsewhere.build_url())
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


async def test_a_partition_that_is_made_is_guarded_at_once(elsewhere: ManagedDatabase) -> None:
    async with stored(elsewhere.build_url()) as store, store.system_transaction() as tx:
        await tx.partitions.create_partitions(datetime(2031, 5, 1, tzinfo=UTC), 0)
    server = await asyncpg.connect(elsewhere.superuser_url)
    try:
        held = (
            "SELECT bool_and(relrowsecurity AND relforcerowsecurity) FROM pg_class WHERE relname LIKE '%\\_2031\\_05'"
        )
        assert await server.fetchval(held) is True
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE ROLE {role}", "cannot take on the role"),
        ("SELECT '{role}'", "cannot take on the role"),
        ("CREATE ROLE {role} BYPASSRLS; GRANT {role} TO {login}", "can bypass row-level security"),
        ("CREATE ROLE {role} SUPERUSER; GRANT {role} TO {login}", "can bypass row-level security"),
        ("CREATE ROLE {role}; GRANT {role} TO paddock; GRANT paddock TO {role}", "cannot take on the role"),
        ("CREATE ROLE {role}; ALTER TABLE tenants OWNER TO {role}; GRANT {role} TO {login}", "rights of the tables'"),
    ],
)
async def test_a_session_that_could_see_all_is_refused_at_connect_and_at_start(
    elsewhere: ManagedDatabase, system: System, made: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"role_{secrets.token_hex(6)}"
    server = await asyncpg.connect(elsewhere.superuser_url)
    monkeypatch.setattr(session, "APP_ROLE", role)
    try:
        try:
            await server.execute(made.format(role=role, login=elsewhere.login))
        except asyncpg.InvalidGrantOperationError:
            await server.execute(f"CREATE ROLE {role}")
        async with stored(elsewhere.build_url()) as store:
            for _ in range(2):
                with pytest.raises(DomainError) as caught:
                    async with store.tenant_transaction("one"):
                        pass
                assert (caught.value.code, said in caught.value.detail) == ("database_unsafe", True), caught.value
        settings = replace(system.settings, database_url=Secret(elsewhere.build_url()))
        with pytest.raises(session.UnsafeSession, match=said):
            async with open_resources(settings, "tests"):
                pass
    finally:
        await server.execute(f"ALTER TABLE tenants OWNER TO {elsewhere.login}")
        await server.execute(f"DROP ROLE IF EXISTS {role}")
        await server.close()


async def test_a_role_that_becomes_mighty_later_is_found_by_health(elsewhere: ManagedDatabase) -> None:
    server, role = await asyncpg.connect(elsewhere.superuser_url), f"role_{secrets.token_hex(6)}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "APP_ROLE", role)
        try:
            await server.execute(f"CREATE ROLE {role}; GRANT {role} TO {elsewhere.login}")
            async with stored(elsewhere.build_url()) as store:
                await store.check_health()
                await server.execute(f"ALTER ROLE {role} BYPASSRLS")
                with pytest.raises(DomainError, match="NOSUPERUSER NOBYPASSRLS"):
                    await store.check_health()
        finally:
            await server.execute(f"DROP ROLE IF EXISTS {role}")
            await server.close()


async def test_an_operator_sets_a_plan_as_an_owner_who_is_held(elsewhere: ManagedDatabase, system: System) -> None:
    settings = replace(system.settings, database_owner_url=Secret(elsewhere.build_url()))
    assert await set_tenant_plan(settings, "three", "premium") == 0
    assert await set_tenant_plan(settings, "nobody", "premium") == 1


async def test_the_owner_dumps_all_of_it_as_the_page_on_operations_says(elsewhere: ManagedDatabase) -> None:
    def dumped(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                str(find_binaries() / "pg_dump"),
                "--data-only",
                "--table=users",
                f"--dbname={elsewhere.build_url()}",
                *args,
            ],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "row-level security" in dumped().stderr
    assert "example.com" not in dumped("--enable-row-security").stdout
    whole = dumped("--enable-row-security", PGOPTIONS="-c paddock.every_tenant=on")
    assert whole.returncode == 0, whole.stderr
    assert all(f"{name}@example.com" in whole.stdout for name in TENANTS)


@needs_pgbouncer
async def test_many_tenants_through_few_sessions_of_pgbouncer_see_themselves_alone(elsewhere: ManagedDatabase) -> None:
    # Two processes' worth of clients: names of statements would meet in the sessions that they share.
    async with (
        run_pgbouncer(elsewhere, size=2) as port,
        stored(elsewhere.build_url(port), 8) as one,
        stored(elsewhere.build_url(port), 8) as other,
    ):

        async def look(number: int) -> None:
            store, bound = (one, other)[number % 2], (*TENANTS, "", None)[number % 5]
            assert await seen(store, bound) == ({bound} if bound else set())
            async with store.system_transaction() as tx:
                await tx.queues.list_stats(tx.now)
                await tx.queues.count_runs_by_status(tx.now)

        await asyncio.gather(*(look(number) for number in range(200)))
        await asyncio.gather(one.check_health(), other.check_health())


@needs_pgbouncer
async def test_the_whole_system_works_behind_pgbouncer_with_an_owner_who_is_no_superuser(system: System) -> None:
    async with create_managed_database(system) as made, run_pgbouncer(made) as port:
        settings = {"PADDOCK_DATABASE_URL": made.build_url(port), "PADDOCK_DATABASE_OWNER_URL": made.build_url(port)}
        async with (
            run_system(**settings) as pooled,
            register_tenant(pooled.url) as acme,
            register_tenant(pooled.url) as rival,
        ):
            echo = await acme.deploy_agent("def handle(p):\n    print('said')\n    return p\n")
            runs = await asyncio.gather(*(acme.run_agent(echo, {"n": number}) for number in range(12)))
            assert [(run["status"], run["result"]) for run in runs] == [("completed", {"n": n}) for n in range(12)]
            assert (await rival.http.get("/executions")).json()["total"] == 0
            assert (await rival.http.get(f"/executions/{runs[0]['id']}")).status_code == 404
            key = await acme.create_key()
            async with acme.open_client(key) as http:
                record = {"prompt": "What is two and two?", "response": "Four.", "agent_name": "sums"}
                made_record = await http.post("/evaluations", json=record)
                assert made_record.status_code in (200, 201, 202), made_record.text
                for _ in range(200):
                    found = (await http.get("/evaluations")).json()
                    if found["total"] == 1 and found["items"][0].get("metrics_status", "done") != "pending":
                        break
                    await asyncio.sleep(0.1)
                assert found["total"] == 1
            health = (await acme.http.get(f"{pooled.url}/health")).json()
            assert (health["services"]["database"], health["problems"]) == ("healthy", {})
            assert not [line for line in pooled.lines if "Traceback" in line or " error " in line], pooled.lines[-20:]
