"""Old executions are removed completely from Postgres and object storage, and nothing that is still used."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from domain.retention import MAX_REMOVAL_BATCH, RETENTION_PERIODS
from domain.shared import ids
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.wiring import Resources, get_utc_now
from tests.support.clients import TenantClient, pack_archive
from tests.support.ended_work import SLEEPER, connect_as_owner, create_ended_work, wait_until_recorded
from tests.support.fake_provider import FakeProvider
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from workers.upkeep import Upkeep
from workers.upkeep.retention import RetentionSweeper

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1
"""


async def _move_into_past(owner: asyncpg.Connection, tenant_id: str, days: int) -> None:
    """Change the times of all that has ended as if it had ended so many days earlier."""
    ago = timedelta(days=days)
    await owner.execute(
        "UPDATE executions SET completed_at = completed_at - $2::interval WHERE tenant_id = $1 AND completed_at IS NOT NULL",
        *(tenant_id, ago),
    )
    await owner.execute(
        "UPDATE agent_versions SET created_at = created_at - $2::interval, updated_at = updated_at - $2::interval WHERE tenant_id = $1",
        *(tenant_id, ago),
    )
    await owner.execute(
        "UPDATE agents SET deleted_at = deleted_at - $2::interval WHERE tenant_id = $1 AND deleted_at IS NOT NULL",
        *(tenant_id, ago),
    )


async def _apply_retention(acme: TenantClient, resources: Resources) -> Counter[str]:
    """Remove what is older than thirty days of this tenant alone."""
    assert (await acme.http.patch("/tenant", json={"retention_days": 30})).status_code == 200
    removed = await RetentionSweeper(resources.store).remove_expired()
    await acme.http.patch("/tenant", json={"retention_days": None})
    return removed


async def _count_rows(owner: asyncpg.Connection, execution_ids: list[str]) -> dict[str, int]:
    """Count the rows of these executions in every table that has an `execution_id`."""
    row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
    tables = await owner.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
        "AND a.attname = 'execution_id' AND a.atttypid = 'uuid'::regtype"
    )
    count_by_table = {
        "executions": await owner.fetchval("SELECT count(*) FROM executions WHERE id = ANY ($1)", row_ids)
    }
    for (table,) in tables:
        query = f"SELECT count(*) FROM {table} WHERE execution_id = ANY ($1)"
        count_by_table[table] = await owner.fetchval(query, row_ids)
    return {table: count for table, count in count_by_table.items() if count}


@pytest.fixture
async def ended_work(system, acme: TenantClient, provider: FakeProvider) -> dict[str, list[str]]:
    return await create_ended_work(acme, provider)


async def test_old_executions_are_removed_completely(
    system, resources, acme: TenantClient, other_tenant: TenantClient, ended_work
) -> None:
    other_agent = await other_tenant.deploy_agent(SLEEPER)
    other_execution = (await other_tenant.run_agent(other_agent))["id"]
    statistics_before = [
        (await acme.http.get(path)).json() for path in ("/stats", "/costs/summary", "/evaluations/stats")
    ]
    cost_count = (await acme.http.get("/costs")).json()["total"]
    # A running execution is not old, whenever it started.
    running_execution = await acme.start_execution(ended_work["agents"][0], {"for": 30})
    async with connect_as_owner(system) as owner:
        for tenant in (acme, other_tenant):
            await wait_until_recorded(owner, tenant.tenant_id)
        statistics_before[0] = (await acme.http.get("/stats")).json()
        await owner.execute(
            "UPDATE executions SET created_at = created_at - interval '40 days' WHERE id = $1",
            ids.decode_id("exec", running_execution["id"]),
        )
        for tenant in (acme, other_tenant):
            await _move_into_past(owner, tenant.tenant_id, 40)
        key = f"workspaces/{acme.tenant_id}/"
        assert [blob.key async for blob in resources.blobs.list_objects(key)] != []
        assert len(await _count_rows(owner, ended_work["executions"])) > 5
        removed = await _apply_retention(acme, resources)
        assert removed["executions"] == len(ended_work["executions"])
        # Records have their own age and are removed by it.
        assert set(await _count_rows(owner, ended_work["executions"])) <= {"artifacts", "costs", "evaluations"}
        assert await _count_rows(owner, [other_execution]) != {}
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE tenant_id = $1", acme.tenant_id) == 1
    later_upkeep = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(days=2),
    )
    await later_upkeep.sweep_objects()
    assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    for execution_id in ended_work["executions"]:
        assert (await acme.http.get(f"/executions/{execution_id}")).status_code == 404
    assert (await other_tenant.http.get(f"/executions/{other_execution}")).status_code == 200
    # Sums are those of the remaining records, which are as many as before.
    statistics_after = [
        (await acme.http.get(path)).json() for path in ("/stats", "/costs/summary", "/evaluations/stats")
    ]
    assert statistics_after == statistics_before
    assert (await acme.http.get("/costs")).json()["total"] == cost_count
    running_after = (await acme.http.get(f"/executions/{running_execution['id']}")).json()
    assert running_after["status"] in ("pending", "preparing", "running")
    await acme.http.post(f"/executions/{running_execution['id']}/cancel")


