"""An uploaded agent that uses the unchanged `openai` package: streamed through the gateway, billed, stopped by its budget."""

import pytest

from tests.support.clients import Tenant, archive
from tests.support.fake_provider import Wire
from tests.support.model_fixtures import events, fresh, model, run

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
async def asker(home: Tenant, provider: Wire):
    """An agent whose environment holds the real openai package; its id and its model."""
    name = await model(home, provider, fresh("echo"), model="echo", price={"input": 1000.0, "output": 1000.0})
    agent = await home.agent()
    files = {"agent.py": ASKER.format(name=name), "requirements.txt": "openai\n"}
    version = await home.built(agent["id"], archive(files, MANIFEST.format(name=name)))
    assert version["status"] == "ready", version["build_log"]
    return agent["id"], name


async def test_the_openai_package_streams_through_the_gateway(home: Tenant, provider: Wire, asker) -> None:
    agent_id, name = asker
    task = "Tell me these seven words back now"
    ended = await run(home, agent_id, task=task)
    assert ended["status"] == "completed", ended
    assert ended["result"]["text"] == task
    assert ended["result"]["pieces"] >= 7, "it came in pieces"
    told = [one for one in await events(home, ended["id"]) if one["type"] in ("model_call", "cost")]
    assert [one["type"] for one in told] == ["model_call", "cost"]
    assert ended["total_cost"] == pytest.approx(told[1]["cost_usd"])
    assert ended["total_cost"] > 0
    costs = (await home.http.get(f"/costs?execution_id={ended['id']}")).json()
    assert [one["model_name"] for one in costs["items"]] == [name]


async def test_its_cost_limit_stops_it(home: Tenant, asker) -> None:
    agent_id, _ = asker
    ended = await run(home, agent_id, inputs={"task": "word " * 50, "calls": 50}, cost_limit=1.0)
    assert ended["status"] == "failed", ended
    assert ended["error_type"] == "APIStatusError", ended
    assert "budget" in ended["error_message"] or "cost" in ended["error_message"]
    assert 0 < ended["total_cost"] <= 1.0


async def test_a_model_that_its_manifest_does_not_name_is_not_there(home: Tenant, asker) -> None:
    agent_id, _ = asker
    ended = await run(home, agent_id, inputs={"task": "x", "model": "smollm2"})
    assert (ended["status"], ended["error_type"]) == ("failed", "NotFoundError"), ended
