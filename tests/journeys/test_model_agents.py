"""Test model agents against a fake provider: tasks, tools, approvals, inheritance, delegation and streams."""

import asyncio

import pytest

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    join_tokens,
    run_execution,
    start_execution,
    stream_events,
    wait_for_status,
)


async def test_task_is_answered_and_streamed(acme: TenantClient, provider: FakeProvider) -> None:
    await create_model(acme, provider, "echo", price={"input": 1.0, "output": 2.0})
    created = await create_model_agent(acme, "echo", role="Parrot", instructions="Repeat.", temperature=0.3)
    assert (created["kind"], created["status"]) == ("llm", "ready")
    ended = await run_execution(acme, created["id"], task="Say these five words back")
    assert ended["status"] == "completed", ended
    assert ended["result"] == {"content": "Say these five words back"}
    events = await stream_events(acme, ended["id"])
    assert join_tokens(events) == "Say these five words back"
    (cost,) = [event for event in events if event["type"] == "cost"]
    assert cost["completion_tokens"] == 5
    assert ended["total_cost"] == pytest.approx(cost["cost_usd"])
    assert events[-1]["status"] == "completed"
    request_body = provider.requests[-1].body
    assert request_body["messages"][0]["content"].startswith("You are Parrot.")
    assert request_body["temperature"] == 0.3


async def test_files_written_by_tools_outlive_the_run(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_write", "python"])
    provider.queue_text("", to=name, calls=[build_call("filesystem_write", {"path": "in/a.txt", "content": "6 7"})])
    provider.queue_text("", to=name, calls=[build_call("python", {"code": MULTIPLYING_PROGRAM})])
    provider.queue_text("It is 42.", to=name)
    ended = await run_execution(acme, created["id"], task="Multiply", mode="yolo")
    assert ended["status"] == "completed", ended
    tool_results = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "tool_result"]
    assert tool_results[1]["result"]["stdout"] == "42\n", tool_results
    files = (await acme.http.get(f"/executions/{ended['id']}/files")).json()
    assert [file["path"] for file in files["items"]] == ["in/a.txt", "out.txt"]
    file_answer = await acme.http.get(f"/executions/{ended['id']}/files/out.txt")
    assert file_answer.text == "42"


MULTIPLYING_PROGRAM = """
a, b = open('in/a.txt').read().split()
print(int(a) * int(b))
open('out.txt', 'w').write(str(int(a) * int(b)))
"""


