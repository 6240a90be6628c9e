"""Schemas of tools, crews and workflows as tools, conversations, and runs that wait for a person."""

from typing import Any

import pytest
from mcp_types import TextContent

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client, read_text
from tests.support.model_agents import create_model, create_model_agent, generate_name

ORDER_SCHEMA = {
    "type": "object",
    "properties": {"customer": {"type": "string", "minLength": 2}, "count": {"$ref": "#/$defs/count"}},
    "required": ["customer"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 1}},
}
RECEIPT_SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}},
    "required": ["total"],
}
ORDER_SOURCE = """
def handle(payload):
    if payload["customer"] == "broken":
        return {"sum": 1}
    return {"total": payload.get("count", 1) * 2.5}
"""


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_declared_schemas_are_those_of_the_tool(system: System, acme: TenantClient, mode: str) -> None:
    agent_id = await acme.deploy_agent(ORDER_SOURCE)
    fields = {"name": "order", "expose": "mcp", "input_schema": ORDER_SCHEMA, "output_schema": RECEIPT_SCHEMA}
    answer = await acme.http.patch(f"/agents/{agent_id}", json=fields)
    assert answer.status_code == 200, answer.text
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.output_schema == RECEIPT_SCHEMA
        assert tool.input_schema["required"] == ["customer"]
        assert tool.input_schema["$defs"] == ORDER_SCHEMA["$defs"]
        assert set(tool.input_schema["properties"]) == {"customer", "count", "thread_id"}
        result = await client.call_tool("order", {"customer": "Ada", "count": 3})
        assert (result.is_error, result.structured_content) == (False, {"total": 7.5})
        for arguments, named in (
            ({}, "customer"),
            ({"customer": "Ada", "count": 0}, "count"),
            ({"customer": "Ada", "colour": "red"}, "colour"),
        ):
            refused = await client.call_tool("order", arguments)
            assert refused.is_error
            assert named in read_text(refused), read_text(refused)
        broken = await client.call_tool("order", {"customer": "broken"})
        assert broken.is_error
        assert "output_invalid" in read_text(broken)


