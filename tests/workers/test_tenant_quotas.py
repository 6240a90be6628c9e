"""Limit what one tenant takes from the others: slots of workers, and space on disks."""

import asyncio
import os
import time
from datetime import timedelta

import pytest

from domain import agents, builds, executions
from domain.builds import AgentVersion, ArchiveUpload, BundleSize
from domain.executions import ExecutionStart, LaneShare, count_reserved_slots
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from infra.build_cache.folders import FolderCache
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.conftest import run_system
from tests.support.clients import TenantClient, pack_archive
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.cache_cleanup import clean_cache

LEASE = timedelta(seconds=10)
QUICK_AGENT = "def handle(p):\n    return 1\n"
MIB = 1 << 20


def test_slots_are_reserved_when_there_are_several() -> None:
    assert [count_reserved_slots(slots) for slots in (0, 1, 2, 8, 16, 256)] == [0, 0, 1, 1, 2, 32]


async def test_long_runs_leave_a_slot_to_another_tenant(system, acme: TenantClient, other_tenant: TenantClient) -> None:
    slow_agent = await acme.deploy_agent("import time\ndef handle(p):\n    time.sleep(300)\n")
    quick_agent = await other_tenant.deploy_agent(QUICK_AGENT)
    started_executions = [
        await acme.start_execution(slow_agent, timeout=300) for _ in range(system.settings.run_slots + 4)
    ]
    try:
        # The most that one tenant gets: every slot but the last.
        while True:
            page = (await acme.http.get(f"/executions?agent_id={slow_agent}&limit=100")).json()["items"]
            claimed = [execution for execution in page if execution["status"] in ("preparing", "running")]
            if len(claimed) == system.settings.run_slots - count_reserved_slots(system.settings.run_slots):
                break
            await asyncio.sleep(0.1)
        for _ in range(3):
            assert (await other_tenant.run_agent(quick_agent))["status"] == "completed"
        page = (await acme.http.get(f"/executions?agent_id={slow_agent}&limit=100")).json()["items"]
        assert {execution["status"] for execution in page} <= {"pending", "preparing", "running"}, "this showed nothing"
    finally:
        for execution in started_executions:
            await acme.http.post(f"/executions/{execution['id']}/cancel")


