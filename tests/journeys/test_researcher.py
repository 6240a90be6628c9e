"""An uploaded agent that uses the unchanged `openai` package: streamed through the gateway, billed, stopped by its budget."""

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name, run_execution, stream_events

MANIFEST = "name: asker\nentrypoint: agent:handle\nmodels: [{name}]\nmemory: 512MB\ntimeout: 60\n"
ASKER = """
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
async def asker(shared_tenant: TenantClient, provider: FakeProvider):
    """An agent whose environment holds the real openai package; its id and its model."""
    name = await create_model(
        shared_tenant, provider, generate_name("echo"), model="echo", price={"input": 1000.0, "output": 1000.0}
    )
    agent = await shared_tenant.create_agent()
    files = {"agent.py": ASKER.format(name=name), "requirements.txt": "openai\n"}
    version = await shared_tenant.build_version(agent["id"], pack_archive(files, MANIFEST.format(name=name)))
    assert version["status"] == "ready", version["build_log"]
    return agent["id"], name


async def test_the_openai_package_streams_through_the_gateway(
    shared_tenant: TenantClient, provider: FakeProvider, asker
) -> None:
    agent_id, name = asker
    task = "Tell me these seven words back now"
    ended = await run_execution(shared_tenant, agent_id, task=task)
    assert ended["status"] == "completed", ended
    assert ended["result"]["text"] == task
    assert ended["result"]["pieces"] >= 7, "it came in pieces"
    told = [one for one in await stream_events(shared_tenant, ended["id"]) if one["type"] in ("model_call", "cost")]
    assert [one["type"] for one in told] == ["model_call", "cost"]
    assert ended["total_cost"] == pytest.approx(told[1]["cost_usd"])
    assert ended["total_cost"] > 0
    costs = (await shared_tenant.http.get(f"/costs?execution_id={ended['id']}")).json()
    assert [one["model_name"] for one in costs["items"]] == [name]


async def test_its_cost_limit_stops_it(shared_tenant: TenantClient, asker) -> None:
    agent_id, _ = asker
    ended = await run_execution(shared_tenant, agent_id, inputs={"task": "word " * 50, "calls": 50}, cost_limit=1.0)
    assert ended["status"] == "failed", ended
    assert ended["error_type"] == "APIStatusError", ended
    assert "budget" in ended["error_message"] or "cost" in ended["error_message"]
    assert 0 < ended["total_cost"] <= 1.0


async def test_a_model_that_its_manifest_does_not_name_is_not_there(shared_tenant: TenantClient, asker) -> None:
    agent_id, _ = asker
    ended = await run_execution(shared_tenant, agent_id, inputs={"task": "x", "model": "smollm2"})
    assert (ended["status"], ended["error_type"]) == ("failed", "NotFoundError"), ended
