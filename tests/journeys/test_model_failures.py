"""Test failures of providers, workers and clients, and how a run recovers."""

import asyncio
import json
import os
import signal
import time

import pytest
from websockets.asyncio.client import connect

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, build_call
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    join_tokens,
    run_execution,
    start_execution,
    stream_events,
    wait_for_status,
)

MODEL_PRICE = {"input": 1000.0, "output": 1000.0}


async def test_transient_errors_are_retried_and_billed_once(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    created = await create_model_agent(acme, name)
    provider.queue_failure(429, retry_after=0, to=name)
    provider.queue_failure(500, to=name)
    provider.queue_cut(2, to=name)
    provider.queue_text("All is well", to=name)
    ended = await run_execution(acme, created["id"], task="Go")
    assert ended["status"] == "completed", ended
    assert ended["result"] == {"content": "All is well"}
    events = await stream_events(acme, ended["id"])
    calls = [(event["status"], event["error_type"]) for event in events if event["type"] == "model_call"]
    assert calls == [("error", "rate_limited"), ("error", "unavailable"), ("error", "cut_off"), ("ok", None)]
    # The cut answer is billed with an estimate; its tokens in the log are discarded by id.
    costs = (await acme.http.get(f"/costs?execution_id={ended['id']}")).json()
    assert [cost["estimated"] for cost in costs["items"] if cost["cost_usd"]] == [False, True]
    assert ended["total_cost"] == pytest.approx(costs["total_cost"])
    warnings = [event for event in events if event["type"] == "warning"]
    assert [warning["discards"] for warning in warnings] == ["1", "1", "1"]


async def test_malformed_answer_is_retried_and_permanent_error_is_not(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name)
    provider.queue_malformed(to=name)
    provider.queue_text("Fine", to=name)
    assert (await run_execution(acme, created["id"], task="Go"))["result"] == {"content": "Fine"}
    provider.queue_failure(400, to=name)
    refused = await run_execution(acme, created["id"], task="Go")
    assert (refused["status"], refused["error_type"]) == ("failed", "refused")
    assert sum(request.model == name for request in provider.requests) == 3, "a refused call is not retried"


async def test_fallback_model_answers_when_the_model_fails(acme: TenantClient, provider: FakeProvider) -> None:
    broken, spare = (
        await create_model(acme, provider, generate_name("broken")),
        await create_model(acme, provider, generate_name("spare")),
    )
    created = await create_model_agent(acme, broken, fallback_model=spare)
    provider.queue_failure(401, to=broken)
    provider.queue_text("I can", to=spare)
    ended = await run_execution(acme, created["id"], task="Go")
    assert ended["result"] == {"content": "I can"}


async def test_timeout_ends_the_model_call(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name)
    provider.queue_hang(to=name)
    ended = await run_execution(acme, created["id"], task="Go", timeout=1)
    assert (ended["status"], ended["error_type"]) == ("failed", "timeout")
    assert next(request for request in provider.requests if request.model == name).hung_up_at is not None


async def test_cancelling_stops_the_call_and_bills_its_usage(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    created = await create_model_agent(acme, name)
    provider.queue_slow(400, 0.02, to=name)
    execution_id = await start_execution(acme, created["id"], task="Count")
    while True:
        logs = await read_events_so_far(acme, execution_id)
        if join_tokens(logs):
            break
        await asyncio.sleep(0.05)
    request = next(sent_request for sent_request in provider.requests if sent_request.model == name)
    cancelled = await acme.http.post(f"/executions/{execution_id}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    cancelled_at = time.monotonic()
    while request.hung_up_at is None and time.monotonic() < cancelled_at + 5:
        await asyncio.sleep(0.01)
    assert request.hung_up_at is not None
    assert request.hung_up_at - cancelled_at < 1.0
    assert request.sent_tokens < 400
    for _ in range(100):
        costs = (await acme.http.get(f"/costs?execution_id={execution_id}")).json()
        if costs["items"]:
            break
        await asyncio.sleep(0.05)
    (cost,) = costs["items"]
    assert (cost["status"], cost["estimated"]) == ("cancelled", True)
    assert 0 < cost["completion_tokens"] <= 400
    ended = (await acme.http.get(f"/executions/{execution_id}")).json()
    assert ended["total_cost"] == pytest.approx(cost["cost_usd"])


async def read_events_so_far(acme: TenantClient, execution_id: str) -> list[dict]:
    events: list[dict] = []
    async with acme.http.stream("GET", f"/executions/{execution_id}/events") as answer:
        try:
            async with asyncio.timeout(0.3):
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        events.append(json.loads(line[5:]))
        except TimeoutError:
            pass
    return events


def kill_model_worker(system: System) -> None:
    (process,) = [process for process in system.processes if process.name == "llm"]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


async def test_killed_worker_resumes_from_the_last_finished_step(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_write"])
    write = build_call("filesystem_write", {"path": "log", "content": "once\n", "append": True})
    provider.queue_text("First I write", to=name, calls=[write])
    provider.queue_hang(to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, created["id"], task="Go", mode="yolo")
    await wait_for_requests(provider, name, 2)
    kill_model_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert ended["attempt"] == 2
    requests = [request for request in provider.requests if request.model == name]
    assert len(requests) == 3, "the first answer was requested once"
    assert [message["role"] for message in requests[2].body["messages"]] == ["user", "assistant", "tool"]
    assert (await acme.http.get(f"/executions/{execution_id}/files/log")).text == "once\n"
    assert ended["result"] == {"content": "Done"}


async def wait_for_requests(provider: FakeProvider, name: str, count: int) -> None:
    for _ in range(400):
        if sum(request.model == name for request in provider.requests) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} was not called {count} times")


async def test_tool_call_with_unknown_outcome_is_not_repeated(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name, hits = await create_model(acme, provider, generate_name()), []
    # The tool's server never answers: only the number of its requests matters.
    tool = {"api_endpoint": provider.url + "/chat/completions", "parameters": {"model": {"type": "string"}}}
    slow = generate_name("hang")
    provider.queue_hang(to=slow)
    assert (await acme.http.post("/tools", json={"name": "Pay", "configuration": tool})).status_code == 201
    created = await create_model_agent(acme, name, tools=["pay"])
    provider.queue_text(
        "", to=name, calls=[build_call("pay", {"model": slow, "stream": True} if False else {"model": slow})]
    )
    provider.queue_text("I do not know whether it was paid", to=name)
    execution_id = await start_execution(acme, created["id"], task="Pay", mode="yolo")
    await wait_for_requests(provider, slow, 1)
    kill_model_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert sum(request.model == slow for request in provider.requests) == 1
    last_request: ProviderRequest = [request for request in provider.requests if request.model == name][-1]
    assert "It may have taken effect" in last_request.get_last_text("tool")
    assert ended["attempt"] == 2
    assert not hits


async def test_cost_limit_stops_the_run_before_it_is_exceeded(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    created = await create_model_agent(acme, name, tools=["filesystem_list"], max_tokens=100)
    for _ in range(10):
        provider.queue_text("", to=name, calls=[build_call("filesystem_list", {})], prompt=100, completion=100)
    ended = await run_execution(acme, created["id"], task="Go", cost_limit=1.0)
    assert (ended["status"], ended["error_type"]) == ("failed", "budget_exceeded"), ended
    assert 0.1 < ended["total_cost"] <= 1.0
    assert "cost" in ended["error_message"]
    warnings = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "warning"]
    assert len(warnings) <= 1


async def test_broken_websocket_resumes_without_gaps_or_duplicates(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name("tokens-200-delay-5"), model="tokens-200-delay-5")
    created = await create_model_agent(acme, name)
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{created['name']}/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}
    seen: list[dict] = []
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"task": "Implement feature X", "mode": "safe"}))
        while len(join_tokens(seen)) < 100:
            seen.append(json.loads(await socket.recv()))
        execution_id = (await acme.http.get(f"/executions?agent_id={created['id']}")).json()["items"][0]["id"]
        socket.transport.abort()
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"execution_id": execution_id, "after": seen[-1]["seq"]}))
        async for message in socket:
            seen.append(json.loads(message))
            if seen[-1]["type"] == "complete":
                break
    assert [event["seq"] for event in seen[:-1]] == list(range(1, len(seen)))
    assert join_tokens(seen).split() == [f"w{number}" for number in range(200)]
    assert seen[-1]["result"] == {"content": join_tokens(seen)}
    assert seen[-1]["cost"] == 0


async def test_reservation_of_a_lost_attempt_is_released(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    created = await create_model_agent(acme, name, max_tokens=100)
    provider.queue_hang(to=name)
    provider.queue_text("Done", to=name)
    # The limit covers one reservation, not two at the same time.
    execution_id = await start_execution(acme, created["id"], task="Go", cost_limit=0.15)
    await wait_for_requests(provider, name, 1)
    kill_model_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert ended["attempt"] == 2
    assert ended["total_cost"] <= 0.15
