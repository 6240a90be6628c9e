"""Retention removes old records with their bodies and counts, creates partitions ahead and drops empty ones."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from domain import evaluations
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from domain.stats import RECORD_KINDS
from infra import polling
from infra.postgres.db import create_engine
from infra.postgres.role import APP_ROLE
from infra.postgres.store import PostgresStore
from infra.wiring import get_utc_now
from tests.support.clients import TenantClient
from tests.support.isolated_database import SilentBell, open_isolated_database
from workers.upkeep.retention import RetentionSweeper

OLD = datetime.now(UTC) - timedelta(days=40)


async def test_old_records_of_one_tenant_are_removed(
    system, resources, acme: TenantClient, other_tenant: TenantClient
) -> None:
    evaluation = {"prompt": "a", "response": "b", "hallucinated": True, "latency_sec": 1.5, "model_name": "m"}
    for tenant in (acme, other_tenant):
        for created_at in (OLD, datetime.now(UTC)):
            timed_evaluation = {**evaluation, "created_at": created_at.isoformat()}
            assert (await tenant.http.post("/evaluations/batch", json=[timed_evaluation] * 3)).status_code == 201
            artifact = {
                "kurral_id": f"of-{created_at:%Y%m%d}",
                "created_at": created_at.isoformat(),
                "inputs": {},
                "cost_usd": 1.0,
            }
            assert (await tenant.http.post("/artifacts/upload", json=artifact)).status_code == 201
    old_artifact = (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}/metadata")).json()
    key = f"artifacts/{acme.tenant_id}/{datetime.fromisoformat(old_artifact['received_at']):%Y/%m}/{old_artifact['id']}"
    while not [blob async for blob in resources.blobs.list_objects(key)]:
        await asyncio.sleep(0.05)

    patched = await acme.http.patch("/tenant", json={"retention_days": 30})
    assert patched.json()["retention_days"] == 30
    assert (await acme.http.patch("/tenant", json={"retention_days": 0})).status_code == 422
    removed = await RetentionSweeper(resources.store).remove_expired()

    assert (removed["evaluations"], removed["artifacts"]) == (3, 1)
    for tenant, records_left in ((acme, 1), (other_tenant, 2)):
        statistics = (await tenant.http.get("/evaluations/stats")).json()
        assert (statistics["total_evaluations"], statistics["total_hallucinations"]) == (
            3 * records_left,
            3 * records_left,
        )
        assert (await tenant.http.get("/evaluations?limit=1")).json()["total"] == 3 * records_left
        statistics = (await tenant.http.get("/stats")).json()
        assert (statistics["total_artifacts"], statistics["total_cost_usd"]) == (records_left, 1.0 * records_left)
        assert (await tenant.http.get("/artifacts")).json()["total"] == records_left
    assert (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 404
    assert (await other_tenant.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 200
    while [blob async for blob in resources.blobs.list_objects(key)]:
        await asyncio.sleep(0.05)
    await acme.http.patch("/tenant", json={"retention_days": None})
    assert (await RetentionSweeper(resources.store).remove_expired())["evaluations"] == 0


async def test_partitions_are_created_ahead_and_dropped_when_empty(system) -> None:
    async with open_isolated_database(system) as database:
        engine = create_engine(database.url, pool_size=2, application="tests")
        clock = [get_utc_now()]
        store = PostgresStore(engine, SilentBell(), lambda: clock[0])
        query = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
        try:
            partitions_before = [row["relname"] for row in await database.owner.fetch(query)]
            assert len(partitions_before) == 3 * len(RECORD_KINDS)
            assert await RetentionSweeper(store).make_partitions() == 0
            clock[0] += timedelta(days=100)
            created_count = await RetentionSweeper(store).make_partitions()
            assert created_count == len(await database.owner.fetch(query)) - len(partitions_before)
            assert created_count > 0
            caller = await database.add_tenant()
            # One record of today: its month stays, earlier ones are dropped.
            await database.owner.execute(
                "INSERT INTO evaluations (id, tenant_id, user_id, created_at, prompt, response, metrics) "
                "VALUES (first_id(now()), $1, gen_random_uuid(), now(), 'a', 'b', 'sent')",
                caller.tenant_id,
            )
            removed = await RetentionSweeper(store).remove_expired()
            partitions_left = [row["relname"] for row in await database.owner.fetch(query)]
            month = get_utc_now().strftime("_%Y_%m")
            assert f"evaluations{month}" in partitions_left
            assert f"artifacts{month}" not in partitions_left
            assert removed["partitions"] == len(partitions_before) + created_count - len(partitions_left)
            assert all(
                name >= f"artifacts{clock[0]:_%Y_%m}" for name in partitions_left if name.startswith("artifacts")
            )
        finally:
            await store.close()


async def test_dropping_partitions_blocks_no_readers_or_writers(system) -> None:
    """Read and write while partitions are created and dropped; a partition with a long reader is dropped next time."""
    async with open_isolated_database(system) as database:
        engine = create_engine(database.url, pool_size=6, application="tests")
        store = PostgresStore(engine, SilentBell(), get_utc_now)
        caller, done = await database.add_tenant(), asyncio.Event()
        row = evaluations.parse_evaluation(b'{"prompt":"a","response":"b","hallucinated":true}')
        written = 0

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                async with store.tenant_transaction(caller.tenant_id) as tx:
                    new_evaluations = evaluations.build_evaluations(
                        caller.tenant_id, caller.user_id, [row], tx.now, False
                    )
                    await tx.evaluations.add(new_evaluations)
                written += 1

        async def read() -> None:
            while not done.is_set():
                async with store.tenant_transaction(caller.tenant_id) as tx:
                    await tx.evaluations.list_page(evaluations.EvaluationFilter(), Page())
                    await evaluations.compute_evaluation_stats(tx, evaluations.EvaluationFilter(), None)

        async def create_and_drop() -> None:
            try:
                for _ in range(10):
                    await database.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
                    dropped = 0
                    while not dropped:
                        dropped = (await RetentionSweeper(store).remove_expired())["partitions"]
            finally:
                done.set()

        try:
            # Partitions created at installation are of this month and later ones, and stay.
            await asyncio.gather(write(), write(), read(), read(), create_and_drop())
            async with store.tenant_transaction(caller.tenant_id) as tx:
                assert (
                    (
                        await evaluations.compute_evaluation_stats(tx, evaluations.EvaluationFilter(), None)
                    ).total_evaluations
                    == written
                    > 0
                )
            await database.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
            async with store.tenant_transaction(caller.tenant_id) as tx:
                await tx.evaluations.list_page(evaluations.EvaluationFilter(), Page())
                assert (await RetentionSweeper(store).remove_expired())["partitions"] == 0
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == 1
        finally:
            await store.close()


async def test_readers_of_both_tables_never_deadlock_with_dropping(system) -> None:
    """Lock one table at a time, so that a reader of both never meets the locks in the opposite order."""
    async with open_isolated_database(system) as database:
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        done = asyncio.Event()

        async def read() -> None:
            reader = await asyncpg.connect(database.url, server_settings={"role": APP_ROLE})
            try:
                while not done.is_set():
                    async with reader.transaction():
                        await reader.fetch("SELECT id FROM evaluations LIMIT 1")
                        await asyncio.sleep(0.005)
                        await reader.fetch("SELECT id FROM artifacts LIMIT 1")
            finally:
                await reader.close()

        async def create_and_drop() -> None:
            try:
                for _ in range(5):
                    for kind in RECORD_KINDS:
                        await database.owner.execute("SELECT make_partitions($1, '2001-01-05', 0)", kind)
                    await RetentionSweeper(store).remove_expired()
            finally:
                done.set()

        try:
            await asyncio.gather(*[read() for _ in range(6)], create_and_drop())
        finally:
            await store.close()


async def test_long_reader_of_one_table_does_not_block_the_other(system) -> None:
    async with open_isolated_database(system) as database:
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        reader = await asyncpg.connect(database.url, server_settings={"role": APP_ROLE})
        try:
            for year in (2001, 2002, 2003):
                for kind in RECORD_KINDS:
                    await database.owner.execute(f"SELECT make_partitions($1, '{year}-01-05', 0)", kind)
            async with reader.transaction():
                await reader.fetch("SELECT id FROM evaluations LIMIT 1")
                dropping = asyncio.create_task(RetentionSweeper(store).remove_expired())
                longest_wait, start = 0.0, time.monotonic()
                while not dropping.done():
                    query_start = time.monotonic()
                    await database.owner.fetch("SELECT id FROM artifacts LIMIT 1")
                    longest_wait = max(longest_wait, time.monotonic() - query_start)
                    await asyncio.sleep(0.002)
                assert (await dropping)["partitions"] == 3 * (len(RECORD_KINDS) - 1)
            # Dropping waited for the reader once, for a second; readers of the other table did not wait.
            assert longest_wait < 0.7 < time.monotonic() - start < 10
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == 3
        finally:
            await reader.close()
            await store.close()


async def test_current_and_yesterday_s_month_stay(system) -> None:
    async with open_isolated_database(system) as database:
        now = [datetime(2001, 3, 1, 23, 59, tzinfo=UTC)]
        store = PostgresStore(
            create_engine(database.url, pool_size=2, application="tests"), SilentBell(), lambda: now[0]
        )
        query = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname ~ '_2001_' ORDER BY 1"
        try:
            for kind in RECORD_KINDS:
                await database.owner.execute("SELECT make_partitions($1, '2001-01-05', 2)", kind)
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == len(RECORD_KINDS)
            expected = [f"{kind}_2001_{month}" for kind in RECORD_KINDS for month in ("02", "03")]
            assert [row["relname"] for row in await database.owner.fetch(query)] == expected
            now[0] += timedelta(minutes=1)
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == len(RECORD_KINDS)
            expected = [f"{kind}_2001_03" for kind in RECORD_KINDS]
            assert [row["relname"] for row in await database.owner.fetch(query)] == expected
        finally:
            await store.close()


async def test_retention_runs_again_soon_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_seconds, rounds = [0.0], list[float]()

    async def count_sleep(event: asyncio.Event, seconds: float) -> None:
        slept_seconds[0] += seconds

    class FailingSweeper(RetentionSweeper):
        async def make_partitions(self) -> int:
            return 0

        async def remove_expired(self) -> dict[str, int]:
            rounds.append(slept_seconds[0])
            if len(rounds) == 2:
                raise DomainError("unavailable", "The database is unavailable.")
            if len(rounds) == 4:
                raise asyncio.CancelledError
            return {}

    monkeypatch.setattr(polling, "_wait_for", count_sleep)
    with contextlib.suppress(asyncio.CancelledError):
        await FailingSweeper(None).run()
    assert rounds[:2] == [60, 3660]
    assert rounds[2] - rounds[1] <= 10
    assert rounds[3] - rounds[2] == 3600