async def test_unrecorded_and_running_executions_stay(system, resources, acme: TenantClient, ended_work) -> None:
    async with connect_as_owner(system) as owner:
        await wait_until_recorded(owner, acme.tenant_id)
        await _move_into_past(owner, acme.tenant_id, 40)
        leaf = ids.decode_id("exec", ended_work["executions"][-2])
        root = await owner.fetchval("SELECT root_id FROM executions WHERE id = $1", leaf)
        assert root is not None
        # Pretend that one child is still being stopped.
        done = await owner.fetchval("SELECT completed_at FROM executions WHERE id = $1", leaf)
        await owner.execute("UPDATE executions SET completed_at = NULL WHERE id = $1", leaf)
        await _apply_retention(acme, resources)
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE root_id = $1 OR id = $1", root) == 5
        await owner.execute("UPDATE executions SET completed_at = $2 WHERE id = $1", leaf, done)
        await _apply_retention(acme, resources)
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE tenant_id = $1", acme.tenant_id) == 0


async def test_versions_in_use_stay(system, resources, acme: TenantClient) -> None:
    agent = await acme.create_agent()
    versions = [
        await acme.build_version(agent["id"], pack_archive({"agent.py": f"def handle(p): return {n}\n"}))
        for n in range(4)
    ]
    failed_version = await acme.build_version(agent["id"], pack_archive({"agent.py": "1 / 0\n"}))
    assert failed_version["status"] == "failed"
    # Another agent that was deleted, with all its versions.
    deleted_agent = await acme.deploy_agent("def handle(p): return 0\n")
    (deleted_version,) = (await acme.http.get(f"/agents/{deleted_agent}/versions")).json()["items"]
    await acme.http.delete(f"/agents/{deleted_agent}")
    execution_id = (await acme.run_agent(agent["id"], {}, agent_version_id=versions[1]["id"]))["id"]
    async with connect_as_owner(system) as owner:
        await wait_until_recorded(owner, acme.tenant_id)
        await owner.execute(
            "UPDATE agent_versions SET created_at = created_at - interval '40 days', "
            "updated_at = updated_at - interval '40 days' WHERE tenant_id = $1",
            acme.tenant_id,
        )
        await owner.execute(
            "UPDATE agents SET deleted_at = deleted_at - interval '40 days' WHERE id = $1",
            ids.decode_id("agent", deleted_agent),
        )
        removed = await _apply_retention(acme, resources)
        assert (removed["versions"], removed["agents"]) == (3, 1)
        listed = (await acme.http.get(f"/agents/{agent['id']}/versions")).json()["items"]
        # The active one, the newest (so that numbers are not reused), and the one that an execution used.
        assert [version["number"] for version in listed] == [5, 4, 2]
        await _move_into_past(owner, acme.tenant_id, 40)
        removed = await _apply_retention(acme, resources)
        assert (removed["executions"], removed["versions"]) == (1, 1)
        assert await _count_rows(owner, [execution_id]) == {"artifacts": 1}
    later_upkeep = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(days=2),
    )
    await later_upkeep.sweep_objects()
    for version in (*versions[:3], deleted_version):
        for key in (version["tarball_path"], version["bundle_path"]):
            assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    for key in (versions[3]["tarball_path"], versions[3]["bundle_path"], failed_version["tarball_path"]):
        assert [blob.key async for blob in resources.blobs.list_objects(key)] == [key]
    assert (await acme.run_agent(agent["id"], {}))["output_data"] == 3
    new_version = await acme.build_version(agent["id"], pack_archive({"agent.py": "def handle(p): return 6\n"}))
    assert new_version["number"] == 6


