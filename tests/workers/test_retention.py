"""Retention: what is too old goes, with its body and what it counts; months are made ahead and dropped when empty."""

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


async def test_a_tenant_s_old_records_go_and_nobody_else_s(
    system, resources, acme: TenantClient, other_tenant: TenantClient
) -> None:
    evaluation = {"prompt": "a", "response": "b", "hallucinated": True, "latency_sec": 1.5, "model_name": "m"}
    for tenant in (acme, other_tenant):
        for made in (OLD, datetime.now(UTC)):
            stamped = {**evaluation, "created_at": made.isoformat()}
            assert (await tenant.http.post("/evaluations/batch", json=[stamped] * 3)).status_code == 201
            artifact = {"kurral_id": f"of-{made:%Y%m%d}", "created_at": made.isoformat(), "inputs": {}, "cost_usd": 1.0}
            assert (await tenant.http.post("/artifacts/upload", json=artifact)).status_code == 201
    old = (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}/metadata")).json()
    key = f"artifacts/{acme.tenant_id}/{datetime.fromisoformat(old['received_at']):%Y/%m}/{old['id']}"
    while not [blob async for blob in resources.blobs.list_objects(key)]:
        await asyncio.sleep(0.05)

    patched = await acme.http.patch("/tenant", json={"retention_days": 30})
    assert patched.json()["retention_days"] == 30
    assert (await acme.http.patch("/tenant", json={"retention_days": 0})).status_code == 422
    gone = await RetentionSweeper(resources.store).remove_expired()

    assert (gone["evaluations"], gone["artifacts"]) == (3, 1)
    for tenant, left in ((acme, 1), (other_tenant, 2)):
        figures = (await tenant.http.get("/evaluations/stats")).json()
        assert (figures["total_evaluations"], figures["total_hallucinations"]) == (3 * left, 3 * left)
        assert (await tenant.http.get("/evaluations?limit=1")).json()["total"] == 3 * left
        figures = (await tenant.http.get("/stats")).json()
        assert (figures["total_artifacts"], figures["total_cost_usd"]) == (left, 1.0 * left)
        assert (await tenant.http.get("/artifacts")).json()["total"] == left
    assert (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 404
    assert (await other_tenant.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 200
    while [blob async for blob in resources.blobs.list_objects(key)]:
        await asyncio.sleep(0.05)
    await acme.http.patch("/tenant", json={"retention_days": None})
    assert (await RetentionSweeper(resources.store).remove_expired())["evaluations"] == 0


async def test_months_are_made_ahead_and_dropped_when_empty(system) -> None:
    async with open_isolated_database(system) as own:
        engine = create_engine(own.url, pool_size=2, application="tests")
        later = [get_utc_now()]
        store = PostgresStore(engine, SilentBell(), lambda: later[0])
        names = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
        try:
            before = [row["relname"] for row in await own.owner.fetch(names)]
            assert len(before) == 3 * len(RECORD_KINDS)
            assert await RetentionSweeper(store).make_partitions() == 0
            later[0] += timedelta(days=100)
            made = await RetentionSweeper(store).make_partitions()
            assert made == len(await own.owner.fetch(names)) - len(before)
            assert made > 0
            caller = await own.add_tenant()
            # One record, of today: its month stays, the others of the past go.
            await own.owner.execute(
                "INSERT INTO evaluations (id, tenant_id, user_id, created_at, prompt, response, metrics) "
                "VALUES (first_id(now()), $1, gen_random_uuid(), now(), 'a', 'b', 'sent')",
                caller.tenant_id,
            )
            gone = await RetentionSweeper(store).remove_expired()
            left = [row["relname"] for row in await own.owner.fetch(names)]
            month = get_utc_now().strftime("_%Y_%m")
            assert f"evaluations{month}" in left
            assert f"artifacts{month}" not in left
            assert gone["partitions"] == len(before) + made - len(left)
            assert all(name >= f"artifacts{later[0]:_%Y_%m}" for name in left if name.startswith("artifacts"))
        finally:
            await store.close()


async def test_dropping_stops_nobody_and_waits_for_nobody(system) -> None:
    """Readers and writers go on while months come and go; one that reads for long keeps its month for the next time."""
    async with open_isolated_database(system) as own:
        engine = create_engine(own.url, pool_size=6, application="tests")
        store = PostgresStore(engine, SilentBell(), get_utc_now)
        caller, done = await own.add_tenant(), asyncio.Event()
        row = evaluations.parse_evaluation(b'{"prompt":"a","response":"b","hallucinated":true}')
        written = 0

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                async with store.tenant_transaction(caller.tenant_id) as tx:
                    made = evaluations.build_evaluations(caller.tenant_id, caller.user_id, [row], tx.now, False)
                    await tx.evaluations.add(made)
                written += 1

        async def read() -> None:
            while not done.is_set():
                async with store.tenant_transaction(caller.tenant_id) as tx:
                    await tx.evaluations.list_page(evaluations.EvaluationFilter(), Page())
                    await evaluations.compute_evaluation_stats(tx, evaluations.EvaluationFilter(), None)

        async def come_and_go() -> None:
            try:
                for _ in range(10):
                    await own.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
                    gone = 0
                    while not gone:
                        gone = (await RetentionSweeper(store).remove_expired())["partitions"]
            finally:
                done.set()

        try:
            # What this installation made ahead is of this month and later ones, and stays.
            await asyncio.gather(write(), write(), read(), read(), come_and_go())
            async with store.tenant_transaction(caller.tenant_id) as tx:
                assert (
                    (
                        await evaluations.compute_evaluation_stats(tx, evaluations.EvaluationFilter(), None)
                    ).total_evaluations
                    == written
                    > 0
                )
            await own.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
            async with store.tenant_transaction(caller.tenant_id) as tx:
                await tx.evaluations.list_page(evaluations.EvaluationFilter(), Page())
                assert (await RetentionSweeper(store).remove_expired())["partitions"] == 0
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == 1
        finally:
            await store.close()


async def test_whoever_uses_both_tables_goes_on_too(system) -> None:
    """One table is locked at a time: a reader of one and then the other never meets it the other way around."""
    async with open_isolated_database(system) as own:
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        done = asyncio.Event()

        async def read() -> None:
            reader = await asyncpg.connect(own.url, server_settings={"role": APP_ROLE})
            try:
                while not done.is_set():
                    async with reader.transaction():
                        await reader.fetch("SELECT id FROM evaluations LIMIT 1")
                        await asyncio.sleep(0.005)
                        await reader.fetch("SELECT id FROM artifacts LIMIT 1")
            finally:
                await reader.close()

        async def come_and_go() -> None:
            try:
                for _ in range(5):
                    for kind in RECORD_KINDS:
                        await own.owner.execute("SELECT make_partitions($1, '2001-01-05', 0)", kind)
                    await RetentionSweeper(store).remove_expired()
            finally:
                done.set()

        try:
            await asyncio.gather(*[read() for _ in range(6)], come_and_go())
        finally:
            await store.close()


async def test_a_long_reader_of_one_table_keeps_nobody_from_the_other(system) -> None:
    async with open_isolated_database(system) as own:
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), get_utc_now)
        reader = await asyncpg.connect(own.url, server_settings={"role": APP_ROLE})
        try:
            for year in (2001, 2002, 2003):
                for kind in RECORD_KINDS:
                    await own.owner.execute(f"SELECT make_partitions($1, '{year}-01-05', 0)", kind)
            async with reader.transaction():
                await reader.fetch("SELECT id FROM evaluations LIMIT 1")
                dropping = asyncio.create_task(RetentionSweeper(store).remove_expired())
                longest, begun = 0.0, time.monotonic()
                while not dropping.done():
                    asked = time.monotonic()
                    await own.owner.fetch("SELECT id FROM artifacts LIMIT 1")
                    longest = max(longest, time.monotonic() - asked)
                    await asyncio.sleep(0.002)
                assert (await dropping)["partitions"] == 3 * (len(RECORD_KINDS) - 1)
            # It waited for the reader once, for a second; whoever came to the other table did not.
            assert longest < 0.7 < time.monotonic() - begun < 10
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == 3
        finally:
            await reader.close()
            await store.close()


