"""What becomes too old leaves nothing behind, in Postgres or object storage, and takes nothing along that serves."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from domain.retention import MAX_REMOVAL_BATCH, RETENTION_PERIODS
from domain.shared import ids
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.wiring import Resources, get_utc_now
from scripts.system import System
from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.model_agents import create_model, create_model_agent, generate_name
from workers.upkeep import Upkeep
from workers.upkeep.retention import RetentionSweeper

SLEEPER = "import time\ndef handle(p):\n    print('said')\n    time.sleep(p.get('for', 0))\n    return p\n"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1
"""


@asynccontextmanager
async def _owner(system: System) -> AsyncIterator[asyncpg.Connection]:
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    await owner.execute("SELECT set_config('paddock.every_tenant', 'on', false)")
    try:
        yield owner
    finally:
        await owner.close()


async def _recorded(owner: asyncpg.Connection, tenant_id: str) -> None:
    query = (
        "SELECT count(*) FROM executions WHERE tenant_id = $1 AND completed_at IS NOT NULL AND NOT recorded "
        "AND lane <> 'plan'"
    )
    async with asyncio.timeout(60):
        while await owner.fetchval(query, tenant_id):
            await asyncio.sleep(0.05)


async def _age(owner: asyncpg.Connection, tenant_id: str, days: int) -> None:
    """As if all that has ended had ended so many days before."""
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


async def _retain(acme: TenantClient, resources: Resources) -> Counter[str]:
    """Remove what this tenant has from more than thirty days ago; and nobody else's."""
    assert (await acme.http.patch("/tenant", json={"retention_days": 30})).status_code == 200
    gone = await RetentionSweeper(resources.store).remove_expired()
    await acme.http.patch("/tenant", json={"retention_days": None})
    return gone


async def _left(owner: asyncpg.Connection, execution_ids: list[str]) -> dict[str, int]:
    """The rows of these executions, in every table that knows of executions."""
    wanted = [ids.decode_id("exec", one) for one in execution_ids]
    tables = await owner.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
        "AND a.attname = 'execution_id' AND a.atttypid = 'uuid'::regtype"
    )
    found = {"executions": await owner.fetchval("SELECT count(*) FROM executions WHERE id = ANY ($1)", wanted)}
    for (table,) in tables:
        query = f"SELECT count(*) FROM {table} WHERE execution_id = ANY ($1)"
        found[table] = await owner.fetchval(query, wanted)
    return {table: count for table, count in found.items() if count}


async def _all_below(acme: TenantClient, execution_id: str) -> list[str]:
    found = [execution_id]
    children = (await acme.http.get(f"/executions?parent_id={execution_id}&limit=200")).json()["items"]
    for child in children:
        found += await _all_below(acme, child["id"])
    return found


@pytest.fixture
async def made(system, acme: TenantClient, provider: FakeProvider) -> dict[str, list[str]]:
    """Executions of every kind that have ended: of code, of a model with a file, of a plan within a plan."""
    sleeper = await acme.deploy_agent(SLEEPER)
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    writer = await create_model_agent(acme, name, tools=["filesystem_write"])
    write = build_call("filesystem_write", {"path": "notes", "content": "what I noted"})
    provider.queue_text("I write", [write], to=name)
    provider.queue_text("Done", to=name)
    body = {"task": "Go", "mode": "yolo"}
    written = (await acme.http.post(f"/agents/{writer['id']}/execute", json=body)).json()["id"]
    steps = [{"id": f"s{n}", "agent": sleeper, "inputs": {"n": n}} for n in range(3)]
    inner = (await acme.http.post("/workflows", json={"name": "inner", "steps": steps})).json()
    outer_body = {"name": "outer", "steps": [{"id": "whole", "workflow": inner["id"]}]}
    outer = await acme.http.post("/workflows", json=outer_body)
    assert outer.status_code == 201, outer.text
    planned = (await acme.http.post(f"/workflows/{outer.json()['id']}/execute", json={})).json()["id"]
    ran = (await acme.start_execution(sleeper, {"n": 1}))["id"]
    for execution_id in (written, planned, ran):
        assert (await acme.wait_for_end(execution_id))["status"] == "completed"
    whole = [one for root in (written, planned, ran) for one in await _all_below(acme, root)]
    assert len(whole) == 1 + 1 + 1 + 1 + 3
    return {"agents": [sleeper, writer["id"]], "executions": whole, "written": [written]}


