"""Test external tools: schema dialects, colliding names, form bodies, and broken text in arguments."""

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution, stream_events

Serve = Callable[[Path], Awaitable[str]]


async def _create_tool(acme: TenantClient, kind: str, configuration: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"name": generate_name("tool"), "tool_type": kind, "configuration": configuration, **more}
    answer = await acme.http.post("/tools", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def _create_mcp_tool(acme: TenantClient, url: str) -> str:
    return str((await _create_tool(acme, "mcp", {"url": f"{url}/mcp"}))["slug"])


async def _execute_tool(acme: TenantClient, reference: str, args: dict[str, Any], **more: Any) -> httpx.Response:
    return await acme.http.post(f"/tools/{reference}/execute", json={"args": args, **more})


async def _read_log(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as http:
        return list((await http.get(f"{url}/log")).json())


def _list_warnings(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events if event["type"] == "warning"]


async def test_mcp_schemas_of_older_dialects_are_accepted(acme: TenantClient, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("08-mcp-schemas-of-older-dialects"))
    server = await _create_mcp_tool(acme, url)
    good = {
        "label": {"l": ["a", 1]},
        "rate": {"n": 10},
        "sort": {"by": None},
        "name": {"s": "a"},
        "day": {"s": "2026-01-01"},
        "loose": {"l": [1]},
    }
    for name, args in good.items():
        answer = await _execute_tool(acme, server, args, tool=name)
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["result"]["content"]) == {"called": name, "with": args}
    # Known constraints are still checked.
    for name, args in {"label": {"l": ["a", "b"]}, "rate": {"n": 11}, "sort": {"by": "c"}}.items():
        assert (await _execute_tool(acme, server, args, tool=name)).status_code == 422


async def test_invalid_mcp_tool_is_skipped_with_a_warning(
    acme: TenantClient, provider: FakeProvider, serve_case: Serve, tmp_path: Path
) -> None:
    shutil.copy(find_case_folder("08-mcp-schemas-of-older-dialects") / "tools-one-broken.json", tmp_path / "tools.json")
    tools = json.loads((tmp_path / "tools.json").read_text())
    tools += [{"name": "listed", "inputSchema": {"type": "array"}}, 5]
    tools += [{"name": "half", "description": "half \ud83d", "inputSchema": {"type": "object"}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    server = await _create_mcp_tool(acme, await serve_case(tmp_path))
    name = await create_model(acme, provider, generate_name())
    created_agent = await create_model_agent(acme, name, tools=[server])
    provider.queue_text("", to=name, calls=[build_call(f"{server}_rate", {"n": 10})])
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
    assert ended["status"] == "completed", ended
    events = await stream_events(acme, ended["id"])
    for invalid_entry in ("'bare'", "'listed'", "number 4"):
        assert any(invalid_entry in warning for warning in _list_warnings(events)), _list_warnings(events)
    functions = {tool["function"]["name"]: tool["function"] for tool in _list_requests(provider, name)[0].body["tools"]}
    assert {f"{server}_rate", f"{server}_half"} <= functions.keys()
    assert f"{server}_listed" not in functions
    assert functions[f"{server}_half"]["description"] == "half \ufffd"
    [result] = [event for event in events if event["type"] == "tool_result"]
    assert json.loads(result["result"]["content"]) == {"called": "rate", "with": {"n": 10}}
    # Called by name, an invalid entry explains its error.
    refused = await _execute_tool(acme, server, {}, tool="listed")
    assert (refused.status_code, "must be of type object, not 'array'" in refused.text) == (422, True), refused.text


def _list_requests(provider: FakeProvider, name: str) -> list[Any]:
    return [request for request in provider.requests if request.model == name]


async def test_mcp_schemas_are_adapted_for_providers(
    acme: TenantClient, provider: FakeProvider, serve_case: Serve
) -> None:
    url = await serve_case(find_case_folder("24-mcp-schemas-that-providers-refuse"))
    server = await _create_mcp_tool(acme, url)
    claude = generate_name("claude")
    model_body = {"name": claude, "provider": "anthropic", "model": "claude-x", "base_url": url}
    assert (await acme.http.post("/models", json=model_body)).status_code == 201
    ended = await run_execution(
        acme, (await create_model_agent(acme, claude, tools=[server]))["id"], task="What is the capital of France?"
    )
    assert (ended["status"], ended["result"]) == ("completed", {"content": "Paris."}), ended
    [request_body] = [request["body"] for request in await _read_log(url) if request["path"].endswith("/messages")]
    assert {tool["name"] for tool in request_body["tools"]} == {
        f"{server}_create_attachment", f"{server}_list_items", f"{server}_fine"
    }  # fmt: skip
    # Arguments with the names on the wire reach the server under its own names.
    name = await create_model(acme, provider, generate_name())
    created_agent = await create_model_agent(acme, name, tools=[server])
    calls = [
        build_call(f"{server}_list_items", {"filter": "a", "sort_by": "b", "StartTime": "c"}),
        build_call(f"{server}_create_attachment", {"link": "http://x"}),
    ]
    provider.queue_text("", to=name, calls=calls)
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
    results = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "tool_result"]
    assert [json.loads(result["result"]["content"])["with"] for result in results] == [
        {"$filter": "a", "sort[by]": "b", "StartTime<": "c"},
        {"link": "http://x"},
    ]
    first, second = _list_requests(provider, name)
    properties = {tool["function"]["name"]: tool["function"]["parameters"] for tool in first.body["tools"]}
    assert "'$filter'" in properties[f"{server}_list_items"]["properties"]["filter"]["description"]
    assert "anyOf" not in properties[f"{server}_create_attachment"]
    [call_message] = [message for message in second.body["messages"] if message.get("tool_calls")]
    assert set(json.loads(call_message["tool_calls"][0]["function"]["arguments"])) == {"filter", "sort_by", "StartTime"}


async def test_colliding_mcp_names_stay_distinct(acme: TenantClient, provider: FakeProvider, serve_case: Serve) -> None:
    folder = find_case_folder("25-mcp-names-that-become-one")
    server = await _create_mcp_tool(acme, await serve_case(folder))
    tool_names = [tool["name"] for tool in json.loads((folder / "tools.json").read_text())]
    name = await create_model(acme, provider, generate_name())
    created_agent = await create_model_agent(acme, name, tools=[server])
    provider.queue_text("Nothing to do", to=name)
    await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
    wire_names = {
        tool["function"]["description"]: tool["function"]["name"]
        for tool in _list_requests(provider, name)[0].body["tools"]
    }
    assert len(set(wire_names.values())) == 6
    assert wire_names["About read_file."] == f"{server}_read_file"
    provider.queue_text(
        "", to=name, calls=[build_call(wire_names[f"About {tool_name}."], {}) for tool_name in tool_names]
    )
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
    events = await stream_events(acme, ended["id"])
    results = [json.loads(event["result"]["content"]) for event in events if event["type"] == "tool_result"]
    assert [result["called"] for result in results] == tool_names
    assert _list_warnings(events) == []
    assert [tool["function"]["name"] for tool in _list_requests(provider, name)[1].body["tools"]] == list(
        wire_names.values()
    )
    # Each tool alone keeps its own name.
    for tool_name in tool_names:
        alone = await create_model(acme, provider, generate_name())
        single = await create_model_agent(acme, alone, tools=[f"{server}/{tool_name}"])
        provider.add_rule(_build_tool_calling_rule(alone))
        ended = await run_execution(acme, single["id"], task="Go", mode="yolo")
        [result] = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "tool_result"]
        assert json.loads(result["result"]["content"])["called"] == tool_name


def _build_tool_calling_rule(name: str) -> Any:
    from tests.support.fake_provider import ScriptedAnswer

    def choose_answer(request: Any) -> ScriptedAnswer | None:
        if request.model != name:
            return None
        if any(message["role"] == "tool" for message in request.body["messages"]):
            return ScriptedAnswer(tokens=["Done"])
        return ScriptedAnswer(calls=[build_call(request.body["tools"][0]["function"]["name"], {})])

    return choose_answer


async def test_form_bodies_and_whole_numbers_are_encoded(acme: TenantClient, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("31-custom-tools-forms-and-whole-numbers"))
    form = {
        "api_endpoint": f"{url}/form",
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        "parameters": {"to": {"type": "string"}, "body": {"type": "string"}},
    }
    user = {
        "api_endpoint": f"{url}/echo/users/{{id}}",
        "method": "GET",
        "parameters": {"id": {"type": "integer"}, "page": {"type": "integer"}},
    }
    sender = await _create_tool(acme, "custom", form, name="form")
    reader = await _create_tool(acme, "custom", user, name="user_by_id")
    try:
        sent = await _execute_tool(acme, sender["id"], {"to": "+491700000000", "body": "Hello & goodbye"})
        assert sent.json()["result"]["body"] == {"form": {"to": ["+491700000000"], "body": ["Hello & goodbye"]}}
        read = await _execute_tool(acme, reader["id"], {"id": 5.0, "page": 2.0})
        assert read.json()["result"]["body"]["path"] == "/echo/users/5?page=2"
        # The same calls written by models.
        for script, path in (("form-caller", "/form"), ("number-caller", "/echo/users/5?page=2")):
            name = generate_name(script)
            model_body = {"name": name, "provider": "openai_compatible", "model": script, "base_url": f"{url}/v1"}
            assert (await acme.http.post("/models", json=model_body)).status_code == 201
            created_agent = await create_model_agent(acme, name, tools=["form", "user_by_id"])
            ended = await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
            assert ended["status"] == "completed", ended
            [result] = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "tool_result"]
            assert (result["result"]["status"], path in json.dumps([result, await _read_log(url)])) == (200, True)
    finally:
        for tool in (sender, reader):
            await acme.http.delete(f"/tools/{tool['id']}")
    invalid_form = {**form, "headers": {"Content-Type": "application/xml"}}
    refused = await acme.http.post("/tools", json={"name": generate_name("tool"), "configuration": invalid_form})
    assert (refused.status_code, "configuration.headers.Content-Type" in refused.text) == (422, True)


