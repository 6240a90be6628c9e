"""Run model agents whose models belong to providers with wires of their own, from the stored key to the bill."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.bedrock_frames import FRAMES_TYPE, build_delta, build_ending, build_event
from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent, generate_name, join_tokens, run_execution, stream_events
from tests.support.provider_targets import (
    AWS_SECRET,
    MODEL_NAMES,
    PROVIDER_KEYS,
    WireServer,
    build_target,
    format_events,
    run_wire_server,
)

PROVIDERS = ("gemini", "bedrock", "mistral", "azure")
WRITE_ARGUMENTS = {"path": "note.txt", "content": "42"}


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with run_wire_server() as server:
        yield server


def queue_call_and_answer(wire: WireServer, provider: str) -> None:
    """Queue a call of a tool, and then an answer, on the provider's wire: 120 tokens in and 30 out each."""
    if provider == "gemini":
        counts = {"promptTokenCount": 120, "candidatesTokenCount": 20, "thoughtsTokenCount": 10, "totalTokenCount": 150}
        call = {"functionCall": {"name": "filesystem_write", "args": WRITE_ARGUMENTS}, "thoughtSignature": "c2lnbmVk"}
        for part in (call, {"text": "Written."}):
            candidate = {"content": {"parts": [part], "role": "model"}, "finishReason": "STOP", "index": 0}
            wire.queue_events(format_events({"candidates": [candidate], "usageMetadata": counts}, newline="\r\n"))
        return
    if provider == "bedrock":
        usage = {"inputTokens": 120, "outputTokens": 30, "totalTokens": 150}
        use = {"toolUse": {"toolUseId": "tooluse_1", "name": "filesystem_write"}}
        begin = build_event("contentBlockStart", contentBlockIndex=0, start=use)
        arguments = build_delta(0, toolUse={"input": json.dumps(WRITE_ARGUMENTS)})
        wire.queue_events(begin + arguments + build_ending("tool_use", **usage), FRAMES_TYPE)
        wire.queue_events(build_delta(0, text="Written.") + build_ending(**usage), FRAMES_TYPE)
        return
    usage = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}
    function = {"name": "filesystem_write", "arguments": json.dumps(WRITE_ARGUMENTS)}
    tool_call = {"id": "D681PevKs", "index": 0, "type": "function", "function": function}
    for delta in ({"tool_calls": [tool_call]}, {"content": "Written."}):
        chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}], "usage": usage}
        wire.queue_events(format_events(chunk, "[DONE]"))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_agent_works_with_a_tool_and_is_billed(acme: TenantClient, wire: WireServer, provider: str) -> None:
    key = {"name": generate_name("key"), "service": provider, "key": PROVIDER_KEYS[provider]}
    created = await acme.http.post("/provider-keys", json=key)
    assert created.status_code == 201, created.text
    assert created.json()["last_four"] == PROVIDER_KEYS[provider][-4:]
    target = build_target(provider, wire.url)
    model = {"name": generate_name(), "provider": provider, "model": MODEL_NAMES[provider], "base_url": target.base_url}
    registered = await acme.http.post("/models", json={**model, "parameters": target.parameters})
    assert registered.status_code == 201, registered.text
    queue_call_and_answer(wire, provider)
    agent = await create_model_agent(acme, model["name"], tools=["filesystem_write"])
    execution = await run_execution(acme, agent["id"], payload={"task": "Write 42."}, mode="yolo")
    assert (execution["status"], execution["output_data"]) == ("completed", {"content": "Written."}), execution
    assert (await acme.http.get(f"/executions/{execution['id']}/files/note.txt")).text == "42"
    events = await stream_events(acme, execution["id"])
    assert join_tokens(events) == "Written."
    costs = [event for event in events if event["type"] == "cost"]
    assert [(cost["prompt_tokens"], cost["completion_tokens"], cost["estimated"]) for cost in costs] == [
        (120, 30, False)
    ] * 2
    assert all(cost["cost_usd"] > 0 for cost in costs)
    assert [event["provider"] for event in events if event["type"] == "model_call"] == [provider] * 2
    # The second request gives the call back, and its result.
    assert "note.txt" in json.dumps(wire.requests[1].body)
    secret = AWS_SECRET if provider == "bedrock" else PROVIDER_KEYS[provider]
    listed = [created.json(), registered.json(), execution, events, (await acme.http.get("/provider-keys")).json()]
    assert secret not in json.dumps(listed)


async def test_changed_key_must_have_a_form_of_its_service(acme: TenantClient) -> None:
    body = {"name": generate_name("key"), "service": "bedrock", "key": PROVIDER_KEYS["bedrock"]}
    created = await acme.http.post("/provider-keys", json=body)
    assert created.status_code == 201
    refused = await acme.http.patch(
        f"/provider-keys/{created.json()['id']}", json={"key": f"ASIA0123456789AB:{AWS_SECRET}"}
    )
    assert refused.status_code == 422
    assert "without its session token" in refused.text
    assert AWS_SECRET not in refused.text