async def test_old_executions_leave_nothing_behind(
    system, resources, acme: TenantClient, other_tenant: TenantClient, made
) -> None:
    hello = await other_tenant.deploy_agent(SLEEPER)
    theirs = (await other_tenant.run_agent(hello))["id"]
    before = [(await acme.http.get(path)).json() for path in ("/stats", "/costs/summary", "/evaluations/stats")]
    spent = (await acme.http.get("/costs")).json()["total"]
    # What runs is not old, however long ago it began.
    runs = await acme.start_execution(made["agents"][0], {"for": 30})
    async with _owner(system) as owner:
        for tenant in (acme, other_tenant):
            await _recorded(owner, tenant.tenant_id)
        before[0] = (await acme.http.get("/stats")).json()
        await owner.execute(
            "UPDATE executions SET created_at = created_at - interval '40 days' WHERE id = $1",
            ids.decode_id("exec", runs["id"]),
        )
        for tenant in (acme, other_tenant):
            await _age(owner, tenant.tenant_id, 40)
        key = f"workspaces/{acme.tenant_id}/"
        assert [blob.key async for blob in resources.blobs.list_objects(key)] != []
        assert len(await _left(owner, made["executions"])) > 5
        gone = await _retain(acme, resources)
        assert gone["executions"] == len(made["executions"])
        # Records of them are as old as they say themselves, and go by that.
        assert set(await _left(owner, made["executions"])) <= {"artifacts", "costs", "evaluations"}
        assert await _left(owner, [theirs]) != {}
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE tenant_id = $1", acme.tenant_id) == 1
    later = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(days=2),
    )
    await later.sweep_objects()
    assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    for execution_id in made["executions"]:
        assert (await acme.http.get(f"/executions/{execution_id}")).status_code == 404
    assert (await other_tenant.http.get(f"/executions/{theirs}")).status_code == 200
    # Sums are those of the records there are, which are as many as before.
    after = [(await acme.http.get(path)).json() for path in ("/stats", "/costs/summary", "/evaluations/stats")]
    assert after == before
    assert (await acme.http.get("/costs")).json()["total"] == spent
    still = (await acme.http.get(f"/executions/{runs['id']}")).json()
    assert still["status"] in ("pending", "preparing", "running")
    await acme.http.post(f"/executions/{runs['id']}/cancel")


async def test_what_is_not_recorded_yet_or_still_runs_below_stays(system, resources, acme: TenantClient, made) -> None:
    async with _owner(system) as owner:
        await _recorded(owner, acme.tenant_id)
        await _age(owner, acme.tenant_id, 40)
        leaf = ids.decode_id("exec", made["executions"][-2])
        root = await owner.fetchval("SELECT root_id FROM executions WHERE id = $1", leaf)
        assert root is not None
        # As if one child were still being stopped.
        done = await owner.fetchval("SELECT completed_at FROM executions WHERE id = $1", leaf)
        await owner.execute("UPDATE executions SET completed_at = NULL WHERE id = $1", leaf)
        await _retain(acme, resources)
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE root_id = $1 OR id = $1", root) == 5
        await owner.execute("UPDATE executions SET completed_at = $2 WHERE id = $1", leaf, done)
        await _retain(acme, resources)
        assert await owner.fetchval("SELECT count(*) FROM executions WHERE tenant_id = $1", acme.tenant_id) == 0


