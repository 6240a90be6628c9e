"""Tools of others: schemas of every dialect, names that become one, forms, half an emoji in arguments."""

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


async def _tool(acme: TenantClient, kind: str, configuration: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"name": generate_name("tool"), "tool_type": kind, "configuration": configuration, **more}
    answer = await acme.http.post("/tools", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def _server(acme: TenantClient, url: str) -> str:
    return str((await _tool(acme, "mcp", {"url": f"{url}/mcp"}))["slug"])


async def _execute(acme: TenantClient, reference: str, args: dict[str, Any], **more: Any) -> httpx.Response:
    return await acme.http.post(f"/tools/{reference}/execute", json={"args": args, **more})


async def _log(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as http:
        return list((await http.get(f"{url}/log")).json())


def _warnings(told: list[dict[str, Any]]) -> list[str]:
    return [one["message"] for one in told if one["type"] == "warning"]


async def test_schemas_of_older_dialects(acme: TenantClient, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("08-mcp-schemas-of-older-dialects"))
    server = await _server(acme, url)
    good = {
        "label": {"l": ["a", 1]},
        "rate": {"n": 10},
        "sort": {"by": None},
        "name": {"s": "a"},
        "day": {"s": "2026-01-01"},
        "loose": {"l": [1]},
    }
    for name, args in good.items():
        answer = await _execute(acme, server, args, tool=name)
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["result"]["content"]) == {"called": name, "with": args}
    # What is understood is still checked.
    for name, args in {"label": {"l": ["a", "b"]}, "rate": {"n": 11}, "sort": {"by": "c"}}.items():
        assert (await _execute(acme, server, args, tool=name)).status_code == 422


async def test_one_bad_entry_costs_that_entry(
    acme: TenantClient, provider: FakeProvider, serve_case: Serve, tmp_path: Path
) -> None:
    shutil.copy(find_case_folder("08-mcp-schemas-of-older-dialects") / "tools-one-broken.json", tmp_path / "tools.json")
    tools = json.loads((tmp_path / "tools.json").read_text())
    tools += [{"name": "listed", "inputSchema": {"type": "array"}}, 5]
    tools += [{"name": "half", "description": "half \ud83d", "inputSchema": {"type": "object"}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    server = await _server(acme, await serve_case(tmp_path))
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=[server])
    provider.queue_text("", to=name, calls=[build_call(f"{server}_rate", {"n": 10})])
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    assert ended["status"] == "completed", ended
    told = await stream_events(acme, ended["id"])
    for bad in ("'bare'", "'listed'", "number 4"):
        assert any(bad in one for one in _warnings(told)), _warnings(told)
    shown = {one["function"]["name"]: one["function"] for one in _asked(provider, name)[0].body["tools"]}
    assert {f"{server}_rate", f"{server}_half"} <= shown.keys()
    assert f"{server}_listed" not in shown
    assert shown[f"{server}_half"]["description"] == "half \ufffd"
    [result] = [one for one in told if one["type"] == "tool_result"]
    assert json.loads(result["result"]["content"]) == {"called": "rate", "with": {"n": 10}}
    # Called by name, a bad entry says why it is none.
    refused = await _execute(acme, server, {}, tool="listed")
    assert (refused.status_code, "must be of type object, not 'array'" in refused.text) == (422, True), refused.text


def _asked(provider: FakeProvider, name: str) -> list[Any]:
    return [one for one in provider.requests if one.model == name]


async def test_schemas_that_providers_refuse(acme: TenantClient, provider: FakeProvider, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("24-mcp-schemas-that-providers-refuse"))
    server = await _server(acme, url)
    claude = generate_name("claude")
    registered = {"name": claude, "provider": "anthropic", "model": "claude-x", "base_url": url}
    assert (await acme.http.post("/models", json=registered)).status_code == 201
    ended = await run_execution(
        acme, (await create_model_agent(acme, claude, tools=[server]))["id"], task="What is the capital of France?"
    )
    assert (ended["status"], ended["result"]) == ("completed", {"content": "Paris."}), ended
    [sent] = [one["body"] for one in await _log(url) if one["path"].endswith("/messages")]
    assert {tool["name"] for tool in sent["tools"]} == {
        f"{server}_create_attachment", f"{server}_list_items", f"{server}_fine"
    }  # fmt: skip
    # And what a model writes with the names on the wire reaches the server under its own.
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=[server])
    calls = [
        build_call(f"{server}_list_items", {"filter": "a", "sort_by": "b", "StartTime": "c"}),
        build_call(f"{server}_create_attachment", {"link": "http://x"}),
    ]
    provider.queue_text("", to=name, calls=calls)
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    told = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
    assert [json.loads(one["result"]["content"])["with"] for one in told] == [
        {"$filter": "a", "sort[by]": "b", "StartTime<": "c"},
        {"link": "http://x"},
    ]
    first, second = _asked(provider, name)
    properties = {tool["function"]["name"]: tool["function"]["parameters"] for tool in first.body["tools"]}
    assert "'$filter'" in properties[f"{server}_list_items"]["properties"]["filter"]["description"]
    assert "anyOf" not in properties[f"{server}_create_attachment"]
    [back] = [one for one in second.body["messages"] if one.get("tool_calls")]
    assert set(json.loads(back["tool_calls"][0]["function"]["arguments"])) == {"filter", "sort_by", "StartTime"}


async def test_names_that_become_one(acme: TenantClient, provider: FakeProvider, serve_case: Serve) -> None:
    folder = find_case_folder("25-mcp-names-that-become-one")
    server = await _server(acme, await serve_case(folder))
    own = [tool["name"] for tool in json.loads((folder / "tools.json").read_text())]
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=[server])
    provider.queue_text("Nothing to do", to=name)
    await run_execution(acme, made["id"], task="Go", mode="yolo")
    shown = {one["function"]["description"]: one["function"]["name"] for one in _asked(provider, name)[0].body["tools"]}
    assert len(set(shown.values())) == 6
    assert shown["About read_file."] == f"{server}_read_file"
    provider.queue_text("", to=name, calls=[build_call(shown[f"About {one}."], {}) for one in own])
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    told = await stream_events(acme, ended["id"])
    results = [json.loads(one["result"]["content"]) for one in told if one["type"] == "tool_result"]
    assert [one["called"] for one in results] == own
    assert _warnings(told) == []
    assert [one["function"]["name"] for one in _asked(provider, name)[1].body["tools"]] == list(shown.values())
    # One by one: each by its own name.
    for one in own:
        alone = await create_model(acme, provider, generate_name())
        single = await create_model_agent(acme, alone, tools=[f"{server}/{one}"])
        provider.add_rule(_calls_its_tool(alone))
        ended = await run_execution(acme, single["id"], task="Go", mode="yolo")
        [result] = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
        assert json.loads(result["result"]["content"])["called"] == one


