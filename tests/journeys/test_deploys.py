"""Rolling deploys are not seen: workers of every kind are told to end, again and again, and nothing fails of it."""

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

SLEEPER = "import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n"


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    """One of its own, whose leases outlast a busy machine: only deploys are to end attempts here."""
    async with run_system(PADDOCK_LEASE_SECONDS="30") as one:
        yield one


@pytest.fixture(scope="module")
async def resources(system: System) -> AsyncIterator[Resources]:
    """Yield the parts of that system."""
    async with open_resources(system.settings, "tests") as resources:
        yield resources


@pytest.fixture(scope="module")
async def credentials(resources: Resources) -> tuple[str, str]:
    """Return a password and its hash."""
    return "a password of deploys", await resources.passwords.hash_password("a password of deploys")


async def _deploy(system: System, name: str) -> None:
    """SIGTERM, as a deploy does it, and wait until the successor runs."""
    process = next(process for process in system.processes if process.name == name)
    old = process.pid
    assert old is not None
    os.kill(old, signal.SIGTERM)
    async with asyncio.timeout(60):
        while process.pid == old:
            await asyncio.sleep(0.05)


async def _until(owner: TenantClient, execution_id: str, status: str, attempt: int) -> None:
    async with asyncio.timeout(60):
        while True:
            found = (await owner.http.get(f"/executions/{execution_id}")).json()
            if (found["status"], found["attempt"]) == (status, attempt):
                return
            assert found["status"] in ("pending", "preparing", "running"), found
            await asyncio.sleep(0.05)


async def test_three_deploys_in_a_row_do_not_fail_a_run_that_outlives_each_of_them(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    execution = await acme.start_execution(sleeper, {"for": 6}, max_attempts=1, timeout=120)
    for attempt in (1, 2, 3):
        await _until(acme, execution["id"], "running", attempt)
        await _deploy(system, "run")
    ended = await acme.wait_for_end(execution["id"])
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 4, 3)
    statuses = [event["metadata"] for event in await acme.list_events(execution["id"])]
    assert [one["seq"] for one in statuses] == list(range(1, len(statuses) + 1))
    assert sum(one["type"] == "status" and one["status"] == "completed" for one in statuses) == 1


async def test_what_ends_while_a_worker_drains_is_not_begun_again(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    execution = await acme.start_execution(sleeper, {"for": 1})
    await _until(acme, execution["id"], "running", 1)
    await _deploy(system, "run")
    ended = await acme.wait_for_end(execution["id"])
    assert (ended["status"], ended["attempt"]) == ("completed", 1)


async def test_builds_outlive_deploys(system, acme: TenantClient) -> None:
    made = await acme.create_agent()
    slow = "import time\ntime.sleep(4)\ndef handle(p): return 1\n"
    version = (await acme.upload_archive(made["id"], pack_archive({"agent.py": slow}))).json()
    path = f"/agents/{made['id']}/versions/{version['id']}"
    # One more than a build has attempts.
    for attempt in (1, 2, 3):
        async with asyncio.timeout(60):
            while True:
                found = (await acme.http.get(path)).json()
                if (found["status"], found["attempt"]) == ("building", attempt):
                    break
                assert found["status"] in ("queued", "building"), found
                await asyncio.sleep(0.05)
        await _deploy(system, "build")
    built = (await acme.http.get(path, headers={"Prefer": "wait=60"})).json()
    assert (built["status"], built["attempt"]) == ("ready", 4)


async def _asked(provider: FakeProvider, name: str, count: int) -> None:
    async with asyncio.timeout(60):
        while sum(one.model == name for one in provider.requests) < count:
            await asyncio.sleep(0.02)


async def test_a_model_agent_goes_on_elsewhere_after_its_step(
    system, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    write = build_call("filesystem_write", {"path": "log", "content": "once\n", "append": True})
    for number in range(3):
        provider.queue_text(f"Step {number} is told word by word. ", [write], to=name, delay=0.05)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, made["id"], task="Go", mode="yolo", max_attempts=1)
    for number in range(1, 4):
        # In the middle of an answer.
        await _asked(provider, name, number)
        await _deploy(system, "llm")
    told = await stream_events(acme, execution_id)
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 4, 3), ended
    # Each answer was asked for once, each call made once, and nothing of them taken back.
    assert sum(one.model == name for one in provider.requests) == 4
    assert (await acme.http.get(f"/executions/{execution_id}/files/log")).text == "once\n" * 3
    assert [one for one in told if one["type"] == "warning"] == []
    assert join_tokens(told) == "".join(f"Step {number} is told word by word. " for number in range(3)) + "Done"


async def test_an_answer_that_outlives_the_drain_is_asked_for_again(
    system, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_hang(2, to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, made["id"], task="Go", max_attempts=1)
    await _asked(provider, name, 1)
    await _deploy(system, "llm")
    told = await stream_events(acme, execution_id)
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["attempt"], ended["handovers"]) == ("completed", 2, 1), ended
    # What was told of it is taken back, and only that.
    assert [one["discards"] for one in told if one["type"] == "warning"] == ["1"]
    assert ended["result"] == {"content": "Done"}


async def test_plans_records_and_schedules_go_on_over_deploys(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    steps = [{"id": f"s{n}", "agent": sleeper, "inputs": {"for": 0.2, "n": n}} for n in range(4)]
    for before, step in itertools.pairwise(steps):
        step["depends_on"] = [before["id"]]
    body = {"name": "chain", "steps": steps}
    made = await acme.http.post("/workflows", json=body)
    assert made.status_code == 201, made.text
    begun = await acme.http.post(f"/workflows/{made.json()['id']}/execute", json={})
    assert begun.status_code == 201, begun.text
    sent = [{"prompt": "a", "response": f"b {n}", "retrieved_docs": ["b"]} for n in range(50)]
    for name in ("plan", "record", "upkeep"):
        answer = await acme.http.post("/evaluations/batch", json=sent)
        assert answer.status_code == 201, answer.text
        await _deploy(system, name)
    ended = await acme.wait_for_end(begun.json()["id"])
    assert ended["status"] == "completed", ended
    async with asyncio.timeout(90):
        while True:
            found = (await acme.http.get("/evaluations/stats")).json()
            rows = (await acme.http.get("/evaluations?limit=200")).json()["items"]
            if all(one["metrics"] == "computed" for one in rows):
                break
            await asyncio.sleep(0.1)
    assert found["total_evaluations"] == len(rows) == 150
