"""What one tenant leaves to its neighbours: slots of workers, and room on disks."""

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
QUICK = "def handle(p):\n    return 1\n"
MIB = 1 << 20


def test_some_slots_are_kept_of_several() -> None:
    assert [count_reserved_slots(slots) for slots in (0, 1, 2, 8, 16, 256)] == [0, 0, 1, 1, 2, 32]


async def test_one_tenant_s_long_runs_leave_a_slot_to_another(
    system, acme: TenantClient, other_tenant: TenantClient
) -> None:
    slow = await acme.deploy_agent("import time\ndef handle(p):\n    time.sleep(300)\n")
    quick = await other_tenant.deploy_agent(QUICK)
    started = [await acme.start_execution(slow, timeout=300) for _ in range(system.settings.run_slots + 4)]
    try:
        # All that it gets: every slot but the last.
        while True:
            page = (await acme.http.get(f"/executions?agent_id={slow}&limit=100")).json()["items"]
            held = [one for one in page if one["status"] in ("preparing", "running")]
            if len(held) == system.settings.run_slots - count_reserved_slots(system.settings.run_slots):
                break
            await asyncio.sleep(0.1)
        for _ in range(3):
            assert (await other_tenant.run_agent(quick))["status"] == "completed"
        page = (await acme.http.get(f"/executions?agent_id={slow}&limit=100")).json()["items"]
        assert {one["status"] for one in page} <= {"pending", "preparing", "running"}, "this showed nothing"
    finally:
        for one in started:
            await acme.http.post(f"/executions/{one['id']}/cancel")


async def test_one_tenant_s_slow_builds_leave_a_slot_to_another(
    system, acme: TenantClient, other_tenant: TenantClient
) -> None:
    agent_id, theirs = (await acme.create_agent())["id"], (await other_tenant.create_agent())["id"]
    slow = pack_archive({"agent.py": "import time\ntime.sleep(12)\n" + QUICK})
    uploaded = [(await acme.upload_archive(agent_id, slow)).json()["id"] for _ in range(3)]
    while not await _building(acme, agent_id):
        await asyncio.sleep(0.1)
    assert (await other_tenant.build_version(theirs, pack_archive({"agent.py": QUICK})))["status"] == "ready"
    versions = (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"]
    assert {one["status"] for one in versions} & {"queued", "building"}, "this showed nothing"
    # And its own are all built, one after the other.
    for version_id in uploaded:
        while (found := await _version(acme, agent_id, version_id))["status"] != "ready":
            assert found["status"] != "failed", found
            await asyncio.sleep(0.2)


async def _building(of: TenantClient, agent_id: str) -> bool:
    versions = (await of.http.get(f"/agents/{agent_id}/versions")).json()["items"]
    return any(one["status"] == "building" for one in versions)


async def _version(of: TenantClient, agent_id: str, version_id: str) -> dict[str, str]:
    return (await of.http.get(f"/agents/{agent_id}/versions/{version_id}")).json()


async def test_a_tenant_that_is_alone_has_every_slot(system) -> None:
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

        await _queue(database, caller, agent_id, 2)
        assert await claim(6) == 4
        async with store.autocommit() as tx:
            first = await tx.queues.find_next_build(True)
        assert first is not None
        await database.owner.execute(
            "UPDATE agent_versions SET status = 'building' WHERE id = $1", ids.decode_id("ver", first.row_id)
        )
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(True) is not None
        # Now there is somebody whom a slot may be kept for.
        await database.add_tenant()
        assert await claim(6) == 3
        async with store.autocommit() as tx:
            assert await tx.queues.find_next_build(True) is None
            assert await tx.queues.find_next_build(False) is not None
        await engine.dispose()


async def _queue(database: IsolatedDatabase, caller: Caller, agent_id: str, count: int) -> None:
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


async def test_what_a_tenant_stores_is_counted(system) -> None:
    """Archives, what they unpack to, and each environment once; of agents that were not deleted."""
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: NOW)

        async def upload(agent_id: str, size: int, quota: int = 0) -> AgentVersion:
            version_id = builds.generate_version_id()
            one = ArchiveUpload(version_id=version_id, path=version_id, sha256="", size_bytes=size)
            async with store.transaction(caller) as tx:
                await builds.enqueue_build(tx, caller, agent_id, one, quota)
            async with store.tenant_transaction(caller.tenant_id) as tx:
                version = await builds.claim_build(tx, version_id, "w", LEASE)
            assert version is not None
            return version

        async def reserve(version: AgentVersion, size: int, environment: str | None, quota: int) -> None:
            taken = BundleSize(
                unpacked_bytes=size, environment=environment, environment_bytes=1000 if environment else 0
            )
            async with store.tenant_transaction(caller.tenant_id) as tx:
                await builds.reserve_space(tx, version, taken, quota)

        async def stored() -> int:
            async with store.transaction(caller) as tx:
                return await tx.builds.sum_stored_bytes()

        first, second = await database.add_agent(caller), await database.add_agent(caller)
        versions = [await upload(agent_id, 10) for agent_id in (first, first, second)]
        for version in versions:
            await reserve(version, 100, "shared", 0)
        assert await stored() == 3 * 10 + 3 * 100 + 1000
        # A build that is tried again counts once.
        await reserve(versions[0], 100, "shared", 3 * 10 + 3 * 100 + 1000)
        with pytest.raises(DomainError, match="the quota is") as caught:
            await reserve(versions[0], 101, "shared", 3 * 10 + 3 * 100 + 1000)
        assert caught.value.code == "quota_exceeded"
        with pytest.raises(DomainError, match="PADDOCK_TENANT_MAX_STORED_BYTES"):
            await upload(first, 11, quota=1340)
        await upload(first, 10, quota=1340)
        # Another's are not among them.
        other = await database.add_tenant()
        async with store.transaction(other) as tx:
            assert await tx.builds.sum_stored_bytes() == 0
        async with store.transaction(caller) as tx:
            await agents.delete_agent(tx, first)
        assert await stored() == 10 + 100 + 1000
        async with store.tenant_transaction(caller.tenant_id) as tx:
            await builds.finish_build(tx, versions[2], None, "failed")
        assert await stored() == 10
        await engine.dispose()