async def test_versions_that_serve_go_on_serving(system, resources, acme: TenantClient) -> None:
    made = await acme.create_agent()
    versions = [
        await acme.build_version(made["id"], pack_archive({"agent.py": f"def handle(p): return {n}\n"}))
        for n in range(4)
    ]
    failed = await acme.build_version(made["id"], pack_archive({"agent.py": "1 / 0\n"}))
    assert failed["status"] == "failed"
    # One more that was deleted, with all it had.
    other = await acme.deploy_agent("def handle(p): return 0\n")
    (its,) = (await acme.http.get(f"/agents/{other}/versions")).json()["items"]
    await acme.http.delete(f"/agents/{other}")
    used = (await acme.run_agent(made["id"], {}, agent_version_id=versions[1]["id"]))["id"]
    async with _owner(system) as owner:
        await _recorded(owner, acme.tenant_id)
        await owner.execute(
            "UPDATE agent_versions SET created_at = created_at - interval '40 days', "
            "updated_at = updated_at - interval '40 days' WHERE tenant_id = $1",
            acme.tenant_id,
        )
        await owner.execute(
            "UPDATE agents SET deleted_at = deleted_at - interval '40 days' WHERE id = $1",
            ids.decode_id("agent", other),
        )
        gone = await _retain(acme, resources)
        assert (gone["versions"], gone["agents"]) == (3, 1)
        listed = (await acme.http.get(f"/agents/{made['id']}/versions")).json()["items"]
        # The active one, the newest (so that no number comes twice), and the one that an execution has run.
        assert [one["number"] for one in listed] == [5, 4, 2]
        await _age(owner, acme.tenant_id, 40)
        gone = await _retain(acme, resources)
        assert (gone["executions"], gone["versions"]) == (1, 1)
        assert await _left(owner, [used]) == {"artifacts": 1}
    later = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(days=2),
    )
    await later.sweep_objects()
    for version in (*versions[:3], its):
        for key in (version["tarball_path"], version["bundle_path"]):
            assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    for key in (versions[3]["tarball_path"], versions[3]["bundle_path"], failed["tarball_path"]):
        assert [blob.key async for blob in resources.blobs.list_objects(key)] == [key]
    assert (await acme.run_agent(made["id"], {}))["output_data"] == 3
    again = await acme.build_version(made["id"], pack_archive({"agent.py": "def handle(p): return 6\n"}))
    assert again["number"] == 6


async def test_a_version_that_a_plan_names_stays(system, resources, acme: TenantClient) -> None:
    """A plan was written down when it was started; its step may start long after another version became active."""
    made = await acme.create_agent()
    first = await acme.build_version(made["id"], pack_archive({"agent.py": "def handle(p): return 'first'\n"}))
    steps = [{"id": "run", "agent": made["id"], "requires_approval": True}]
    workflow = await acme.http.post("/workflows", json={"name": "w", "steps": steps})
    assert workflow.status_code == 201, workflow.text
    begun = (await acme.http.post(f"/workflows/{workflow.json()['id']}/execute", json={})).json()
    for source in ("second", "third"):
        await acme.build_version(made["id"], pack_archive({"agent.py": f"def handle(p): return '{source}'\n"}))
    async with _owner(system) as owner:
        await _age(owner, acme.tenant_id, 40)
    gone = await _retain(acme, resources)
    # The second served nothing; the first is what the plan will start.
    assert gone["versions"] == 1
    assert (await acme.http.get(f"/agents/{made['id']}/versions/{first['id']}")).status_code == 200
    await acme.http.post(f"/executions/{begun['id']}/cancel")


async def test_an_installation_may_say_how_long_things_are_kept(system) -> None:
    async with open_isolated_database(system) as own:
        one, two = await own.add_tenant(), await own.add_tenant()
        await own.owner.execute("UPDATE tenants SET retention_days = 7 WHERE id = $1", two.tenant_id)
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        try:
            async with store.system_transaction() as tx:
                assert await tx.retention.list_tenants(0) == [(two.tenant_id, 7)]
                assert dict(await tx.retention.list_tenants(90)) == {one.tenant_id: 90, two.tenant_id: 7}
        finally:
            await store.close()


