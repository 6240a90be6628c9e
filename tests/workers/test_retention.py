"""Retention: what is too old goes, with its body and what it counts; months are made ahead and dropped when empty."""

import asyncio
from datetime import UTC, datetime, timedelta

from domain import evaluations
from domain.pages import Page
from infra.postgres.db import connect
from infra.postgres.store import PostgresStore
from infra.wiring import utc_now
from tests.apart import apart
from tests.clients import Tenant
from workers.retention import Retention

OLD = datetime.now(UTC) - timedelta(days=40)


class NoQueue:
    async def ring(self, jobs, changed=()) -> None:
        pass


async def test_a_tenant_s_old_records_go_and_nobody_else_s(system, parts, acme: Tenant, rival: Tenant) -> None:
    evaluation = {"prompt": "a", "response": "b", "hallucinated": True, "latency_sec": 1.5, "model_name": "m"}
    for tenant in (acme, rival):
        for made in (OLD, datetime.now(UTC)):
            stamped = {**evaluation, "created_at": made.isoformat()}
            assert (await tenant.http.post("/evaluations/batch", json=[stamped] * 3)).status_code == 201
            artifact = {"kurral_id": f"of-{made:%Y%m%d}", "created_at": made.isoformat(), "inputs": {}, "cost_usd": 1.0}
            assert (await tenant.http.post("/artifacts/upload", json=artifact)).status_code == 201
    old = (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}/metadata")).json()
    key = f"artifacts/{acme.tenant_id}/{datetime.fromisoformat(old['received_at']):%Y/%m}/{old['id']}"
    while not [blob async for blob in parts.blobs.under(key)]:
        await asyncio.sleep(0.05)

    patched = await acme.http.patch("/tenant", json={"retention_days": 30})
    assert patched.json()["retention_days"] == 30
    assert (await acme.http.patch("/tenant", json={"retention_days": 0})).status_code == 422
    gone = await Retention(parts.store)()

    assert (gone["evaluations"], gone["artifacts"]) == (3, 1)
    for tenant, left in ((acme, 1), (rival, 2)):
        figures = (await tenant.http.get("/evaluations/stats")).json()
        assert (figures["total_evaluations"], figures["total_hallucinations"]) == (3 * left, 3 * left)
        assert (await tenant.http.get("/evaluations?limit=1")).json()["total"] == 3 * left
        figures = (await tenant.http.get("/stats")).json()
        assert (figures["total_artifacts"], figures["total_cost_usd"]) == (left, 1.0 * left)
        assert (await tenant.http.get("/artifacts")).json()["total"] == left
    assert (await acme.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 404
    assert (await rival.http.get(f"/artifacts/of-{OLD:%Y%m%d}")).status_code == 200
    while [blob async for blob in parts.blobs.under(key)]:
        await asyncio.sleep(0.05)
    await acme.http.patch("/tenant", json={"retention_days": None})
    assert (await Retention(parts.store)())["evaluations"] == 0


async def test_months_are_made_ahead_and_dropped_when_empty(system) -> None:
    async with apart(system) as own:
        engine = connect(own.url, pool_size=2, application="tests")
        later = [utc_now()]
        store = PostgresStore(engine, NoQueue(), lambda: later[0])
        names = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1"
        try:
            before = [row["relname"] for row in await own.owner.fetch(names)]
            assert len(before) == 6
            assert await Retention(store).make_partitions() == 0
            later[0] += timedelta(days=100)
            made = await Retention(store).make_partitions()
            assert made == len(await own.owner.fetch(names)) - len(before)
            assert made > 0
            caller = await own.tenant()
            # One record, of today: its month stays, the others of the past go.
            await own.owner.execute(
                "INSERT INTO evaluations (id, tenant_id, user_id, created_at, prompt, response, metrics) "
                "VALUES (first_id(now()), $1, gen_random_uuid(), now(), 'a', 'b', 'sent')",
                caller.tenant_id,
            )
            gone = await Retention(store)()
            left = [row["relname"] for row in await own.owner.fetch(names)]
            month = utc_now().strftime("_%Y_%m")
            assert f"evaluations{month}" in left
            assert f"artifacts{month}" not in left
            assert gone["partitions"] == len(before) + made - len(left)
            assert all(name >= f"artifacts{later[0]:_%Y_%m}" for name in left if name.startswith("artifacts"))
        finally:
            await store.close()


async def test_dropping_stops_nobody_and_waits_for_nobody(system) -> None:
    """Readers and writers go on while months come and go; one that reads for long keeps its month for the next time."""
    async with apart(system) as own:
        engine = connect(own.url, pool_size=6, application="tests")
        store = PostgresStore(engine, NoQueue(), utc_now)
        caller, done = await own.tenant(), asyncio.Event()
        row = evaluations.read(b'{"prompt":"a","response":"b","hallucinated":true}')
        written = 0

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                async with store.begin_for(caller.tenant_id) as tx:
                    made = evaluations.evaluated(caller.tenant_id, caller.user_id, [row], tx.now, False)
                    await tx.evaluations.add(made)
                written += 1

        async def read() -> None:
            while not done.is_set():
                async with store.begin_for(caller.tenant_id) as tx:
                    await tx.evaluations.page(evaluations.Filter(), Page())
                    await evaluations.stats(tx, evaluations.Filter(), None)

        async def come_and_go() -> None:
            try:
                for _ in range(10):
                    await own.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
                    gone = 0
                    while not gone:
                        gone = (await Retention(store)())["partitions"]
            finally:
                done.set()

        try:
            # What this installation made ahead is of this month and later ones, and stays.
            await asyncio.gather(write(), write(), read(), read(), come_and_go())
            async with store.begin_for(caller.tenant_id) as tx:
                assert (await evaluations.stats(tx, evaluations.Filter(), None)).total_evaluations == written > 0
            await own.owner.execute("SELECT make_partitions('evaluations', '2001-01-05', 0)")
            async with store.begin_for(caller.tenant_id) as tx:
                await tx.evaluations.page(evaluations.Filter(), Page())
                assert (await Retention(store)())["partitions"] == 0
            assert (await Retention(store)())["partitions"] == 1
        finally:
            await store.close()
