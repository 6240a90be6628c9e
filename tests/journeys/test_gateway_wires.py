"""The gateway's other wires as uploaded agents meet them: the unchanged `openai` and `anthropic` packages, billed alike."""

from typing import Any

import pytest

from tests.support.clients import TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, generate_name, stream_events

AGENT = """
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def handle(p):
    try:
        return globals()[p["do"]](p["model"])
    except Exception as error:
        if not hasattr(error, "status_code"):
            raise
        return {"status": error.status_code, "body": error.body}


def respond(model):
    import openai
    client = openai.OpenAI()
    tools = [{"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}]
    items = [{"role": "user", "content": "Add 2 and 40."}]
    first = client.responses.create(model=model, input=items, tools=tools)
    items += first.output
    for item in first.output:
        if item.type == "function_call":
            output = {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
            items.append(output)
    words = []
    for event in client.responses.create(model=model, input=items, tools=tools, stream=True):
        if event.type == "response.output_text.delta":
            words.append(event.delta)
    chained = client.responses.create(model=model, input=[output], tools=tools, previous_response_id=first.id)
    return {"words": words, "kinds": [item.type for item in first.output], "chained": chained.output_text}


def message(model):
    import anthropic
    client = anthropic.Anthropic()
    tools = [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}]
    asked = {"model": model, "max_tokens": 4000, "tools": tools, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    messages = [{"role": "user", "content": "Add 2 and 40."}]
    with client.messages.stream(messages=messages, **asked) as stream:
        first = stream.get_final_message()
    use = [block for block in first.content if block.type == "tool_use"][0]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": str(use.input["a"] + 40)}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(messages=messages, **asked)
    return {"kinds": [block.type for block in first.content], "text": last.content[-1].text, "stop": last.stop_reason}


def embed(model):
    import openai
    answer = openai.OpenAI().embeddings.create(model=model, input=["one two", "three"])
    return {"vectors": [entry.embedding for entry in answer.data], "tokens": answer.usage.total_tokens}
"""


async def run_agent(acme: TenantClient, do: str, name: str, **more: Any) -> dict[str, Any]:
    created = await acme.create_agent()
    manifest = f"name: wires\nentrypoint: agent:handle\nmodels: [{name}]\ntimeout: 300\nmemory: 1024\n"
    files = {"agent.py": AGENT, "requirements.txt": "anthropic>=0.60\nopenai>=2\n"}
    version = await acme.build_version(created["id"], pack_archive(files, manifest))
    for _ in range(5):  # compiling two large packages takes minutes where many tests share the processors
        if version["status"] in ("ready", "failed"):
            break
        path = f"/agents/{created['id']}/versions/{version['id']}"
        version = (await acme.http.get(path, headers={"Prefer": "wait=60"})).json()
    assert version["status"] == "ready", version["build_log"]
    started = await acme.start_execution(created["id"], {"do": do, "model": name}, timeout=300, **more)
    execution = await acme.wait_for_end(started["id"], patience=300)
    assert execution["status"] == "completed", execution
    return execution


async def test_messages(acme: TenantClient, provider: FakeProvider) -> None:
    """The model behind them is Anthropic's, which checks the thinking that it gets back."""
    name = generate_name()
    model = {"name": name, "provider": "anthropic", "model": name, "base_url": provider.root}
    registered = await acme.http.post("/models", json=model)
    assert registered.status_code == 201, registered.text
    provider.is_strict = True
    try:
        provider.queue_text("So.", to=name, calls=[build_call("add", {"a": 2}, id="toolu_1")], thinking="I add.")
        provider.queue_text("It is 42.", to=name)
        execution = await run_agent(acme, "message", name)
    finally:
        provider.is_strict = False
    assert execution["output_data"] == {
        "kinds": ["thinking", "text", "tool_use"],
        "text": "It is 42.",
        "stop": "end_turn",
    }
    asked = [request for request in provider.requests if request.model == name]
    assert [request.body["thinking"] for request in asked] == [{"type": "enabled", "budget_tokens": 1024}] * 2
    assert asked[-1].body["messages"][1]["content"][0]["thinking"] == "I add."
    assert asked[-1].get_last_text() == "42"


async def test_embeddings_are_billed_recorded_and_within_budgets(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 0.0})
    execution = await run_agent(acme, "embed", name)
    assert execution["output_data"] == {"vectors": [[7.0, 0.0, 0.0], [5.0, 0.0, 0.0]], "tokens": 3}
    assert execution["total_cost"] == pytest.approx(3 * 1000 / 1e6)
    events = await stream_events(acme, execution["id"])
    (cost,) = [event for event in events if event["type"] == "cost"]
    assert (cost["model"], cost["prompt_tokens"], cost["completion_tokens"], cost["estimated"]) == (name, 3, 0, False)
    refused = await run_agent(acme, "embed", name, cost_limit=0.000001)
    assert refused["output_data"]["status"] == 402
    assert refused["output_data"]["body"]["code"] == "budget_exceeded"