async def test_version_named_by_a_plan_stays(system, resources, acme: TenantClient) -> None:
    """Keep the version that a started plan refers to, as its step may start long after another version became active."""
    agent = await acme.create_agent()
    first_version = await acme.build_version(agent["id"], pack_archive({"agent.py": "def handle(p): return 'first'\n"}))
    steps = [{"id": "run", "agent": agent["id"], "requires_approval": True}]
    workflow = await acme.http.post("/workflows", json={"name": "w", "steps": steps})
    assert workflow.status_code == 201, workflow.text
    plan_execution = (await acme.http.post(f"/workflows/{workflow.json()['id']}/execute", json={})).json()
    for source in ("second", "third"):
        await acme.build_version(agent["id"], pack_archive({"agent.py": f"def handle(p): return '{source}'\n"}))
    async with connect_as_owner(system) as owner:
        await _move_into_past(owner, acme.tenant_id, 40)
    removed = await _apply_retention(acme, resources)
    # The second version was never used; the plan will start the first.
    assert removed["versions"] == 1
    assert (await acme.http.get(f"/agents/{agent['id']}/versions/{first_version['id']}")).status_code == 200
    await acme.http.post(f"/executions/{plan_execution['id']}/cancel")


async def test_retention_days_of_the_installation_apply_without_a_tenant_s_own(system) -> None:
    async with open_isolated_database(system) as database:
        first_tenant, second_tenant = await database.add_tenant(), await database.add_tenant()
        await database.owner.execute("UPDATE tenants SET retention_days = 7 WHERE id = $1", second_tenant.tenant_id)
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        try:
            async with store.system_transaction() as tx:
                assert await tx.retention.list_tenants(0) == [(second_tenant.tenant_id, 7)]
                assert dict(await tx.retention.list_tenants(90)) == {
                    first_tenant.tenant_id: 90,
                    second_tenant.tenant_id: 7,
                }
        finally:
            await store.close()