async def test_slow_builds_leave_a_slot_to_another_tenant(
    system, acme: TenantClient, other_tenant: TenantClient
) -> None:
    agent_id, other_agent_id = (await acme.create_agent())["id"], (await other_tenant.create_agent())["id"]
    slow_archive = pack_archive({"agent.py": "import time\ntime.sleep(12)\n" + QUICK_AGENT})
    version_ids = [(await acme.upload_archive(agent_id, slow_archive)).json()["id"] for _ in range(3)]
    while not await _has_running_build(acme, agent_id):
        await asyncio.sleep(0.1)
    assert (await other_tenant.build_version(other_agent_id, pack_archive({"agent.py": QUICK_AGENT})))[
        "status"
    ] == "ready"
    versions = (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"]
    assert {version["status"] for version in versions} & {"queued", "building"}, "this showed nothing"
    # All of its own builds end too, one after the other.
    for version_id in version_ids:
        while (version := await _get_version(acme, agent_id, version_id))["status"] != "ready":
            assert version["status"] != "failed", version
            await asyncio.sleep(0.2)


async def _has_running_build(client: TenantClient, agent_id: str) -> bool:
    versions = (await client.http.get(f"/agents/{agent_id}/versions")).json()["items"]
    return any(version["status"] == "building" for version in versions)


async def _get_version(client: TenantClient, agent_id: str, version_id: str) -> dict[str, str]:
    return (await client.http.get(f"/agents/{agent_id}/versions/{version_id}")).json()


async def test_single_tenant_gets_every_slot(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: NOW)
        agent_id = await database.add_agent(caller)

        async def claim(count: int) -> int:
            async with store.transaction(caller) as tx:
                for _ in range(count):
                    await executions.start_execution(tx, caller, agent_id, ExecutionStart())
            async with store.autocommit() as tx:
                claimed = await executions.claim_executions(tx, "w", LEASE, 4, share=LaneShare(reserved_slots=1))
            await database.owner.execute("UPDATE executions SET status = 'completed'")
            return len(claimed)

        await _add_queued_builds(database, caller, agent_id, 2)
        assert await claim(6) == 4
        async with store.autocommit() as tx:
            first = await tx.queues.find_next_build(True)
        assert first is not None
        await database.owner.execute(
            "UPDATE agent_versions SET status = 'building' WHERE id = $1", ids.decode_id("ver", first.row_id)
        )
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(True) is not None
        # Now there is another tenant to reserve a slot for.
        await database.add_tenant()
        assert await claim(6) == 3
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(True) is None
            assert await tx.queues.find_next_build(False) is not None
        await engine.dispose()


async def _add_queued_builds(database: IsolatedDatabase, caller: Caller, agent_id: str, count: int) -> None:
    for number in range(count):
        await database.owner.execute(
            "INSERT INTO agent_versions (id, tenant_id, agent_id, number, version, status, tarball_path, sha256, "
            "size_bytes, attempt, created_at, updated_at) VALUES ($1, $2, $3, $4, '', 'queued', $5, '', 0, 0, $6, $6)",
            *(
                ids.generate_uuid7(),
                caller.tenant_id,
                ids.decode_id("agent", agent_id),
                number + 2,
                f"queued-{number}",
                NOW,
            ),
        )


async def test_stored_bytes_of_a_tenant_are_summed(system) -> None:
    """Sum archives, what they unpack to, and each environment once; without deleted agents."""
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: NOW)

        async def upload(agent_id: str, size: int, quota: int = 0) -> AgentVersion:
            version_id = builds.generate_version_id()
            upload = ArchiveUpload(version_id=version_id, path=version_id, sha256="", size_bytes=size)
            async with store.transaction(caller) as tx:
                await builds.enqueue_build(tx, caller, agent_id, upload, quota)
            async with store.tenant_transaction(caller.tenant_id) as tx:
                version = await builds.claim_build(tx, version_id, "w", LEASE)
            assert version is not None
            return version

        async def reserve(version: AgentVersion, size: int, environment: str | None, quota: int) -> None:
            bundle_size = BundleSize(
                unpacked_bytes=size, environment=environment, environment_bytes=1000 if environment else 0
            )
            async with store.tenant_transaction(caller.tenant_id) as tx:
                await builds.reserve_space(tx, version, bundle_size, quota)

        async def sum_stored_bytes() -> int:
            async with store.transaction(caller) as tx:
                return await tx.builds.sum_stored_bytes()

        first, second = await database.add_agent(caller), await database.add_agent(caller)
        versions = [await upload(agent_id, 10) for agent_id in (first, first, second)]
        for version in versions:
            await reserve(version, 100, "shared", 0)
        assert await sum_stored_bytes() == 3 * 10 + 3 * 100 + 1000
        # A build that is tried again counts once.
        await reserve(versions[0], 100, "shared", 3 * 10 + 3 * 100 + 1000)
        with pytest.raises(DomainError, match="the quota is") as error:
            await reserve(versions[0], 101, "shared", 3 * 10 + 3 * 100 + 1000)
        assert error.value.code == "quota_exceeded"
        with pytest.raises(DomainError, match="PADDOCK_TENANT_MAX_STORED_BYTES"):
            await upload(first, 11, quota=1340)
        await upload(first, 10, quota=1340)
        # Another tenant's are not counted.
        other_caller = await database.add_tenant()
        async with store.transaction(other_caller) as tx:
            assert await tx.builds.sum_stored_bytes() == 0
        async with store.transaction(caller) as tx:
            await agents.delete_agent(tx, first)
        assert await sum_stored_bytes() == 10 + 100 + 1000
        async with store.tenant_transaction(caller.tenant_id) as tx:
            await builds.finish_build(tx, versions[2], None, "failed")
        assert await sum_stored_bytes() == 10
        await engine.dispose()