async def test_safe_mode_waits_for_approval(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_write"])
    provider.queue_text(
        "",
        to=name,
        calls=[
            build_call("filesystem_write", {"path": "a", "content": "1"}, id="c1"),
            build_call("filesystem_write", {"path": "b", "content": "2"}, id="c2"),
        ],
    )
    provider.queue_text("Done.", to=name)
    execution_id = await start_execution(acme, created["id"], task="Write")
    waiting = await wait_for_status(acme, execution_id, "waiting")
    assert [call["call_id"] for call in waiting["waiting_for"]] == ["c1", "c2"]
    first = await acme.http.post(f"/executions/{execution_id}/approve", json={"call_id": "c1"})
    assert first.json()["status"] == "waiting"
    second = await acme.http.post(f"/executions/{execution_id}/reject", json={"reason": "Not that one."})
    assert second.status_code == 200, second.text
    ended = await wait_for_status(acme, execution_id, "completed")
    files = (await acme.http.get(f"/executions/{execution_id}/files")).json()
    assert [file["path"] for file in files["items"]] == ["a"]
    results = [message["content"] for message in provider.requests[-1].body["messages"] if message["role"] == "tool"]
    assert "Not that one." in results[1]
    assert ended["attempt"] == 2


async def test_single_tool_can_be_executed(acme: TenantClient) -> None:
    written = await acme.http.post(
        "/tools/filesystem_write/execute", json={"args": {"path": "test.txt", "content": "File contents..."}}
    )
    assert written.status_code == 200, written.text
    read = await acme.http.post(
        "/tools/filesystem_read/execute",
        json={"args": {"path": "test.txt", "encoding": "utf-8"}, "execution_id": written.json()["execution_id"]},
    )
    assert read.json()["result"] == {"content": "File contents...", "size": 16}
    refused = await acme.http.post("/tools/filesystem_read/execute", json={"args": {"path": "../etc/passwd"}})
    assert (refused.status_code, refused.json()["error"]) == (422, "tool_failed"), refused.text


async def test_child_agent_inherits_fields_and_adds_tools(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    coder = await create_model_agent(
        acme, name, instructions="You write code.", temperature=0.7, tools=["filesystem_read"]
    )
    child = await create_model_agent(acme, None, parent=coder["name"], temperature=0.2, tools=["python"])
    assert (child["parent"], child["model"], child["status"]) == (coder["name"], None, "ready")
    resolved = (await acme.http.get(f"/agents/{child['id']}?resolved=true")).json()
    assert (resolved["model"], resolved["instructions"], resolved["temperature"]) == (name, "You write code.", 0.2)
    assert resolved["tools"] == ["filesystem_read", "python"]
    assert (await acme.http.get(f"/agents?parent={coder['id']}")).json()["items"][0]["id"] == child["id"]
    provider.queue_text("ok", to=name)
    assert (await run_execution(acme, child["id"], task="Go"))["status"] == "completed"
    request_body = provider.requests[-1].body
    assert request_body["temperature"] == 0.2
    assert [tool["function"]["name"] for tool in request_body["tools"]] == ["filesystem_read", "python"]
    refused = await acme.http.delete(f"/agents/{coder['id']}")
    assert refused.status_code == 409
    cycle = await acme.http.patch(f"/agents/{coder['id']}", json={"parent": child["name"]})
    assert cycle.json()["errors"][0]["field"] == "parent"


async def test_inheritance_is_limited_to_five_agents(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    line = [await create_model_agent(acme, name)]
    for _ in range(4):
        line.append(await create_model_agent(acme, None, parent=line[-1]["name"]))
    sixth = await acme.http.post("/agents", json={"name": generate_name("agent"), "parent": line[-1]["id"]})
    assert (sixth.status_code, sixth.json()["errors"][0]["field"]) == (422, "parent")


async def test_agent_delegates_to_another_agent(acme: TenantClient, provider: FakeProvider) -> None:
    boss, helper = (
        await create_model(acme, provider, generate_name("boss")),
        await create_model(acme, provider, generate_name("helper")),
    )
    other = await create_model_agent(acme, helper, role="Counter")
    created = await create_model_agent(acme, boss, allow_delegation=True)
    provider.queue_text("", to=boss, calls=[build_call("delegate", {"agent": other["name"], "task": "Count to three"})])
    provider.queue_text("One, two, three", to=helper)
    provider.queue_text("It said: One, two, three", to=boss)
    ended = await run_execution(acme, created["id"], task="Have a helper count")
    assert ended["result"] == {"content": "It said: One, two, three"}
    helper_requests = [request for request in provider.requests if request.model == helper]
    assert helper_requests[0].get_last_text("system") == "You are Counter."
    assert helper_requests[0].get_last_text() == "Count to three"
    assert ended["steps_completed"] == ended["steps_total"] == 4


async def test_sandbox_mode_removes_tools_outside_the_fence(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["http_request", "filesystem_write"])
    provider.queue_text("", to=name, calls=[build_call("http_request", {"url": "http://example.com"})])
    provider.queue_text("", to=name, calls=[build_call("filesystem_write", {"path": "a", "content": "1"})])
    provider.queue_text("ok", to=name)
    ended = await run_execution(acme, created["id"], task="Go", mode="sandbox")
    assert ended["status"] == "completed", ended
    requests = [request for request in provider.requests if request.model == name]
    assert [tool["function"]["name"] for tool in requests[0].body["tools"]] == ["filesystem_write"]
    assert "there is no tool" in requests[1].get_last_text("tool")
    assert '"size":1' in requests[2].get_last_text("tool")


async def test_every_field_of_agent_and_start_has_an_effect(acme: TenantClient, provider: FakeProvider) -> None:
    name, other = (
        await create_model(acme, provider, generate_name()),
        await create_model(acme, provider, generate_name("other")),
    )
    created = await create_model_agent(
        acme,
        name,
        role="a {trade}",
        goal="help",
        backstory="Long ago.",
        max_tokens=77,
        max_steps=1,
        verbose=True,
        tools=["filesystem_list"],
        timeout=123,
    )
    provider.queue_text("hm", to=other)
    ended = await run_execution(
        acme, created["id"], task="Fix {thing}", inputs={"trade": "plumber", "thing": "pipes"}, model=other
    )
    request = next(sent_request for sent_request in provider.requests if sent_request.model == other)
    assert request.get_last_text("system") == "You are a plumber.\n\nLong ago.\n\nYour goal: help"
    assert request.get_last_text().startswith("Fix pipes")
    assert '"trade": "plumber"' in request.get_last_text()
    assert request.body.get("max_tokens", request.body.get("max_completion_tokens")) == 77
    assert (ended["timeout"], ended["model"], ended["mode"]) == (123, other, "safe")
    logs = (await acme.http.get(f"/execution-logs/{ended['id']}")).json()["items"]
    assert any("Fix pipes" in entry["message"] for entry in logs), "verbose"
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {})])
    second_run = await run_execution(acme, created["id"], task="Go")
    assert (second_run["status"], second_run["error_type"]) == ("failed", "too_many_steps")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "no-such-model"}, "model"),
        ({"model": "gpt-4", "provider": "unknown"}, "provider"),
        ({"model": "gpt-4", "tools": ["filesystem_read", "no_such_tool"]}, "tools[1]"),
        ({"model": "gpt-4", "temperature": 3}, "temperature"),
        ({"model": "gpt-4", "llm": "gpt-4"}, "llm"),
        ({"provider": "openai"}, "provider"),
        ({"model": "gpt-4", "parent": "missing"}, "parent"),
        ({"model": "gpt-4", "fallback_model": "no-such-model"}, "fallback_model"),
        ({"model": "gpt-4", "max_steps": 0}, "max_steps"),
        ({"model": "gpt-4", "colour": "red"}, "colour"),
    ],
)
async def test_invalid_agent_is_refused_by_field(acme: TenantClient, body: dict, field: str) -> None:
    answer = await acme.http.post("/agents", json={"name": generate_name("agent"), **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field, answer.text


async def test_invalid_start_is_refused_by_field(acme: TenantClient, shared_tenant: TenantClient) -> None:
    created = await create_model_agent(acme, "smollm2")
    for body, field in (
        ({}, "task"),
        ({"task": "x", "mode": "wild"}, "mode"),
        ({"task": "x", "cost_limit": 0}, "cost_limit"),
        ({"task": "x", "model": "no-such-model"}, "model"),
        ({"task": "x", "agent_version_id": "v1"}, "agent_version_id"),
    ):
        answer = await acme.http.post(f"/agents/{created['id']}/execute", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    for field, value in (("mode", "safe"), ("model", "smollm2"), ("cost_limit", 1.0)):
        answer = await shared_tenant.http.post("/agents/hello/execute", json={"payload": {}, field: value})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text


async def test_run_is_recorded_as_an_artifact(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    created = await create_model_agent(acme, name, instructions="Be brief.", temperature=0.1, tools=["filesystem_list"])
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {"path": "no/such"})])
    provider.queue_text("Nothing there", to=name)
    ended = await run_execution(acme, created["id"], task="Look")
    for _ in range(100):
        answer = await acme.http.get(f"/artifacts/{ended['id']}")
        if answer.status_code == 200:
            break
        await asyncio.sleep(0.05)
    artifact = answer.json()
    assert artifact["llm_config"]["model_name"] == name
    assert artifact["llm_config"]["parameters"] == {"temperature": 0.1}
    assert artifact["resolved_prompt"]["system_prompt"] == "Be brief."
    assert artifact["resolved_prompt"]["final_text"] == "Look"
    usage = artifact["token_usage"]
    assert usage["total"] == usage["prompt"] + usage["completion"] > 2
    (tool_call,) = artifact["tool_calls"]
    assert (tool_call["tool_name"], tool_call["status"]) == ("filesystem_list", "error")
    assert artifact["cost_usd"] == pytest.approx(ended["total_cost"])