async def test_removal_runs_in_batches(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        await database.owner.execute("UPDATE tenants SET retention_days = 7 WHERE id = $1", caller.tenant_id)
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        count = 2 * MAX_REMOVAL_BATCH + 10
        await _add_executions(database, caller.tenant_id, ids.decode_id("user", caller.user_id), count)
        try:
            sizes = []
            async with asyncio.timeout(60):
                while not sizes or sizes[-1]:
                    async with store.tenant_transaction(caller.tenant_id) as tx:
                        sizes.append(await tx.retention.delete_executions(tx.now - timedelta(days=7)))
            assert sizes == [MAX_REMOVAL_BATCH, MAX_REMOVAL_BATCH, 10, 0]
            # One with very many events is a batch of its own.
            await _add_executions(database, caller.tenant_id, ids.decode_id("user", caller.user_id), 3, events=25_000)
            async with store.tenant_transaction(caller.tenant_id) as tx:
                assert await tx.retention.delete_executions(tx.now - timedelta(days=7)) == 1
            # Another tenant's call reaches none of them.
            other = await database.add_tenant()
            async with store.tenant_transaction(other.tenant_id) as tx:
                assert await tx.retention.delete_executions(tx.now) == 0
            assert (await RetentionSweeper(store).remove_expired())["executions"] == 2
            assert await database.owner.fetchval("SELECT count(*) FROM execution_events") == 0
        finally:
            await store.close()


async def _add_executions(
    database: IsolatedDatabase, tenant_id: str, user: object, count: int, events: int = 1
) -> None:
    await database.owner.execute(
        "INSERT INTO executions (id, tenant_id, user_id, run_name, kind, lane, status, attempt, max_attempts, timeout, "
        "steps_total, steps_completed, recorded, total_cost, last_seq, created_at, completed_at, updated_at) "
        "SELECT gen_random_uuid(), $1, $2, 'r', 'agent', 'run', 'completed', 1, 1, 1, 1, 1, true, 0, $4, "
        "now() - interval '9 days', now() - interval '8 days', now() FROM generate_series(1, $3)",
        *(tenant_id, user, count, events),
    )
    await database.owner.execute(
        "INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data) "
        "SELECT id, n, tenant_id, now(), 'log', '{}' FROM executions, generate_series(1, $1) AS n",
        events,
    )


async def test_expired_rows_are_removed_and_others_stay(system) -> None:
    """Add one expired and one younger row of every kind."""
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        user, tenant = ids.decode_id("user", caller.user_id), caller.tenant_id
        rows = {
            "answers": "INSERT INTO idempotency_keys (tenant_id, owner, key, fingerprint, status, body, created_at) "
            "VALUES ($1, $2::uuid::text, gen_random_uuid(), '', 200, '', $3)",
            "refresh_tokens": "WITH s AS (INSERT INTO sessions (id, tenant_id, user_id, created_at) "
            "VALUES (gen_random_uuid(), $1, $2, now()) RETURNING id) INSERT INTO refresh_tokens "
            "SELECT sha256(s.id::text::bytea), $1, s.id, $3 FROM s",
            "sessions": "INSERT INTO sessions (id, tenant_id, user_id, created_at) "
            "VALUES (gen_random_uuid(), $1, $2, $3)",
            "invites": "INSERT INTO invites (id, tenant_id, email, role, token_hash, expires_at, created_at) "
            "VALUES (gen_random_uuid(), $1, $2::uuid::text, 'member', sha256(random()::text::bytea), $3, now())",
            "holds": "INSERT INTO cost_holds (id, tenant_id, execution_id, subjects, amount, until) "
            "VALUES (gen_random_uuid(), $1, $2, '{}', 1, $3)",
            "trace_exports": "WITH w AS (INSERT INTO trace_export (wanted_at) VALUES ($3) ON CONFLICT (one) "
            "DO UPDATE SET wanted_at = excluded.wanted_at) INSERT INTO trace_exports (execution_id, tenant_id, due_at) "
            "SELECT gen_random_uuid(), $1, $3 WHERE $2::uuid IS NOT NULL",
            "bulk_operations": "INSERT INTO bulk_operations (id, tenant_id, user_id, scopes, action, status, total, "
            "done, failed, created_at, updated_at, completed_at) "
            "VALUES (gen_random_uuid(), $1, $2, '{}', 'delete', 'completed', 0, 0, 0, $3, $3, $3)",
            "workers": "INSERT INTO workers (id, lane, host, pid, slots, busy, started_at, seen_at) "
            "SELECT gen_random_uuid(), 'run', $1, 1, 1, 1, $3, $3 WHERE $2::uuid IS NOT NULL",
            "files": "INSERT INTO files (id, tenant_id, user_id, name, content_type, size_bytes, sha256, key, created_at, "
            "expires_at) VALUES (gen_random_uuid(), $1, $2, 'a', 'text/plain', 1, '', 'k', $3, $3)",
        }
        table = {"answers": "idempotency_keys", "holds": "cost_holds"}
        assert {*rows, "schedule_runs"} == set(RETENTION_PERIODS), "a new kind wants its row here"
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        try:
            for kind, insert in rows.items():
                for is_younger in (True, False):
                    at = datetime.now(UTC) - RETENTION_PERIODS[kind] + timedelta(minutes=1 if is_younger else -1)  # type: ignore[index]
                    await database.owner.execute(insert, tenant, user, at)
                    name = table.get(kind, kind)
                    count = await database.owner.fetchval(f"SELECT count(*) FROM {name}")
                    removed = await RetentionSweeper(store).remove_expired()
                    assert removed[kind] == (0 if is_younger else (2 if kind == "trace_exports" else 1)), kind
                    rows_left = await database.owner.fetchval(f"SELECT count(*) FROM {name}")
                    assert rows_left == count - removed[kind], kind
        finally:
            await store.close()


async def test_every_table_s_removal_is_documented(system) -> None:
    """Compare the tables with the page for operators, which names who removes their rows, and when."""
    text = OPERATIONS.read_text()
    section = text.split("## What grows, and who removes it")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    documented_tables = {name.strip("` ") for row in rows for name in row[0].split(",")}
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    async with connect_as_owner(system) as owner:
        tables = {row["relname"] for row in await owner.fetch(_TABLES)}
    assert tables - documented_tables == set(), "document in docs/operations.md who removes these rows"
    assert documented_tables - tables == set(), "these tables do not exist"