async def test_this_month_and_the_month_of_yesterday_stay(system) -> None:
    async with open_isolated_database(system) as own:
        now = [datetime(2001, 3, 1, 23, 59, tzinfo=UTC)]
        store = PostgresStore(create_engine(own.url, pool_size=2, application="tests"), SilentBell(), lambda: now[0])
        names = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname ~ '_2001_' ORDER BY 1"
        try:
            for kind in RECORD_KINDS:
                await own.owner.execute("SELECT make_partitions($1, '2001-01-05', 2)", kind)
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == len(RECORD_KINDS)
            left = [f"{kind}_2001_{month}" for kind in RECORD_KINDS for month in ("02", "03")]
            assert [row["relname"] for row in await own.owner.fetch(names)] == left
            now[0] += timedelta(minutes=1)
            assert (await RetentionSweeper(store).remove_expired())["partitions"] == len(RECORD_KINDS)
            left = [f"{kind}_2001_03" for kind in RECORD_KINDS]
            assert [row["relname"] for row in await own.owner.fetch(names)] == left
        finally:
            await store.close()


async def test_after_an_outage_deletions_are_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, rounds = [0.0], list[float]()

    async def sleep(event: asyncio.Event, seconds: float) -> None:
        slept[0] += seconds

    class Failing(RetentionSweeper):
        async def make_partitions(self) -> int:
            return 0

        async def remove_expired(self) -> dict[str, int]:
            rounds.append(slept[0])
            if len(rounds) == 2:
                raise DomainError("unavailable", "Away.")
            if len(rounds) == 4:
                raise asyncio.CancelledError
            return {}

    monkeypatch.setattr(polling, "_wait_for", sleep)
    with contextlib.suppress(asyncio.CancelledError):
        await Failing(None).run()
    assert rounds[:2] == [60, 3660]
    assert rounds[2] - rounds[1] <= 10
    assert rounds[3] - rounds[2] == 3600
