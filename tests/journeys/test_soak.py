"""Run a soak of many tenants while processes are killed: no execution is lost, and none that ended runs again."""

import asyncio
import os
import signal
from pathlib import Path

from scripts.bench.soak import run_soak
from scripts.system import System


def _list_descendants(pid: int) -> list[int]:
    descendants = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            descendants += [child, *_list_descendants(child)]
    return descendants


def _list_idle_slots(system: System) -> list[int]:
    """Return the process ids of the warm slots, which are stopped until they get a run."""
    worker = next(process.pid for process in system.processes if process.name == "run")
    assert worker is not None
    stopped = []
    for pid in _list_descendants(worker):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                stopped.append(pid)
        except OSError:
            continue
    return stopped


async def test_killing_slots_workers_and_redis_loses_no_execution(system: System) -> None:
    killed = 0

    async def kill_processes() -> None:
        nonlocal killed
        valkey = system.services[1]
        assert valkey is not None
        for _ in range(3):
            await asyncio.sleep(0.5)
            for pid in _list_idle_slots(system):
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

    report = await run_soak(system, tenants=5, executions=1200, in_flight=24, during=kill_processes)
    assert killed > 0
    assert report.retried > 0, "no worker was killed with a lease, so the test shows nothing"
    assert len(report.took) == 1200
    assert (report.lost, report.twice) == ([], [])


async def test_soak_reports_repeated_executions(shared_tenant) -> None:
    """Check the soak's own check: an execution that ended twice or with another attempt is reported."""
    from scripts.bench.soak import BenchClient, find_repeated_ends

    execution = await shared_tenant.run_agent("hello", {"name": "x"})
    key = await shared_tenant.create_key()
    async with BenchClient(str(shared_tenant.http.base_url).removesuffix("/api/v1/"), {"X-API-Key": key}) as client:
        assert await find_repeated_ends([(client, execution)]) == []
        assert await find_repeated_ends([(client, execution), (client, execution)]) == [execution["id"]]
        assert await find_repeated_ends([(client, {**execution, "attempt": 2})]) == [execution["id"]]
