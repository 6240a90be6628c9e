"""The gateway as uploaded agents meet it: the example's report, the provider's key, and the end of calls with their run."""

import asyncio
import secrets
from typing import Any

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, generate_name, stream_events, wait_for_status

# The same requirements as the example's: built once.
OPENAI = "openai>=2\n"
CHAT = """
import json, os, urllib.request
import openai

HELLO = [{"role": "user", "content": "hello"}]


def handle(p):
    try:
        return globals()[p["do"]](p["model"], openai.OpenAI())
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "told": str(error)}


def ask(model, client):
    words = []
    for chunk in client.chat.completions.create(model=model, messages=HELLO, temperature=0.5, stream=True):
        words += [chunk.choices[0].delta.content or ""]
    return {"words": words}


def add(model, client):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    said = client.chat.completions.create(model=model, messages=HELLO, tools=[tool]).choices[0].message
    told = json.loads(said.tool_calls[0].function.arguments)
    back = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": str(told["a"] + told["b"])}
    return client.chat.completions.create(model=model, messages=[*HELLO, said, back], tools=[tool]).choices[0].message.content


def smuggle(model, client):
    more = {"X-API-Key": "smuggled", "Host": "smuggled", "Authorization": "Bearer smuggled", "OpenAI-Project": "smuggled"}
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, more)
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = answer.read().decode()
    seen = [told, json.dumps(dict(os.environ)), open("/proc/self/environ").read()]
    return {"seen": seen, "key": os.environ["OPENAI_API_KEY"]}
"""


async def _chatter(acme: TenantClient, *models: str, timeout: int = 60) -> str:
    made = await acme.create_agent()
    manifest = f"name: chatter\nentrypoint: agent:handle\nmodels: [{', '.join(models)}]\ntimeout: {timeout}\n"
    version = await acme.build_version(
        made["id"], pack_archive({"agent.py": CHAT, "requirements.txt": OPENAI}, manifest)
    )
    assert version["status"] == "ready", version["build_log"]
    assert version["models"] == list(models)
    return str(made["id"])


async def _did(acme: TenantClient, agent_id: str, do: str, name: str, **more: Any) -> dict[str, Any]:
    ended = await acme.run_agent(agent_id, {"do": do, "model": name}, **more)
    assert ended["status"] == "completed", ended
    return ended


async def test_the_example_writes_a_report(acme: TenantClient) -> None:
    agent_id = await acme.deploy_example("researcher")
    ended = await acme.run_agent(agent_id, {"question": "Why is the sky blue?", "max_tokens": 40})
    assert ended["status"] == "completed", ended
    report = ended["output_data"]
    assert report["words"] > 3
    assert report["tokens"] > 20
    told = await stream_events(acme, ended["id"])
    (cost,) = [one for one in told if one["type"] == "cost"]
    assert cost["model"] == "smollm2"
    assert cost["total_tokens"] == report["tokens"]
    assert any("first words after" in one.get("message", "") for one in told)


async def test_what_it_asks_is_asked_with_the_provider_s_key_and_billed(
    acme: TenantClient, provider: FakeProvider
) -> None:
    secret = f"sk-{secrets.token_hex(16)}"
    kept = await acme.http.post(
        "/provider-keys", json={"name": generate_name("key"), "service": "script", "key": secret}
    )
    assert kept.status_code == 201, kept.text
    name = generate_name()
    await create_model(
        acme, provider, name, api_key_name=kept.json()["name"], price={"input": 1000.0, "output": 1000.0}
    )
    agent_id = await _chatter(acme, name)

    provider.queue_text("one two three", to=name)
    ended = await _did(acme, agent_id, "ask", name)
    assert "".join(ended["output_data"]["words"]) == "one two three"
    assert len(ended["output_data"]["words"]) > 3
    asked = provider.requests[-1]
    assert (asked.api_key, asked.body["temperature"], asked.get_last_text()) == (secret, 0.5, "hello")
    assert ended["total_cost"] > 0
    costs = (await acme.http.get(f"/costs?agent_id={agent_id}")).json()
    assert costs["items"][0]["execution_id"] == ended["id"]

    provider.queue_text("", to=name, calls=[build_call("add", {"a": 2, "b": 40})])
    provider.queue_text("It is 42.", to=name)
    assert (await _did(acme, agent_id, "add", name))["output_data"] == "It is 42."
    assert provider.requests[-1].get_last_text("tool") == "42"

    provider.queue_text("hi", to=name)
    found = (await _did(acme, agent_id, "smuggle", name))["output_data"]
    assert found["key"] == "paddock"
    assert "smuggled" not in repr(provider.requests[-1])
    assert provider.requests[-1].api_key == secret
    assert secret not in repr(found)
    for ending in ((401, f"Incorrect API key: {secret}"), (400, f"What is {secret}?")):
        provider.queue_failure(ending[0], message=ending[1], to=name)
        told = (await _did(acme, agent_id, "ask", name))["output_data"]
        assert told["status"] in (400, 502)
        assert secret not in repr(told)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_the_end_of_a_run_ends_its_calls(acme: TenantClient, provider: FakeProvider, how: str) -> None:
    name = await create_model(acme, provider, generate_name())
    agent_id = await _chatter(acme, name)
    provider.reset_scripts()
    provider.queue_slow(500, 0.1, to=name)
    made = await acme.start_execution(agent_id, {"do": "ask", "model": name}, timeout=12 if how == "timeout" else 60)
    await provider.wait_for_request()
    await asyncio.sleep(0.3)
    if how == "cancel":
        assert (await acme.http.post(f"/executions/{made['id']}/cancel")).status_code in (200, 202)
        await wait_for_status(acme, made["id"], "cancelled")
    else:
        await wait_for_status(acme, made["id"], "failed")
    await provider.wait_for_hang_up()
    # A run that is cancelled is so at once; what it used by then is written down a moment later.
    for _ in range(100):
        costs = (await acme.http.get(f"/costs?agent_id={agent_id}")).json()["items"]
        if costs:
            break
        await asyncio.sleep(0.05)
    assert [one["status"] for one in costs] == ["cancelled"]