async def test_model_agents_take_the_schema_of_their_parent(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    parent = await create_model_agent(acme, name, input_schema=ORDER_SCHEMA)
    await create_model_agent(acme, None, name="child", parent=parent["name"], expose=["mcp"])
    async with connect_client(system.url, await acme.create_key()) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.input_schema["required"]) == ("child", ["customer"])


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_workflows_take_their_inputs_and_report_their_steps(
    system: System, acme: TenantClient, mode: str
) -> None:
    inputs = {
        "topic": {"type": "string", "required": True, "description": "What it is about."},
        "count": {"type": "integer", "default": 3},
        "anything": {},
    }
    steps = [
        {"id": "first", "tool": "filesystem_list", "inputs": {}},
        {"id": "second", "tool": "filesystem_list", "inputs": {}, "depends_on": ["first"]},
    ]
    outputs = {"about": "{{ inputs.topic }}", "count": "{{ inputs.count }}"}
    output_schema = {"type": "object", "properties": {"count": {"type": "integer"}}}
    body = {"name": "Two steps", "inputs": inputs, "steps": steps, "outputs": outputs, "expose": ["mcp"]}
    body["output_schema"] = output_schema
    answer = await acme.http.post("/workflows", json=body)
    assert answer.status_code == 201, answer.text
    notes: list[tuple[float, float | None, str | None]] = []

    async def note_progress(progress: float, total: float | None, message: str | None) -> None:
        notes.append((progress, total, message))

    async with connect_client(system.url, await acme.create_key(), mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.output_schema == output_schema
        properties = tool.input_schema["properties"]
        assert properties["topic"] == {"type": "string", "description": "What it is about."}
        assert properties["count"] == {"type": "integer", "default": 3}
        assert (properties["anything"], tool.input_schema["required"]) == ({}, ["topic"])
        result = await client.call_tool("two_steps", {"topic": "tea"}, progress_callback=note_progress)
        assert result.structured_content == {"about": "tea", "count": 3}
        refused = await client.call_tool("two_steps", {"count": "many"})
        assert refused.is_error
        assert {"- topic: is required.", "- count: must be a whole number."} <= set(read_text(refused).splitlines())
    values = [progress for progress, _, _ in notes]
    assert values == sorted(set(values))
    assert (int(values[-1]), notes[-1][1]) == (2, pytest.approx(2, abs=0.01))


async def test_crews_take_what_their_texts_name(system: System, acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agents_yaml = f"writer: {{role: 'Writer for {{audience}}', goal: Write, llm: {name}}}\n"
    tasks_yaml = "write: {description: 'About {topic}', expected_output: Text, agent: writer}\n"
    body = {"name": "Writers", "agents_yaml": agents_yaml, "tasks_yaml": tasks_yaml, "expose": "mcp"}
    answer = await acme.http.post("/crews", json={**body, "inputs": {"audience": "children"}})
    assert answer.status_code == 201, answer.text
    provider.queue_text("A tale of tea", to=name)
    async with connect_client(system.url, await acme.create_key()) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.input_schema["required"] == ["topic"]
        assert tool.input_schema["properties"]["audience"]["default"] == "children"
        result = await client.call_tool("writers", {"topic": "tea"})
        assert not result.is_error, result
        assert "A tale of tea" in read_text(result)
        refused = await client.call_tool("writers", {})
        assert refused.is_error
        assert "topic" in read_text(refused)
        await acme.http.patch("/crews/Writers", json={"expose": []})
        assert (await client.list_tools()).tools == []


@pytest.mark.parametrize("has_progress", [False, True])
async def test_runs_that_wait_for_a_person_are_answered_with_what_to_do(
    system: System, acme: TenantClient, provider: FakeProvider, has_progress: bool
) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, name="careful", tools=["filesystem_write"], expose="mcp")
    provider.queue_text("", to=name, calls=[build_call("filesystem_write", {"path": "a.txt", "content": "x"})])
    provider.queue_text("Done", to=name)

    async def ignore_progress(progress: float, total: float | None, message: str | None) -> None:
        assert progress >= 0

    async with connect_client(system.url, await acme.create_key()) as client:
        result = await client.call_tool(
            "careful", {"task": "Write it"}, progress_callback=ignore_progress if has_progress else None
        )
        assert result.is_error
        assert "approve" in read_text(result)
        assert "filesystem_write" in read_text(result)
        execution_id = (result.meta or {})["paddock/execution_id"]
        assert f"/api/v1/executions/{execution_id}/approve" in read_text(result)
    approved = await acme.http.post(f"/executions/{execution_id}/approve")
    assert approved.status_code == 200, approved.text
    assert (await acme.wait_for_end(execution_id))["status"] == "completed"


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_conversations_go_on_across_calls(
    system: System, acme: TenantClient, provider: FakeProvider, mode: str
) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, name="talker", expose="mcp")
    provider.queue_text("Hello Ada", to=name)
    provider.queue_text("You are Ada", to=name)
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        first = await client.call_tool("talker", {"task": "I am Ada", "thread_id": "new"})
        assert not first.is_error, first
        thread_id = (first.meta or {})["paddock/thread_id"]
        assert f"thread_id: {thread_id}" in [part.text for part in first.content if isinstance(part, TextContent)]
        second = await client.call_tool("talker", {"task": "Who am I?", "thread_id": thread_id})
        assert read_text(second) == "You are Ada"
        for unknown in ("thread_01k3v9rt0hf7btqeqn5j8x2a4c", "x", 5, "\0"):
            arguments: dict[str, Any] = {"task": "Who?", "thread_id": unknown}
            refused = await client.call_tool("talker", arguments)
            assert refused.is_error, unknown
    seen = [message["content"] for message in provider.requests[-1].messages if message["role"] != "system"]
    assert seen == ["I am Ada", "Hello Ada", "Who am I?"]
