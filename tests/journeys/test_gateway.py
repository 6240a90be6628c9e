"""Test the gateway with uploaded agents: the example's report, the provider's key, and calls that end with their run."""

import asyncio
import secrets
from typing import Any

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, generate_name, stream_events, wait_for_status

# The same requirements as the example, so that they are built once.
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
