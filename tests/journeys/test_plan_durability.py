"""Test that a workflow completes if workers are killed between two steps, and that finished steps are not repeated."""

import asyncio
import os
import signal
from typing import Any

import pytest

from scripts.system import System
from tests.support.clients import TenantClient

STEP_IDS = ("one", "two", "three", "four")
SLEEPING_AGENT = "import time\ndef handle(p):\n    time.sleep(0.15)\n    return {'at': time.time()}\n"


@pytest.fixture
async def workflow(acme: TenantClient) -> str:
    agent_id = await acme.deploy_agent(SLEEPING_AGENT)
    steps = [
        {"id": name, "agent": agent_id, "depends_on": [STEP_IDS[place - 1]] if place else []}
        for place, name in enumerate(STEP_IDS)
    ]
    answer = await acme.http.post("/workflows", json={"name": "chain", "steps": steps})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def _kill_processes(system: System, *names: str) -> None:
    """Send SIGKILL and wait until the successors run."""
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
    raise AssertionError("the processes were not started again")


async def _list_children(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return list((await acme.http.get("/executions", params={"parent_id": execution_id})).json()["items"])


async def _wait_until_completed(acme: TenantClient, execution_id: str, step: str) -> None:
    for _ in range(2000):
        if any(
            child["step"] == step and child["status"] == "completed"
            for child in await _list_children(acme, execution_id)
        ):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{step} did not complete")


@pytest.mark.parametrize("after", STEP_IDS)
async def test_workflow_survives_workers_killed_between_steps(
    system: System, acme: TenantClient, workflow: str, after: str
) -> None:
    execution_id = (await acme.http.post(f"/workflows/{workflow}/execute", json={})).json()["id"]
    await _wait_until_completed(acme, execution_id, after)
    completed_ids = {
        child["step"]: child["id"]
        for child in await _list_children(acme, execution_id)
        if child["status"] == "completed"
    }
    await _kill_processes(system, "plan", "run")
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["steps_completed"]) == ("completed", 4), ended
    children = await _list_children(acme, execution_id)
    assert sorted(child["step"] for child in children) == sorted(STEP_IDS), "one run for each step"
    ids_by_step = {child["step"]: child["id"] for child in children}
    assert {step: ids_by_step[step] for step in completed_ids} == completed_ids
    assert all(child["attempt"] == 1 for child in children if child["step"] in completed_ids), (
        "a finished step is not repeated"
    )
    assert set(ended["results"]) == set(STEP_IDS)
    times = [ended["results"][step]["at"] for step in STEP_IDS]
    assert times == sorted(times)