async def test_half_a_surrogate_pair_in_arguments_is_repaired(acme: TenantClient, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("15-half-an-emoji"))
    name = generate_name("half")
    model_body = {"name": name, "provider": "openai_compatible", "model": "arguments", "base_url": f"{url}/v1"}
    assert (await acme.http.post("/models", json=model_body)).status_code == 201
    created_agent = await create_model_agent(acme, name, tools=["filesystem_write"])
    ended = await run_execution(acme, created_agent["id"], task="Go", mode="yolo")
    assert ended["status"] == "completed", ended
    events = await stream_events(acme, ended["id"])
    [result] = [event for event in events if event["type"] == "tool_result"]
    assert result["result"]["path"] == "a.txt", result
    [tool_call] = [event for event in events if event["type"] == "tool_call"]
    assert tool_call["args"]["content"] == "cut \ufffd"


async def test_tool_refused_by_the_provider_is_left_out(
    acme: TenantClient, provider: FakeProvider, serve_case: Serve
) -> None:
    """Continue the run without a tool that the provider refuses, and warn which tool it was."""
    from tests.support.fake_provider import ScriptedAnswer

    server = await _create_mcp_tool(acme, await serve_case(find_case_folder("24-mcp-schemas-that-providers-refuse")))
    name = await create_model(acme, provider, generate_name())

    def choose_answer(request: Any) -> ScriptedAnswer | None:
        if request.model != name:
            return None
        for number, tool in enumerate(request.body["tools"]):
            if tool["function"]["name"].endswith("list_items"):
                return ScriptedAnswer(status=400, message=f"tools.{number}.custom.input_schema: not today")
        return ScriptedAnswer(tokens=["Paris."])

    provider.add_rule(choose_answer)
    ended = await run_execution(acme, (await create_model_agent(acme, name, tools=[server]))["id"], task="Go")
    assert ended["result"] == {"content": "Paris."}, ended
    [warning] = _list_warnings(await stream_events(acme, ended["id"]))
    assert f"{server}_list_items" in warning
    assert "not today" in warning