async def test_quotas_and_cache_limit_of_a_running_system() -> None:
    """Refuse archives that unpack to too much, and keep the cache below its limit while agents run."""
    max_cache_bytes = 8 * MIB
    async with run_system(
        PADDOCK_TENANT_MAX_STORED_BYTES=str(12 * MIB),
        PADDOCK_CACHE_MAX_BYTES=str(max_cache_bytes),
        PADDOCK_WARM_MEMORY_MB="0",
    ) as system:
        from tests.support.clients import register_tenant

        async with register_tenant(system.url) as acme, register_tenant(system.url) as other_tenant:
            filler = {"agent.py": QUICK_AGENT, "filler.bin": b"\0" * (5 * MIB)}
            agent_ids, cache = [], system.data / "cache"
            for _ in range(2):
                agent_id = (await acme.create_agent())["id"]
                assert (await acme.build_version(agent_id, pack_archive(filler)))["status"] == "ready"
                agent_ids.append(agent_id)
            # The third does not fit any more, though its archive is small.
            agent_id = (await acme.create_agent())["id"]
            failed_version = await acme.build_version(agent_id, pack_archive(filler))
            assert failed_version["status"] == "failed"
            assert failed_version["error_message"].startswith("quota_exceeded: ")
            assert "PADDOCK_TENANT_MAX_STORED_BYTES" in failed_version["error_message"]
            # An archive that is too large itself is refused at upload.
            refused = await acme.upload_archive(
                agent_id, pack_archive({"agent.py": QUICK_AGENT, "random.bin": os.urandom(3 * MIB)})
            )
            assert refused.status_code == 413, refused.text
            assert refused.json()["error"] == "quota_exceeded"
            # Other tenants are not affected, and each agent runs although not all fit into the cache together.
            other_agent_id = (await other_tenant.create_agent())["id"]
            assert (await other_tenant.build_version(other_agent_id, pack_archive(filler)))["status"] == "ready"
            for _ in range(2):
                for agent_id in agent_ids:
                    assert (await acme.run_agent(agent_id))["status"] == "completed"
                assert (await other_tenant.run_agent(other_agent_id))["status"] == "completed"
            folder_cache = FolderCache(cache, 0)
            size_by_bundle = {
                name: folder_cache.measure_folder("bundles", name) for name in folder_cache.list_names("bundles")
            }
            assert sum(size_by_bundle.values()) <= max_cache_bytes, size_by_bundle
            # Deleting an agent frees its space.
            assert (await acme.http.delete(f"/agents/{agent_ids[0]}")).status_code == 204
            agent_id = (await acme.create_agent())["id"]
            assert (await acme.build_version(agent_id, pack_archive(filler)))["status"] == "ready"


async def test_deleted_agents_leave_object_storage(resources, acme: TenantClient) -> None:
    """Remove objects of deleted agents, as they do not count for the quota."""

    async def list_keys() -> set[str]:
        return {
            blob.key
            for prefix in ("uploads", "bundles")
            for blob in [blob async for blob in resources.blobs.list_objects(f"{prefix}/{acme.tenant_id}/")]
        }

    kept_agent, deleted_agent = await acme.deploy_agent(QUICK_AGENT), await acme.deploy_agent(QUICK_AGENT)
    versions = {
        agent_id: (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"][0]["id"]
        for agent_id in (kept_agent, deleted_agent)
    }
    assert len(await list_keys()) == 4
    assert (await acme.http.delete(f"/agents/{deleted_agent}")).status_code == 204
    for _ in range(300):
        if len(keys := await list_keys()) == 2:
            break
        await asyncio.sleep(0.1)
    assert all(versions[kept_agent] in key for key in keys), keys
    assert (await acme.run_agent(kept_agent))["status"] == "completed"


async def test_deleted_agents_leave_the_cache(system, resources, acme: TenantClient) -> None:
    kept_agent, deleted_agent = await acme.deploy_agent(QUICK_AGENT), await acme.deploy_agent(QUICK_AGENT)
    versions = {}
    for agent_id in (kept_agent, deleted_agent):
        assert (await acme.run_agent(agent_id))["status"] == "completed"
        versions[agent_id] = (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"][0]["id"]
    cache = FolderCache(system.settings.cache_dir, 0)
    environments = cache.get_path("environments", "0" * 64), cache.get_path("environments", "1" * 64)
    for path, age in zip(environments, (0, 2 * 3600), strict=True):
        path.mkdir(parents=True)
        os.utime(path, (time.time() - age, time.time() - age))
    assert set(versions.values()) <= set(cache.list_names("bundles"))
    assert (await acme.http.delete(f"/agents/{deleted_agent}")).status_code == 204
    with cache.lock_folder("bundles", versions[deleted_agent]):
        await clean_cache(cache, resources.store, 3600)
        assert versions[deleted_agent] in cache.list_names("bundles"), "somebody uses it"
    removed = await clean_cache(cache, resources.store, 3600)
    assert versions[deleted_agent] in removed or versions[deleted_agent] not in cache.list_names("bundles")
    assert versions[deleted_agent] not in cache.list_names("bundles")
    assert versions[kept_agent] in cache.list_names("bundles")
    assert (await acme.run_agent(kept_agent))["status"] == "completed"
    # Environments without a version stay for a while: a corrected build of the same requirements uses them again.
    assert [path.is_dir() for path in environments] == [True, False]
    environments[0].rmdir()
