"""Run upkeep and output on the real resources, with a controlled clock."""

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from domain.events import MAX_LINE_BYTES, ExecutionEvent
from domain.shared.jobs import Job
from infra.build_cache.environments import uv_variables_from_pip
from infra.build_cache.folders import FolderCache
from infra.redis import WindowCounter
from tests.support.clients import TenantClient
from workers.output import MAX_LOG_BYTES, OutputLog
from workers.upkeep import Upkeep


async def _stream_once(data: bytes):
    yield data


async def test_old_unreferenced_uploads_are_removed(resources, shared_tenant: TenantClient) -> None:
    versions = (await shared_tenant.http.get("/agents/hello/versions")).json()["items"]
    kept_key = versions[0]["tarball_path"]
    orphan = f"uploads/{shared_tenant.tenant_id}/ver_orphan.tar.gz"
    await resources.blobs.write_object(orphan, _stream_once(b"x"))
    upkeep = Upkeep(resources.settings, resources.store, resources.queue, resources.blobs, lambda: datetime.now(UTC))
    await upkeep.sweep_objects()
    assert [blob.key async for blob in resources.blobs.list_objects(orphan)] == [orphan]
    later_upkeep = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(hours=25),
    )
    removed = await later_upkeep.sweep_objects()
    assert removed["objects"] >= 1
    assert [blob.key async for blob in resources.blobs.list_objects(orphan)] == []
    assert [blob.key async for blob in resources.blobs.list_objects(kept_key)] == [kept_key]
    execution = await shared_tenant.run_agent((await shared_tenant.http.get("/agents/hello")).json()["id"])
    assert execution["status"] == "completed"


async def test_objects_of_deleted_agents_are_removed(resources, acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent("def handle(p): return 1\n")
    version = (await acme.http.get(f"/agents/{agent_id}/versions/1")).json()
    await acme.http.delete(f"/agents/{agent_id}")
    later_upkeep = Upkeep(
        resources.settings,
        resources.store,
        resources.queue,
        resources.blobs,
        lambda: datetime.now(UTC) + timedelta(hours=25),
    )
    await later_upkeep.sweep_objects()
    for key in (version["tarball_path"], version["bundle_path"]):
        assert [blob.key async for blob in resources.blobs.list_objects(key)] == []


async def test_listed_job_is_not_rung_twice(resources) -> None:
    job = Job(lane="build", row_id="ver_listed", tenant_id="t", attempt=0)
    redis = resources.queue._redis
    await redis.zadd("paddock:queue:build", {job.id: 9e15})
    assert await resources.queue.ring_lost_jobs([job]) == 0
    # Taken by a worker that died before it claimed the row: rung with another id.
    await redis.set(f"arq:in-progress:{job.id}", b"1")
    assert await resources.queue.ring_lost_jobs([job]) == 1
    await redis.zrem("paddock:queue:build", job.id)
    await redis.delete(f"arq:in-progress:{job.id}")


def test_unused_caches_are_removed(tmp_path: Path) -> None:
    for kind in ("bundles", "environments"):
        for name, age in (("old", 100), ("new", 0)):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            (folder / "file").touch()
            os.utime(folder, (time.time() - age, time.time() - age))
    assert FolderCache(tmp_path, 0).remove_unused(time.time() - 50) == 2
    assert sorted(path.name for path in tmp_path.glob("[be]*/*")) == ["new", "new"]


async def test_output_is_complete_up_to_its_limit() -> None:
    written: list[ExecutionEvent] = []

    async def write(batch: list[ExecutionEvent]) -> None:
        written.extend(batch)

    output = OutputLog(write, lambda: datetime.now(UTC))
    flushing = asyncio.create_task(output.flush_until_stopped())
    output.add_output("stdout", b"one\ntwo\nthr")
    output.add_output("stdout", b"ee\n" + b"A" * 20_000 + b"\n")
    await asyncio.sleep(0.25)
    assert [event.data["message"] for event in written][:3] == ["one", "two", "three"]
    assert sum(len(event.data["message"]) for event in written[3:]) == 20_000
    assert all(len(event.data["message"]) <= MAX_LINE_BYTES for event in written)
    output.add_output("stderr", b"x" * (2 * MAX_LOG_BYTES))
    output.stop()
    await flushing
    rest = output.take_rest()
    assert "Only the first 65536 bytes and 4000 lines" in rest[-1].data["message"]
    total = sum(len(event.data["message"]) for event in [*written, *rest[:-1]])
    assert MAX_LOG_BYTES - 20 <= total <= MAX_LOG_BYTES


async def test_limits_are_counted_in_memory_while_redis_is_unavailable() -> None:
    from infra.redis import create_redis_client

    counter = WindowCounter(create_redis_client("redis://127.0.0.1:9/0"))
    now = 1_000_000.0 * 3600
    assert [await counter.count_use("a", 3600, now) for _ in range(3)] == [1, 2, 3]
    assert await counter.count_use("b", 60, now) == 1
    assert await counter.count_use("a", 60, now) == 1
    assert await counter.count_use("a", 3600, now) == 4
    assert await counter.count_use("a", 3600, now + 3600) == 1


def test_pip_configuration_becomes_uv_variables() -> None:
    configuration = "global.index-url='https://i.test/simple'\nglobal.extra-index-url='https://a.test https://b.test'\nglobal.cert='/c.pem'\n"
    assert uv_variables_from_pip(configuration) == {
        "UV_DEFAULT_INDEX": "https://i.test/simple",
        "UV_INDEX": "https://a.test https://b.test",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "SSL_CERT_FILE": "/c.pem",
    }
    assert uv_variables_from_pip("") == {}


async def test_environment_is_installed_once(shared_tenant: TenantClient) -> None:
    from scripts.demo import pack_example

    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(agent["id"], pack_example("summarizer"))
    assert version["status"] == "ready"
    assert "requirements was cached" in version["build_log"]
