"""Test the gateway with uploaded agents: the example's report, the provider's key, and calls that end with their run.

The agents use the `openai` package: they are streamed, billed, and stopped by their limit.
"""

import asyncio
import secrets
from typing import Any

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, generate_name, run_execution, stream_events, wait_for_status

# The same requirements as the example and in one file, so that they are built once: it takes many seconds.
OPENAI_REQUIREMENTS = "openai>=2\n"
CHAT_SOURCE = """
import json, os, urllib.request
import openai

HELLO = [{"role": "user", "content": "hello"}]


def handle(p):
    try:
        return globals()[p["do"]](p["model"], openai.OpenAI())
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "message": str(error)}


def ask(model, client):
    words = []
    for chunk in client.chat.completions.create(model=model, messages=HELLO, temperature=0.5, stream=True):
        words += [chunk.choices[0].delta.content or ""]
    return {"words": words}


def add(model, client):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    reply = client.chat.completions.create(model=model, messages=HELLO, tools=[tool]).choices[0].message
    arguments = json.loads(reply.tool_calls[0].function.arguments)
    back = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": str(arguments["a"] + arguments["b"])}
    return client.chat.completions.create(model=model, messages=[*HELLO, reply, back], tools=[tool]).choices[0].message.content


def smuggle(model, client):
    more = {"X-API-Key": "smuggled", "Host": "smuggled", "Authorization": "Bearer smuggled", "OpenAI-Project": "smuggled"}
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, more)
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read().decode()
    seen = [text, json.dumps(dict(os.environ)), open("/proc/self/environ").read()]
    return {"seen": seen, "key": os.environ["OPENAI_API_KEY"]}
"""

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


async def _deploy_chat_agent(acme: TenantClient, *models: str, timeout: int = 60) -> str:
    created = await acme.create_agent()
    manifest = f"name: chatter\nentrypoint: agent:handle\nmodels: [{', '.join(models)}]\ntimeout: {timeout}\n"
    version = await acme.build_version(
        created["id"], pack_archive({"agent.py": CHAT_SOURCE, "requirements.txt": OPENAI_REQUIREMENTS}, manifest)
    )
    assert version["status"] == "ready", version["build_log"]
    assert version["models"] == list(models)
    return str(created["id"])


async def _run_action(acme: TenantClient, agent_id: str, do: str, name: str, **more: Any) -> dict[str, Any]:
    ended = await acme.run_agent(agent_id, {"do": do, "model": name}, **more)
    assert ended["status"] == "completed", ended
    return ended


async def test_researcher_example_writes_a_report(acme: TenantClient) -> None:
    agent_id = await acme.deploy_example("researcher")
    ended = await acme.run_agent(agent_id, {"question": "Why is the sky blue?", "max_tokens": 40})
    assert ended["status"] == "completed", ended
    report = ended["output_data"]
    assert report["words"] > 3
    assert report["tokens"] > 20
    events = await stream_events(acme, ended["id"])
    (cost,) = [event for event in events if event["type"] == "cost"]
    assert cost["model"] == "smollm2"
    assert cost["total_tokens"] == report["tokens"]
    assert any("first words after" in event.get("message", "") for event in events)


async def test_gateway_calls_use_the_provider_key_and_are_billed(acme: TenantClient, provider: FakeProvider) -> None:
    secret = f"sk-{secrets.token_hex(16)}"
    created_key = await acme.http.post(
        "/provider-keys", json={"name": generate_name("key"), "service": "script", "key": secret}
    )
    assert created_key.status_code == 201, created_key.text
    name = generate_name()
    await create_model(
        acme, provider, name, api_key_name=created_key.json()["name"], price={"input": 1000.0, "output": 1000.0}
    )
    agent_id = await _deploy_chat_agent(acme, name)

    provider.queue_text("one two three", to=name)
    ended = await _run_action(acme, agent_id, "ask", name)
    assert "".join(ended["output_data"]["words"]) == "one two three"
    assert len(ended["output_data"]["words"]) > 3
    request = provider.requests[-1]
    assert (request.api_key, request.body["temperature"], request.get_last_text()) == (secret, 0.5, "hello")
    assert ended["total_cost"] > 0
    costs = (await acme.http.get(f"/costs?agent_id={agent_id}")).json()
    assert costs["items"][0]["execution_id"] == ended["id"]

    provider.queue_text("", to=name, calls=[build_call("add", {"a": 2, "b": 40})])
    provider.queue_text("It is 42.", to=name)
    assert (await _run_action(acme, agent_id, "add", name))["output_data"] == "It is 42."
    assert provider.requests[-1].get_last_text("tool") == "42"

    provider.queue_text("hi", to=name)
    output = (await _run_action(acme, agent_id, "smuggle", name))["output_data"]
    assert output["key"] == "paddock"
    assert "smuggled" not in repr(provider.requests[-1])
    assert provider.requests[-1].api_key == secret
    assert secret not in repr(output)
    for failure in ((401, f"Incorrect API key: {secret}"), (400, f"What is {secret}?")):
        provider.queue_failure(failure[0], message=failure[1], to=name)
        error_output = (await _run_action(acme, agent_id, "ask", name))["output_data"]
        assert error_output["status"] in (400, 502)
        assert secret not in repr(error_output)


@pytest.mark.parametrize("ending", ["cancel", "timeout"])
async def test_model_calls_end_with_their_run(acme: TenantClient, provider: FakeProvider, ending: str) -> None:
    name = await create_model(acme, provider, generate_name())
    agent_id = await _deploy_chat_agent(acme, name)
    provider.reset_scripts()
    provider.queue_slow(500, 0.1, to=name)
    execution = await acme.start_execution(
        agent_id, {"do": "ask", "model": name}, timeout=12 if ending == "timeout" else 60
    )
    await provider.wait_for_request()
    await asyncio.sleep(0.3)
    if ending == "cancel":
        assert (await acme.http.post(f"/executions/{execution['id']}/cancel")).status_code in (200, 202)
        await wait_for_status(acme, execution["id"], "cancelled")
    else:
        await wait_for_status(acme, execution["id"], "failed")
    await provider.wait_for_hang_up()
    # A cancelled run ends immediately; its usage is stored a moment later.
    for _ in range(100):
        costs = (await acme.http.get(f"/costs?agent_id={agent_id}")).json()["items"]
        if costs:
            break
        await asyncio.sleep(0.05)
    assert [cost["status"] for cost in costs] == ["cancelled"]


@pytest.fixture(scope="module")
async def openai_agent(shared_tenant: TenantClient, provider: FakeProvider):
    """Deploy an agent with the real openai package; return its id and its model."""
    name = await create_model(
        shared_tenant, provider, generate_name("echo"), model="echo", price={"input": 1000.0, "output": 1000.0}
    )
    agent = await shared_tenant.create_agent()
    files = {"agent.py": ASKING_SOURCE.format(name=name), "requirements.txt": OPENAI_REQUIREMENTS}
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
