"""What providers, workers and clients do wrong, and what becomes of the run."""

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

PRICE = {"input": 1000.0, "output": 1000.0}


async def test_what_passes_is_tried_again_and_counts_once(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name)
    provider.queue_failure(429, retry_after=0, to=name)
    provider.queue_failure(500, to=name)
    provider.queue_cut(2, to=name)
    provider.queue_text("All is well", to=name)
    ended = await run_execution(acme, made["id"], task="Go")
    assert ended["status"] == "completed", ended
    assert ended["result"] == {"content": "All is well"}
    told = await stream_events(acme, ended["id"])
    calls = [(one["status"], one["error_type"]) for one in told if one["type"] == "model_call"]
    assert calls == [("error", "rate_limited"), ("error", "unavailable"), ("error", "cut_off"), ("ok", None)]
    # What came of the cut answer is billed, estimated; what the log says of it is taken back by name.
    costs = (await acme.http.get(f"/costs?execution_id={ended['id']}")).json()
    assert [one["estimated"] for one in costs["items"] if one["cost_usd"]] == [False, True]
    assert ended["total_cost"] == pytest.approx(costs["total_cost"])
    warned = [one for one in told if one["type"] == "warning"]
    assert [one["discards"] for one in warned] == ["1", "1", "1"]


async def test_malformed_answers_and_hopeless_errors(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_malformed(to=name)
    provider.queue_text("Fine", to=name)
    assert (await run_execution(acme, made["id"], task="Go"))["result"] == {"content": "Fine"}
    provider.queue_failure(400, to=name)
    refused = await run_execution(acme, made["id"], task="Go")
    assert (refused["status"], refused["error_type"]) == ("failed", "refused")
    assert sum(one.model == name for one in provider.requests) == 3, "what is refused is not tried again"


async def test_the_fallback_answers_when_the_model_does_not(acme: TenantClient, provider: FakeProvider) -> None:
    broken, spare = (
        await create_model(acme, provider, generate_name("broken")),
        await create_model(acme, provider, generate_name("spare")),
    )
    made = await create_model_agent(acme, broken, fallback_model=spare)
    provider.queue_failure(401, to=broken)
    provider.queue_text("I can", to=spare)
    ended = await run_execution(acme, made["id"], task="Go")
    assert ended["result"] == {"content": "I can"}


async def test_a_timeout_ends_the_call(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_hang(to=name)
    ended = await run_execution(acme, made["id"], task="Go", timeout=1)
    assert (ended["status"], ended["error_type"]) == ("failed", "timeout")
    assert next(one for one in provider.requests if one.model == name).hung_up_at is not None


async def test_cancelling_stops_the_call_within_a_second_and_bills_what_was_used(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name)
    provider.queue_slow(400, 0.02, to=name)
    execution_id = await start_execution(acme, made["id"], task="Count")
    while True:
        logs = await events_so_far(acme, execution_id)
        if join_tokens(logs):
            break
        await asyncio.sleep(0.05)
    asked = next(one for one in provider.requests if one.model == name)
    cancelled = await acme.http.post(f"/executions/{execution_id}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    begun = time.monotonic()
    while asked.hung_up_at is None and time.monotonic() < begun + 5:
        await asyncio.sleep(0.01)
    assert asked.hung_up_at is not None
    assert asked.hung_up_at - begun < 1.0
    assert asked.sent_tokens < 400
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


async def events_so_far(acme: TenantClient, execution_id: str) -> list[dict]:
    found: list[dict] = []
    async with acme.http.stream("GET", f"/executions/{execution_id}/events") as answer:
        try:
            async with asyncio.timeout(0.3):
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        found.append(json.loads(line[5:]))
        except TimeoutError:
            pass
    return found


def kill_worker(system: System) -> None:
    (process,) = [one for one in system.processes if one.name == "llm"]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


async def test_a_killed_worker_goes_on_from_the_last_finished_step(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    write = build_call("filesystem_write", {"path": "log", "content": "once\n", "append": True})
    provider.queue_text("First I write", to=name, calls=[write])
    provider.queue_hang(to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, made["id"], task="Go", mode="yolo")
    await asked_times(provider, name, 2)
    kill_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert ended["attempt"] == 2
    asked = [one for one in provider.requests if one.model == name]
    assert len(asked) == 3, "the first answer was asked for once"
    assert [one["role"] for one in asked[2].body["messages"]] == ["user", "assistant", "tool"]
    assert (await acme.http.get(f"/executions/{execution_id}/files/log")).text == "once\n"
    assert ended["result"] == {"content": "Done"}


async def asked_times(provider: FakeProvider, name: str, count: int) -> None:
    for _ in range(400):
        if sum(one.model == name for one in provider.requests) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} was not asked {count} times")


async def test_a_tool_call_that_may_have_taken_effect_is_not_made_again(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name, hits = await create_model(acme, provider, generate_name()), []
    # The tool's server is a provider that never answers: all that matters is how often it is asked.
    tool = {"api_endpoint": provider.url + "/chat/completions", "parameters": {"model": {"type": "string"}}}
    slow = generate_name("hang")
    provider.queue_hang(to=slow)
    assert (await acme.http.post("/tools", json={"name": "Pay", "configuration": tool})).status_code == 201
    made = await create_model_agent(acme, name, tools=["pay"])
    provider.queue_text(
        "", to=name, calls=[build_call("pay", {"model": slow, "stream": True} if False else {"model": slow})]
    )
    provider.queue_text("I do not know whether it was paid", to=name)
    execution_id = await start_execution(acme, made["id"], task="Pay", mode="yolo")
    await asked_times(provider, slow, 1)
    kill_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert sum(one.model == slow for one in provider.requests) == 1
    told: ProviderRequest = [one for one in provider.requests if one.model == name][-1]
    assert "It may have taken effect" in told.get_last_text("tool")
    assert ended["attempt"] == 2
    assert not hits


async def test_a_cost_limit_stops_the_run_before_the_call_that_would_pass_it(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name, tools=["filesystem_list"], max_tokens=100)
    for _ in range(10):
        provider.queue_text("", to=name, calls=[build_call("filesystem_list", {})], prompt=100, completion=100)
    ended = await run_execution(acme, made["id"], task="Go", cost_limit=1.0)
    assert (ended["status"], ended["error_type"]) == ("failed", "budget_exceeded"), ended
    assert 0.1 < ended["total_cost"] <= 1.0
    assert "cost" in ended["error_message"]
    warned = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "warning"]
    assert len(warned) <= 1


async def test_a_broken_connection_resumes_without_a_gap_or_a_double(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name("tokens-200-delay-5"), model="tokens-200-delay-5")
    made = await create_model_agent(acme, name)
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{made['name']}/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}
    seen: list[dict] = []
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"task": "Implement feature X", "mode": "safe"}))
        while len(join_tokens(seen)) < 100:
            seen.append(json.loads(await socket.recv()))
        execution_id = (await acme.http.get(f"/executions?agent_id={made['id']}")).json()["items"][0]["id"]
        socket.transport.abort()
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"execution_id": execution_id, "after": seen[-1]["seq"]}))
        async for message in socket:
            seen.append(json.loads(message))
            if seen[-1]["type"] == "complete":
                break
    assert [one["seq"] for one in seen[:-1]] == list(range(1, len(seen)))
    assert join_tokens(seen).split() == [f"w{number}" for number in range(200)]
    assert seen[-1]["result"] == {"content": join_tokens(seen)}
    assert seen[-1]["cost"] == 0


async def test_what_a_lost_attempt_held_does_not_count_against_the_next(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name, max_tokens=100)
    provider.queue_hang(to=name)
    provider.queue_text("Done", to=name)
    # Room for one call, not for two that are held at the same time.
    execution_id = await start_execution(acme, made["id"], task="Go", cost_limit=0.15)
    await asked_times(provider, name, 1)
    kill_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 40)
    assert ended["attempt"] == 2
    assert ended["total_cost"] <= 0.15