def _calls_its_tool(name: str) -> Any:
    from tests.support.fake_provider import ScriptedAnswer

    def rule(asked: Any) -> ScriptedAnswer | None:
        if asked.model != name:
            return None
        if any(one["role"] == "tool" for one in asked.body["messages"]):
            return ScriptedAnswer(tokens=["Done"])
        return ScriptedAnswer(calls=[build_call(asked.body["tools"][0]["function"]["name"], {})])

    return rule


async def test_forms_and_whole_numbers(acme: TenantClient, serve_case: Serve) -> None:
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
    sender = await _tool(acme, "custom", form, name="form")
    reader = await _tool(acme, "custom", user, name="user_by_id")
    try:
        sent = await _execute(acme, sender["id"], {"to": "+491700000000", "body": "Hello & goodbye"})
        assert sent.json()["result"]["body"] == {"form": {"to": ["+491700000000"], "body": ["Hello & goodbye"]}}
        read = await _execute(acme, reader["id"], {"id": 5.0, "page": 2.0})
        assert read.json()["result"]["body"]["path"] == "/echo/users/5?page=2"
        # And as models write them.
        for script, path in (("form-caller", "/form"), ("number-caller", "/echo/users/5?page=2")):
            name = generate_name(script)
            registered = {"name": name, "provider": "openai_compatible", "model": script, "base_url": f"{url}/v1"}
            assert (await acme.http.post("/models", json=registered)).status_code == 201
            made = await create_model_agent(acme, name, tools=["form", "user_by_id"])
            ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
            assert ended["status"] == "completed", ended
            [result] = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
            assert (result["result"]["status"], path in json.dumps([result, await _log(url)])) == (200, True)
    finally:
        for tool in (sender, reader):
            await acme.http.delete(f"/tools/{tool['id']}")
    wrong = {**form, "headers": {"Content-Type": "application/xml"}}
    refused = await acme.http.post("/tools", json={"name": generate_name("tool"), "configuration": wrong})
    assert (refused.status_code, "configuration.headers.Content-Type" in refused.text) == (422, True)


async def test_half_an_emoji_in_arguments(acme: TenantClient, serve_case: Serve) -> None:
    url = await serve_case(find_case_folder("15-half-an-emoji"))
    name = generate_name("half")
    registered = {"name": name, "provider": "openai_compatible", "model": "arguments", "base_url": f"{url}/v1"}
    assert (await acme.http.post("/models", json=registered)).status_code == 201
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    assert ended["status"] == "completed", ended
    told = await stream_events(acme, ended["id"])
    [result] = [one for one in told if one["type"] == "tool_result"]
    assert result["result"]["path"] == "a.txt", result
    [called] = [one for one in told if one["type"] == "tool_call"]
    assert called["args"]["content"] == "cut \ufffd"


async def test_a_tool_that_the_provider_refuses_is_left_out(
    acme: TenantClient, provider: FakeProvider, serve_case: Serve
) -> None:
    """For reasons that nobody foresaw: the run goes on without it, and is told which tool it was."""
    from tests.support.fake_provider import ScriptedAnswer

    server = await _server(acme, await serve_case(find_case_folder("24-mcp-schemas-that-providers-refuse")))
    name = await create_model(acme, provider, generate_name())

    def rule(asked: Any) -> ScriptedAnswer | None:
        if asked.model != name:
            return None
        for number, tool in enumerate(asked.body["tools"]):
            if tool["function"]["name"].endswith("list_items"):
                return ScriptedAnswer(status=400, message=f"tools.{number}.custom.input_schema: not today")
        return ScriptedAnswer(tokens=["Paris."])

    provider.add_rule(rule)
    ended = await run_execution(acme, (await create_model_agent(acme, name, tools=[server]))["id"], task="Go")
    assert ended["result"] == {"content": "Paris."}, ended
    [warning] = _warnings(await stream_events(acme, ended["id"]))
    assert f"{server}_list_items" in warning
    assert "not today" in warning