async def test_quotas_and_bounds_of_a_running_system() -> None:
    """Archives that unpack to much: refused with what to do, and the cache keeps to its bound while they are run."""
    bound = 8 * MIB
    async with run_system(
        PADDOCK_TENANT_MAX_STORED_BYTES=str(12 * MIB), PADDOCK_CACHE_MAX_BYTES=str(bound), PADDOCK_WARM_MEMORY_MB="0"
    ) as system:
        from tests.support.clients import register_tenant

        async with register_tenant(system.url) as acme, register_tenant(system.url) as rival:
            filler = {"agent.py": QUICK, "filler.bin": b"\0" * (5 * MIB)}
            mine, cache = [], system.data / "cache"
            for _ in range(2):
                agent_id = (await acme.create_agent())["id"]
                assert (await acme.build_version(agent_id, pack_archive(filler)))["status"] == "ready"
                mine.append(agent_id)
            # The third does not fit any more, though its archive is small.
            agent_id = (await acme.create_agent())["id"]
            failed = await acme.build_version(agent_id, pack_archive(filler))
            assert failed["status"] == "failed"
            assert failed["error_message"].startswith("quota_exceeded: ")
            assert "PADDOCK_TENANT_MAX_STORED_BYTES" in failed["error_message"]
            # An archive that is large as it is, is refused at the door.
            refused = await acme.upload_archive(
                agent_id, pack_archive({"agent.py": QUICK, "random.bin": os.urandom(3 * MIB)})
            )
            assert refused.status_code == 413, refused.text
            assert refused.json()["error"] == "quota_exceeded"
            # Others are not concerned, and each runs although not all fit into the cache together.
            theirs = (await rival.create_agent())["id"]
            assert (await rival.build_version(theirs, pack_archive(filler)))["status"] == "ready"
            for _ in range(2):
                for agent_id in mine:
                    assert (await acme.run_agent(agent_id))["status"] == "completed"
                assert (await rival.run_agent(theirs))["status"] == "completed"
            sizes = FolderCache(cache, 0)
            held = {name: sizes.measure_folder("bundles", name) for name in sizes.list_names("bundles")}
            assert sum(held.values()) <= bound, held
            # What is deleted makes room.
            assert (await acme.http.delete(f"/agents/{mine[0]}")).status_code == 204
            agent_id = (await acme.create_agent())["id"]
            assert (await acme.build_version(agent_id, pack_archive(filler)))["status"] == "ready"


async def test_what_was_deleted_leaves_object_storage(resources, acme: TenantClient) -> None:
    """Or uploading and deleting would store without end, as what is deleted does not count for the quota."""

    async def stored() -> set[str]:
        return {
            blob.key
            for prefix in ("uploads", "bundles")
            for blob in [blob async for blob in resources.blobs.list_objects(f"{prefix}/{acme.tenant_id}/")]
        }

    kept, deleted = await acme.deploy_agent(QUICK), await acme.deploy_agent(QUICK)
    versions = {
        agent_id: (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"][0]["id"]
        for agent_id in (kept, deleted)
    }
    assert len(await stored()) == 4
    assert (await acme.http.delete(f"/agents/{deleted}")).status_code == 204
    for _ in range(300):
        if len(left := await stored()) == 2:
            break
        await asyncio.sleep(0.1)
    assert all(versions[kept] in key for key in left), left
    assert (await acme.run_agent(kept))["status"] == "completed"


async def test_what_was_deleted_leaves_the_cache(system, resources, acme: TenantClient) -> None:
    kept, deleted = await acme.deploy_agent(QUICK), await acme.deploy_agent(QUICK)
    versions = {}
    for agent_id in (kept, deleted):
        assert (await acme.run_agent(agent_id))["status"] == "completed"
        versions[agent_id] = (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"][0]["id"]
    cache = FolderCache(system.settings.cache_dir, 0)
    environments = cache.get_path("environments", "0" * 64), cache.get_path("environments", "1" * 64)
    for path, age in zip(environments, (0, 2 * 3600), strict=True):
        path.mkdir(parents=True)
        os.utime(path, (time.time() - age, time.time() - age))
    assert set(versions.values()) <= set(cache.list_names("bundles"))
    assert (await acme.http.delete(f"/agents/{deleted}")).status_code == 204
    with cache.lock_folder("bundles", versions[deleted]):
        await clean_cache(cache, resources.store, 3600)
        assert versions[deleted] in cache.list_names("bundles"), "somebody uses it"
    gone = await clean_cache(cache, resources.store, 3600)
    assert versions[deleted] in gone or versions[deleted] not in cache.list_names("bundles")
    assert versions[deleted] not in cache.list_names("bundles")
    assert versions[kept] in cache.list_names("bundles")
    assert (await acme.run_agent(kept))["status"] == "completed"
    # Environments that no version has stay for a while: whoever mends a failed build asks for them again.
    assert [path.is_dir() for path in environments] == [True, False]
    environments[0].rmdir()