async def test_it_goes_in_batches_and_ends_between_two_of_them(system) -> None:
    async with open_isolated_database(system) as own:
        caller = await own.add_tenant()
        await own.owner.execute("UPDATE tenants SET retention_days = 7 WHERE id = $1", caller.tenant_id)
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        count = 2 * MAX_REMOVAL_BATCH + 10
        await _executions(own, caller.tenant_id, ids.decode_id("user", caller.user_id), count)
        try:
            sizes = []
            async with asyncio.timeout(60):
                while not sizes or sizes[-1]:
                    async with store.tenant_transaction(caller.tenant_id) as tx:
                        sizes.append(await tx.retention.delete_executions(tx.now - timedelta(days=7)))
            assert sizes == [MAX_REMOVAL_BATCH, MAX_REMOVAL_BATCH, 10, 0]
            # One with very many events is a batch of its own.
            await _executions(own, caller.tenant_id, ids.decode_id("user", caller.user_id), 3, events=25_000)
            async with store.tenant_transaction(caller.tenant_id) as tx:
                assert await tx.retention.delete_executions(tx.now - timedelta(days=7)) == 1
            # Another tenant's call reaches none of them.
            other = await own.add_tenant()
            async with store.tenant_transaction(other.tenant_id) as tx:
                assert await tx.retention.delete_executions(tx.now) == 0
            assert (await RetentionSweeper(store).remove_expired())["executions"] == 2
            assert await own.owner.fetchval("SELECT count(*) FROM execution_events") == 0
        finally:
            await store.close()


async def _executions(own: IsolatedDatabase, tenant_id: str, user: object, count: int, events: int = 1) -> None:
    await own.owner.execute(
        "INSERT INTO executions (id, tenant_id, user_id, run_name, kind, lane, status, attempt, max_attempts, timeout, "
        "steps_total, steps_completed, recorded, total_cost, last_seq, created_at, completed_at, updated_at) "
        "SELECT gen_random_uuid(), $1, $2, 'r', 'agent', 'run', 'completed', 1, 1, 1, 1, 1, true, 0, $4, "
        "now() - interval '9 days', now() - interval '8 days', now() FROM generate_series(1, $3)",
        *(tenant_id, user, count, events),
    )
    await own.owner.execute(
        "INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data) "
        "SELECT id, n, tenant_id, now(), 'log', '{}' FROM executions, generate_series(1, $1) AS n",
        events,
    )


async def test_what_has_expired_goes_and_what_has_not_stays(system) -> None:
    """Of every kind one row that is just too old, and one that is not."""
    async with open_isolated_database(system) as own:
        caller = await own.add_tenant()
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
            "workers": "INSERT INTO workers (id, lane, host, pid, slots, busy, started_at, seen_at) "
            "SELECT gen_random_uuid(), 'run', $1, 1, 1, 1, $3, $3 WHERE $2::uuid IS NOT NULL",
        }
        table = {"answers": "idempotency_keys", "holds": "cost_holds"}
        assert {*rows, "schedule_runs"} == set(RETENTION_PERIODS), "a new kind wants its row here"
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        try:
            for kind, insert in rows.items():
                for younger in (True, False):
                    at = datetime.now(UTC) - RETENTION_PERIODS[kind] + timedelta(minutes=1 if younger else -1)  # type: ignore[index]
                    await own.owner.execute(insert, tenant, user, at)
                    name = table.get(kind, kind)
                    count = await own.owner.fetchval(f"SELECT count(*) FROM {name}")
                    gone = await RetentionSweeper(store).remove_expired()
                    assert gone[kind] == (0 if younger else (2 if kind == "trace_exports" else 1)), kind
                    left = await own.owner.fetchval(f"SELECT count(*) FROM {name}")
                    assert left == count - gone[kind], kind
        finally:
            await store.close()


async def test_every_table_has_somebody_who_removes_its_rows(system) -> None:
    """A new table is not forgotten: the page for operators says of each who removes its rows, and when."""
    text = OPERATIONS.read_text()
    section = text.split("## What grows, and who removes it")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    told = {name.strip("` ") for row in rows for name in row[0].split(",")}
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    async with _owner(system) as owner:
        tables = {row["relname"] for row in await owner.fetch(_TABLES)}
    assert tables - told == set(), "say in docs/operations.md who removes these rows"
    assert told - tables == set(), "these tables are gone"
