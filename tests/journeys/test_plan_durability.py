"""Workers are killed at every boundary between the steps of a workflow: it completes, and what was finished stays so."""

import asyncio
import os
import signal
from typing import Any

import pytest

from scripts.system import System
from tests.support.clients import TenantClient

STEPS = ("one", "two", "three", "four")
SLEEPER = "import time\ndef handle(p):\n    time.sleep(0.15)\n    return {'at': time.time()}\n"


@pytest.fixture
async def workflow(acme: TenantClient) -> str:
    agent_id = await acme.deploy_agent(SLEEPER)
    steps = [
        {"id": name, "agent": agent_id, "depends_on": [STEPS[place - 1]] if place else []}
        for place, name in enumerate(STEPS)
    ]
    answer = await acme.http.post("/workflows", json={"name": "chain", "steps": steps})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def _kill(system: System, *names: str) -> None:
    """SIGKILL, and wait until their successors run."""
    processes = [process for process in system.processes if process.name in names]
    assert len(processes) == len(names)
    old = {process.name: process.pid for process in processes}
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    for _ in range(400):
        if all(process.pid not in (None, old[process.name]) for process in processes):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("they were not started again")


async def _children(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return list((await acme.http.get("/executions", params={"parent_id": execution_id})).json()["items"])


async def _has_completed(acme: TenantClient, execution_id: str, step: str) -> None:
    for _ in range(2000):
        if any(one["step"] == step and one["status"] == "completed" for one in await _children(acme, execution_id)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{step} did not complete")


@pytest.mark.parametrize("after", STEPS)
async def test_killed_between_two_steps(system: System, acme: TenantClient, workflow: str, after: str) -> None:
    execution_id = (await acme.http.post(f"/workflows/{workflow}/execute", json={})).json()["id"]
    await _has_completed(acme, execution_id, after)
    before = {one["step"]: one["id"] for one in await _children(acme, execution_id) if one["status"] == "completed"}
    await _kill(system, "plan", "run")
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["steps_completed"]) == ("completed", 4), ended
    children = await _children(acme, execution_id)
    assert sorted(one["step"] for one in children) == sorted(STEPS), "one run for each step"
    kept = {one["step"]: one["id"] for one in children}
    assert {step: kept[step] for step in before} == before
    assert all(one["attempt"] == 1 for one in children if one["step"] in before), "what was finished is not run again"
    assert set(ended["results"]) == set(STEPS)
    times = [ended["results"][step]["at"] for step in STEPS]
    assert times == sorted(times)
