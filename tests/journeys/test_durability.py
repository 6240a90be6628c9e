"""Test that every accepted upload and execution ends exactly once, even if a process is killed."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from infra.sandbox.proc import list_descendants
from scripts.demo import pack_example
from scripts.supervisor import SupervisedProcess
from scripts.system import System
from tests.support.clients import TenantClient

SLEEPING_AGENT = "import time\ndef handle(p):\n    print('begin', flush=True)\n    time.sleep(p['for'])\n    return p\n"


def _find_process(system: System, name: str) -> SupervisedProcess:
    return next(process for process in system.processes if process.name == name)


async def _kill_process(system: System, name: str) -> None:
    """Send SIGKILL and wait until the successor runs."""
    process = _find_process(system, name)
    old = process.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    for _ in range(200):
        if process.pid != old:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} was not started again")


async def _check_ended_once(owner: TenantClient, executions: list[dict[str, Any]], status: str = "completed") -> None:
    for execution in executions:
        ended = await owner.wait_for_end(execution["id"])
        assert ended["status"] == status, ended
        events = await owner.list_events(execution["id"])
        statuses = [event["metadata"]["status"] for event in events if event["metadata"]["type"] == "status"]
        assert [status for status in statuses if status in ("completed", "failed", "cancelled")] == [status]
        assert statuses[-1] == status
        assert [event["metadata"]["seq"] for event in events] == list(range(1, len(events) + 1))


@pytest.fixture(scope="module")
async def sleeper(shared_tenant: TenantClient) -> str:
    return await shared_tenant.deploy_agent(SLEEPING_AGENT)


async def _wait_for_status(owner: TenantClient, execution_id: str, status: str) -> None:
    for _ in range(200):
        if (await owner.http.get(f"/executions/{execution_id}")).json()["status"] == status:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{execution_id} did not become {status}")


async def test_killed_run_worker_costs_one_attempt(system, shared_tenant, sleeper) -> None:
    executions = [await shared_tenant.start_execution(sleeper, {"for": 1.0, "n": n}) for n in range(4)]
    await _wait_for_status(shared_tenant, executions[0]["id"], "running")
    await _kill_process(system, "run")
    await _check_ended_once(shared_tenant, executions)
    assert (await shared_tenant.wait_for_end(executions[0]["id"]))["attempt"] == 2


STREAMING_AGENT = """
import time

def handle(payload, context):
    context.state["runs"] = context.state.get("runs", 0) + 1
    for number in range(1, 9):
        print("line", number)
        context.progress(number / 8, f"attempt {context.attempt}")
        yield {"attempt": context.attempt, "number": number}
        time.sleep(0.4)
