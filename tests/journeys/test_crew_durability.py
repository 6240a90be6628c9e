"""Test that a crew's judge, review, plan and memory go on where they were when their worker is killed."""

import asyncio
import os
import signal

from scripts.system import System
from tests.journeys.test_crew_knowledge import list_memories
from tests.journeys.test_crew_runs import create_models, list_requests, start_crew
from tests.journeys.test_crew_task_rules import create_crew, wait_for_review, write_verdict
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider

BEES = "Honey bees fly at 24 kilometres per hour."


async def kill_llm_worker(system: System) -> None:
    """Send SIGKILL and wait until the successor runs."""
    (process,) = [process for process in system.processes if process.name == "llm"]
    old_pid = process.pid
    assert old_pid is not None
    os.kill(old_pid, signal.SIGKILL)
    for _ in range(600):
        if process.pid not in (None, old_pid):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the worker was not started again")


async def wait_for_calls(provider: FakeProvider, model: str, count: int) -> None:
    for _ in range(1200):
        if len(list_requests(provider, model)) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{model} was not called {count} times")


async def test_checks_of_an_answer_survive_a_killed_worker(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    (name,) = await create_models(acme, provider, "killed")
    agent = {"reasoning": True, "memory": True, "knowledge_sources": [BEES]}
    task = {"description": "How fast do honey bees fly?", "guardrail": "It has a number.", "human_input": True}
    crew = await create_crew(acme, "killed", name, agent, task)
    provider.queue_text("Look it up. READY", to=name)
    provider.queue_text("They fly fast.", to=name)
    provider.queue_hang(to=name)
    execution_id = (await start_crew(acme, crew))["id"]
    await wait_for_calls(provider, name, 3)
    provider.queue_text(write_verdict(False, "How fast?"), to=name)
    provider.queue_text("At 24.", to=name)
    provider.queue_text(write_verdict(True), to=name)
    await kill_llm_worker(system)
    assert (await wait_for_review(acme, execution_id))["args"] == {"answer": "At 24."}
    planned, asked, judged, judged_again, again, *_ = requests = list_requests(provider, name)
    assert len(requests) == 6, "neither the plan nor the first answer is asked for again"
    assert judged.messages == judged_again.messages
    assert BEES in planned.get_last_text() or BEES in planned.messages[-2]["content"]
    assert again.messages[: len(asked.messages)] == asked.messages, "knowledge and plan are the same"
    # A run that waits for a person holds no worker.
    await kill_llm_worker(system)
    assert (await acme.http.post(f"/executions/{execution_id}/approve", json={})).status_code == 200
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["result"]) == ("completed", "At 24."), ended
    assert len(list_requests(provider, name)) == 6
    (memory,) = await list_memories(acme, crew)
    assert "At 24." in memory["content"]
