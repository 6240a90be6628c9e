"""A soak of many tenants while the worst happens: nothing is lost, and nothing that has ended runs again."""

import asyncio
import os
import signal
from pathlib import Path

from scripts.bench.soak import run_soak
from scripts.system import System
from tests.conftest import run_system


def _below(pid: int) -> list[int]:
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_below(child)]
    return found


def _idle_slots(system: System) -> list[int]:
    """The warm slots that wait for a run: they are stopped until they get one."""
    worker = next(process.pid for process in system.processes if process.name == "run")
    assert worker is not None
    stopped = []
    for pid in _below(worker):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                stopped.append(pid)
        except OSError:
            continue
    return stopped


async def test_killed_slots_workers_and_redis_in_the_middle_lose_nothing() -> None:
    async with run_system(PADDOCK_LOG_LEVEL="WARNING") as system:
        killed = 0

        async def worst() -> None:
            nonlocal killed
            valkey = system.services[1]
            assert valkey is not None
            for _ in range(3):
                await asyncio.sleep(0.5)
                for pid in _idle_slots(system):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            for _ in range(2):
                await asyncio.sleep(1.0)
                worker = next(process.pid for process in system.processes if process.name == "run")
                assert worker is not None
                os.kill(worker, signal.SIGKILL)
                await asyncio.sleep(3.0)
            assert valkey.child is not None
            valkey.child.process.kill()

        found = await run_soak(system, tenants=5, executions=1200, in_flight=24, during=worst)
        assert killed > 0
        assert found.retried > 0, "no worker died while it held something: this showed nothing"
        assert len(found.took) == 1200
        assert (found.lost, found.twice) == ([], [])


async def test_a_soak_would_notice_what_ran_twice_or_not_at_all(shared_tenant) -> None:
    """The check itself: a run whose answer is another's counts as lost, one that is told twice as twice."""
    from scripts.bench.soak import BenchClient, find_repeated_ends

    execution = await shared_tenant.run_agent("hello", {"name": "x"})
    key = await shared_tenant.create_key()
    async with BenchClient(str(shared_tenant.http.base_url).removesuffix("/api/v1/"), {"X-API-Key": key}) as client:
        assert await find_repeated_ends([(client, execution)]) == []
        assert await find_repeated_ends([(client, execution), (client, execution)]) == [execution["id"]]
        assert await find_repeated_ends([(client, {**execution, "attempt": 2})]) == [execution["id"]]