"""


async def test_a_worker_killed_in_the_middle_of_a_stream_starts_it_again(system, shared_tenant) -> None:
    """Readers see the attempt change, and nothing is stored twice."""
    agent_id = await shared_tenant.deploy_agent(STREAMING_AGENT)
    execution = await shared_tenant.start_execution(agent_id, timeout=60)
    events = list[dict[str, Any]]()
    killing: asyncio.Task[None] | None = None
    async with shared_tenant.http.stream("GET", f"/executions/{execution['id']}/events") as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            events.append(json.loads(line[6:]))
            if killing is None and events[-1].get("number") == 3:
                killing = asyncio.create_task(_kill_process(system, "run"))
    assert killing is not None
    await killing
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    changes = [(event["status"], event["attempt"]) for event in events if event["type"] == "status"]
    assert [change for change in changes if change[0] in ("pending", "completed")] == [
        ("pending", 0),
        ("pending", 1),
        ("completed", 2),
    ]
    second = next(n for n, event in enumerate(events) if event["type"] == "status" and event["attempt"] == 2)
    for attempt, part in ((1, events[:second]), (2, events[second:])):
        outputs = [event for event in part if event["type"] == "output"]
        assert [event["value"] for event in outputs] == [
            {"attempt": attempt, "number": number} for number in range(1, len(outputs) + 1)
        ]
        assert [event["number"] for event in outputs] == list(range(1, len(outputs) + 1))
        lines = [event["message"] for event in part if event["type"] == "log"]
        assert len(set(lines)) == len(lines)
    assert len(outputs) == 8
    assert (await shared_tenant.wait_for_end(execution["id"]))["result"] == {"attempt": 2, "number": 8}
    state = (await shared_tenant.http.get(f"/agents/{agent_id}/states/default")).json()
    assert state["value"] == {"runs": 1}, "the attempt that was lost left no state"


async def test_killed_fork_server_costs_one_attempt(system, shared_tenant, sleeper) -> None:
    executions = [await shared_tenant.start_execution(sleeper, {"for": 1.0, "n": n}) for n in range(2)]
    for execution in executions:
        await _wait_for_status(shared_tenant, execution["id"], "running")
    await asyncio.sleep(0.3)
    worker = _find_process(system, "run").pid
    servers = [
        pid for pid in list_descendants(worker or 0) if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    await _check_ended_once(shared_tenant, executions)
    assert [(await shared_tenant.wait_for_end(execution["id"]))["attempt"] for execution in executions] == [2, 2]
    assert _find_process(system, "run").pid == worker


async def test_execution_without_attempts_left_fails_as_worker_lost(system, shared_tenant, sleeper) -> None:
    execution = await shared_tenant.start_execution(sleeper, {"for": 60}, max_attempts=1, timeout=120)
    await _wait_for_status(shared_tenant, execution["id"], "running")
    await _kill_process(system, "run")
    ended = await shared_tenant.wait_for_end(execution["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "worker_lost")
    assert "attempt 1 of 1" in ended["error_message"]


async def test_killed_build_worker_repeats_the_build(system, acme) -> None:
    slow = "import time\ntime.sleep(1.5)\ndef handle(p): return 1\n"
    agent = await acme.create_agent()
    from tests.support.clients import pack_archive

    version = (await acme.upload_archive(agent["id"], pack_archive({"agent.py": slow}))).json()
    path = f"/agents/{agent['id']}/versions/{version['id']}"
    for _ in range(100):
        if (await acme.http.get(path)).json()["status"] == "building":
            break
        await asyncio.sleep(0.05)
    await _kill_process(system, "build")
    built = (await acme.http.get(path, headers={"Prefer": "wait=60"})).json()
    assert (built["status"], built["attempt"]) == ("ready", 2)


async def test_flushing_redis_loses_no_execution(system, shared_tenant, sleeper) -> None:
    executions = [await shared_tenant.start_execution(sleeper, {"for": 0.3, "n": n}) for n in range(24)]
    redis = Redis.from_url(system.settings.redis_url.reveal())
    await redis.flushall()
    await redis.aclose()
    await _check_ended_once(shared_tenant, executions)


async def test_redis_killed_during_submission_loses_no_execution(system, shared_tenant, sleeper) -> None:
    valkey = system.services[1]
    assert valkey is not None
    assert valkey.child is not None
    old = valkey.child.process.pid
    os.kill(old, signal.SIGKILL)
    executions = [await shared_tenant.start_execution(sleeper, {"for": 0.1, "n": n}) for n in range(8)]
    await _check_ended_once(shared_tenant, executions)
    assert valkey.child.process.pid != old


async def test_postgres_restart_loses_no_execution(system, shared_tenant, sleeper) -> None:
    executions = [await shared_tenant.start_execution(sleeper, {"for": 1.0, "n": n}) for n in range(6)]
    await _wait_for_status(shared_tenant, executions[0]["id"], "running")
    postgres = system.services[0]
    assert postgres is not None
    assert postgres.child is not None
    old = postgres.child.process.pid
    os.kill(old, signal.SIGINT)
    refused = 0
    for _ in range(200):
        answer = await shared_tenant.http.get("/agents")
        if answer.status_code == 503:
            refused += 1
            assert answer.json()["error"] == "unavailable"
        if postgres.child.process.pid != old and answer.status_code == 200:
            break
        await asyncio.sleep(0.02)
    assert postgres.child.process.pid != old
    await _check_ended_once(shared_tenant, executions)


async def test_unavailable_storage_delays_builds(system, acme) -> None:
    agent = await acme.create_agent()
    seaweed = system.services[2]
    assert seaweed is not None
    assert seaweed.child is not None
    version = (await acme.upload_archive(agent["id"], pack_example("hello"))).json()
    os.kill(seaweed.child.process.pid, signal.SIGKILL)
    refused = await acme.upload_archive(agent["id"], pack_example("hello"))
    assert refused.status_code in (201, 503)
    if refused.status_code == 503:
        assert refused.json()["error"] == "storage_unavailable"
    path = f"/agents/{agent['id']}/versions/{version['id']}"
    for _ in range(3):
        built = (await acme.http.get(path, headers={"Prefer": "wait=30"})).json()
        if built["status"] in ("ready", "failed"):
            break
    assert built["status"] == "ready", built["build_log"]


async def test_killed_api_loses_no_execution(system, shared_tenant, sleeper) -> None:
    executions = [await shared_tenant.start_execution(sleeper, {"for": 0.5, "n": n}) for n in range(3)]
    await _kill_process(system, "api")
    for _ in range(200):
        try:
            async with httpx.AsyncClient() as client:
                await client.get(f"{system.url}/health/live")
            break
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    await _check_ended_once(shared_tenant, executions)


async def test_killed_upkeep_recovers_lost_notifications(system, shared_tenant, sleeper) -> None:
    await _kill_process(system, "upkeep")
    executions = [await shared_tenant.start_execution(sleeper, {"for": 0.1})]
    redis = Redis.from_url(system.settings.redis_url.reveal())
    await redis.flushall()
    await redis.aclose()
    await _check_ended_once(shared_tenant, executions)


async def test_two_hundred_concurrent_executions(system, shared_tenant) -> None:
    hello = (await shared_tenant.http.get("/agents/hello")).json()["id"]
    answers = await asyncio.gather(
        *(shared_tenant.http.post(f"/agents/{hello}/execute", json={"payload": {"name": str(n)}}) for n in range(200))
    )
    executions = [answer.json() for answer in answers]
    assert {answer.status_code for answer in answers} == {201}
    polls = 0
    while True:
        # The list stays responsive while everything runs.
        listed = await shared_tenant.http.get(f"/executions?agent_id={hello}&limit=200&status=completed")
        assert listed.status_code == 200
        polls += 1
        if {execution["id"] for execution in executions} <= {execution["id"] for execution in listed.json()["items"]}:
            break
        assert polls < 2000
        await asyncio.sleep(0.05)
    for execution in executions:
        ended = await shared_tenant.wait_for_end(execution["id"])
        assert ended["output_data"] == {"result": f"Hello, {execution['input_data']['name']}!"}
        assert ended["attempt"] == 1
