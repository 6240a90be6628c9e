"""Test rolling deploys: workers of every kind get SIGTERM repeatedly, and no execution fails."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator

import pytest

from infra.wiring import Resources, open_resources
from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    join_tokens,
    start_execution,
    stream_events,
)

SLEEPING_AGENT = "import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n"


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    """Yield a separate system with long leases, so that only deploys end attempts."""
    async with run_system(PADDOCK_LEASE_SECONDS="30") as separate_system:
        yield separate_system


@pytest.fixture(scope="module")
async def resources(system: System) -> AsyncIterator[Resources]:
    """Yield the parts of that system."""
    async with open_resources(system.settings, "tests") as resources:
        yield resources


@pytest.fixture(scope="module")
async def credentials(resources: Resources) -> tuple[str, str]:
    """Return a password and its hash."""
    return "a password of deploys", await resources.passwords.hash_password("a password of deploys")


async def _replace_process(system: System, name: str) -> None:
    """Send SIGTERM as a deploy does, and wait until the successor runs."""
    process = next(process for process in system.processes if process.name == name)
    old = process.pid
    assert old is not None
    os.kill(old, signal.SIGTERM)
    async with asyncio.timeout(60):
        while process.pid == old:
            await asyncio.sleep(0.05)


async def _wait_for_attempt(owner: TenantClient, execution_id: str, status: str, attempt: int) -> None:
    async with asyncio.timeout(60):
        while True:
            execution = (await owner.http.get(f"/executions/{execution_id}")).json()
            if (execution["status"], execution["attempt"]) == (status, attempt):
                return
            assert execution["status"] in ("pending", "preparing", "running"), execution
            await asyncio.sleep(0.05)


async def test_run_survives_three_deploys_in_a_row(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPING_AGENT)
    execution = await acme.start_execution(sleeper, {"for": 6}, max_attempts=1, timeout=120)
    for attempt in (1, 2, 3):
        await _wait_for_attempt(acme, execution["id"], "running", attempt)
        await _replace_process(system, "run")
    ended = await acme.wait_for_end(execution["id"])
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 4, 3)
    event_metadata = [event["metadata"] for event in await acme.list_events(execution["id"])]
    assert [event["seq"] for event in event_metadata] == list(range(1, len(event_metadata) + 1))
    assert sum(event["type"] == "status" and event["status"] == "completed" for event in event_metadata) == 1


async def test_run_that_ends_during_the_drain_is_not_repeated(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPING_AGENT)
    execution = await acme.start_execution(sleeper, {"for": 1})
    await _wait_for_attempt(acme, execution["id"], "running", 1)
    await _replace_process(system, "run")
    ended = await acme.wait_for_end(execution["id"])
    assert (ended["status"], ended["attempt"]) == ("completed", 1)


async def test_builds_survive_deploys(system, acme: TenantClient) -> None:
    created = await acme.create_agent()
    slow = "import time\ntime.sleep(4)\ndef handle(p): return 1\n"
    uploaded = (await acme.upload_archive(created["id"], pack_archive({"agent.py": slow}))).json()
    path = f"/agents/{created['id']}/versions/{uploaded['id']}"
    # More deploys than a build has attempts.
    for attempt in (1, 2, 3):
        async with asyncio.timeout(60):
            while True:
                version = (await acme.http.get(path)).json()
                if (version["status"], version["attempt"]) == ("building", attempt):
                    break
                assert version["status"] in ("queued", "building"), version
                await asyncio.sleep(0.05)
        await _replace_process(system, "build")
    built = (await acme.http.get(path, headers={"Prefer": "wait=60"})).json()
    assert (built["status"], built["attempt"]) == ("ready", 4)


async def _wait_for_requests(provider: FakeProvider, name: str, count: int) -> None:
    async with asyncio.timeout(60):
        while sum(request.model == name for request in provider.requests) < count:
            await asyncio.sleep(0.02)


async def test_model_agent_continues_on_another_worker_after_its_step(
    system, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_write"])
    write = build_call("filesystem_write", {"path": "log", "content": "once\n", "append": True})
    for number in range(3):
        provider.queue_text(f"Step {number} is sent word by word. ", [write], to=name, delay=0.05)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, created["id"], task="Go", mode="yolo", max_attempts=1)
    for number in range(1, 4):
        # During an answer.
        await _wait_for_requests(provider, name, number)
        await _replace_process(system, "llm")
    events = await stream_events(acme, execution_id)
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 4, 3), ended
    # Each answer was requested once, each tool called once, and no token discarded.
    assert sum(request.model == name for request in provider.requests) == 4
    assert (await acme.http.get(f"/executions/{execution_id}/files/log")).text == "once\n" * 3
    assert [event for event in events if event["type"] == "warning"] == []
    assert join_tokens(events) == "".join(f"Step {number} is sent word by word. " for number in range(3)) + "Done"


async def test_answer_longer_than_the_drain_is_requested_again(
    system, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name)
    provider.queue_hang(2, to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, created["id"], task="Go", max_attempts=1)
    await _wait_for_requests(provider, name, 1)
    await _replace_process(system, "llm")
    events = await stream_events(acme, execution_id)
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 2, 1), ended
    # Only the tokens of the unfinished answer are discarded.
    assert [event["discards"] for event in events if event["type"] == "warning"] == ["1"]
    assert ended["result"] == {"content": "Done"}


async def test_plans_and_records_survive_deploys(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPING_AGENT)
    steps = [{"id": f"s{n}", "agent": sleeper, "inputs": {"for": 0.2, "n": n}} for n in range(4)]
    for before, step in itertools.pairwise(steps):
        step["depends_on"] = [before["id"]]
    body = {"name": "chain", "steps": steps}
    created = await acme.http.post("/workflows", json=body)
    assert created.status_code == 201, created.text
    started = await acme.http.post(f"/workflows/{created.json()['id']}/execute", json={})
    assert started.status_code == 201, started.text
    evaluations = [{"prompt": "a", "response": f"b {n}", "retrieved_docs": ["b"]} for n in range(50)]
    for name in ("plan", "record", "upkeep"):
        answer = await acme.http.post("/evaluations/batch", json=evaluations)
        assert answer.status_code == 201, answer.text
        await _replace_process(system, name)
    ended = await acme.wait_for_end(started.json()["id"])
    assert ended["status"] == "completed", ended
    async with asyncio.timeout(90):
        while True:
            stats = (await acme.http.get("/evaluations/stats")).json()
            rows = (await acme.http.get("/evaluations?limit=200")).json()["items"]
            if all(row["metrics"] == "computed" for row in rows):
                break
            await asyncio.sleep(0.1)
    assert stats["total_evaluations"] == len(rows) == 150
