"""Call agents, crews and workflows through the MCP server, with the client of the package `mcp`."""

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceLink

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client, expose, read_text
from tests.support.model_agents import create_model, create_model_agent, generate_name

WRITING_SOURCE = """
import pathlib

def handle(payload):
    pathlib.Path("/work/out").mkdir()
    pathlib.Path("/work/report.txt").write_text("what came of it")
    pathlib.Path("/work/out/data.json").write_text("{}")
    return {"greeting": "Hello, " + payload.get("task", "you"), "inputs": payload}
"""
FAILING_SOURCE = "def handle(payload):\n    raise ValueError('no such customer')\n"
either_protocol = pytest.mark.parametrize("mode", PROTOCOL_MODES)


@either_protocol
async def test_exposed_agents_are_listed_and_called(system: System, acme: TenantClient, mode: str) -> None:
    agent_id = await acme.deploy_agent(WRITING_SOURCE)
    await acme.http.patch(f"/agents/{agent_id}", json={"name": "Überblick: report", "description": "Writes a report."})
    hidden = await acme.create_agent("hidden")
    await expose(acme, f"/agents/{agent_id}")
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.title, tool.description) == (
            "uberblick_report",
            "Überblick: report",
            "Writes a report.",
        )
        assert set(tool.input_schema["properties"]) >= {"task", "inputs"}
        result = await client.call_tool("uberblick_report", {"task": "Ada", "inputs": {"n": 1}})
        assert not result.is_error, result
        assert result.structured_content == {"greeting": "Hello, Ada", "inputs": {"n": 1, "task": "Ada"}}
        links = {part.name: part for part in result.content if isinstance(part, ResourceLink)}
        assert set(links) == {"report.txt", "out/data.json"}
        (contents,) = (await client.read_resource(links["report.txt"].uri)).contents
        assert getattr(contents, "text", None) == "what came of it"
        with pytest.raises(MCPError, match="hidden"):
            await client.call_tool(hidden["name"], {})
    execution = (await acme.http.get(f"/executions/{(result.meta or {})['paddock/execution_id']}")).json()
    assert execution["status"] == "completed"


@either_protocol
async def test_failed_runs_and_refused_arguments_are_errors_of_the_tool(
    system: System, acme: TenantClient, mode: str
) -> None:
    agent_id = await acme.deploy_agent(FAILING_SOURCE)
    await acme.http.patch(f"/agents/{agent_id}", json={"name": "failing", "expose": ["mcp"]})
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        result = await client.call_tool("failing", {})
        assert result.is_error
        assert "no such customer" in read_text(result)
        refused = await client.call_tool("failing", {"inputs": "none", "colour": 1})
        assert refused.is_error
        assert "colour" in read_text(refused)
        refused = await client.call_tool("failing", {"inputs": "none"})
        assert refused.is_error
        assert "inputs" in read_text(refused)


@either_protocol
async def test_model_agents_answer_and_report_progress(
    system: System, acme: TenantClient, provider: FakeProvider, mode: str
) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, expose="mcp", description="Answers.")
    provider.queue_text("The answer is 42", to=name)
    provider.queue_text("And again", to=name)
    notes: list[tuple[float, float | None, str | None]] = []

    async def note_progress(progress: float, total: float | None, message: str | None) -> None:
        notes.append((progress, total, message))

    async with connect_client(system.url, await acme.create_key(), mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.input_schema["required"] == ["task"]
        result = await client.call_tool(tool.name, {"task": "What?"}, progress_callback=note_progress)
        assert (read_text(result), result.structured_content) == ("The answer is 42", {"content": "The answer is 42"})
        again = await client.call_tool(tool.name, {"task": "What?"})
        assert read_text(again) == "And again"
        missing = await client.call_tool(tool.name, {})
        assert missing.is_error
        assert "task" in read_text(missing)
    values = [progress for progress, _, _ in notes]
    assert values == sorted(set(values)), values
    assert "The answer is 42" in "".join(message or "" for _, _, message in notes)
