"""Test an uploaded agent that uses the `openai` package: streamed through the gateway, billed, and stopped by its limit."""

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name, run_execution, stream_events

ASKING_MANIFEST = "name: asker\nentrypoint: agent:handle\nmodels: [{name}]\nmemory: 512MB\ntimeout: 60\n"
ASKING_SOURCE = """
import openai

client = openai.OpenAI()


def handle(payload):
    pieces = []
    for _ in range(payload.get("calls", 1)):
        stream = client.chat.completions.create(
            model=payload.get("model", "{name}"),
            messages=[{{"role": "user", "content": payload["task"]}}],
            stream=True,
            max_tokens=100,
        )
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    print(len(pieces), "pieces")
    return {{"text": "".join(pieces), "pieces": len(pieces)}}
"""


@pytest.fixture(scope="module")
async def openai_agent(shared_tenant: TenantClient, provider: FakeProvider):
    """Deploy an agent with the real openai package; return its id and its model."""
    name = await create_model(
        shared_tenant, provider, generate_name("echo"), model="echo", price={"input": 1000.0, "output": 1000.0}
    )
    agent = await shared_tenant.create_agent()
    files = {"agent.py": ASKING_SOURCE.format(name=name), "requirements.txt": "openai\n"}
    version = await shared_tenant.build_version(agent["id"], pack_archive(files, ASKING_MANIFEST.format(name=name)))
    assert version["status"] == "ready", version["build_log"]
    return agent["id"], name


async def test_openai_package_streams_through_the_gateway(
    shared_tenant: TenantClient, provider: FakeProvider, openai_agent
) -> None:
    agent_id, name = openai_agent
    task = "Tell me these seven words back now"
    ended = await run_execution(shared_tenant, agent_id, task=task)
    assert ended["status"] == "completed", ended
    assert ended["result"]["text"] == task
    assert ended["result"]["pieces"] >= 7, "the answer is streamed in pieces"
    call_events = [
        event for event in await stream_events(shared_tenant, ended["id"]) if event["type"] in ("model_call", "cost")
    ]
    assert [event["type"] for event in call_events] == ["model_call", "cost"]
    assert ended["total_cost"] == pytest.approx(call_events[1]["cost_usd"])
    assert ended["total_cost"] > 0
    costs = (await shared_tenant.http.get(f"/costs?execution_id={ended['id']}")).json()
    assert [cost["model_name"] for cost in costs["items"]] == [name]


async def test_cost_limit_stops_gateway_calls(shared_tenant: TenantClient, openai_agent) -> None:
    agent_id, _ = openai_agent
    ended = await run_execution(shared_tenant, agent_id, inputs={"task": "word " * 50, "calls": 50}, cost_limit=1.0)
    assert ended["status"] == "failed", ended
    assert ended["error_type"] == "APIStatusError", ended
    assert "budget" in ended["error_message"] or "cost" in ended["error_message"]
    assert 0 < ended["total_cost"] <= 1.0


async def test_model_outside_the_manifest_is_not_found(shared_tenant: TenantClient, openai_agent) -> None:
    agent_id, _ = openai_agent
    ended = await run_execution(shared_tenant, agent_id, inputs={"task": "x", "model": "smollm2"})
    assert (ended["status"], ended["error_type"]) == ("failed", "NotFoundError"), ended
