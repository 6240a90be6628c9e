"""Model agents as people use them: a task, tools, approvals, budgets, streams; against a provider's wire."""

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


async def test_a_task_is_answered_and_streamed(acme: TenantClient, provider: FakeProvider) -> None:
    await create_model(acme, provider, "echo", price={"input": 1.0, "output": 2.0})
    made = await create_model_agent(acme, "echo", role="Parrot", instructions="Repeat.", temperature=0.3)
    assert (made["kind"], made["status"]) == ("llm", "ready")
    ended = await run_execution(acme, made["id"], task="Say these five words back")
    assert ended["status"] == "completed", ended
    assert ended["result"] == {"content": "Say these five words back"}
    told = await stream_events(acme, ended["id"])
    assert join_tokens(told) == "Say these five words back"
    (cost,) = [one for one in told if one["type"] == "cost"]
    assert cost["completion_tokens"] == 5
    assert ended["total_cost"] == pytest.approx(cost["cost_usd"])
    assert told[-1]["status"] == "completed"
    asked = provider.requests[-1].body
    assert asked["messages"][0]["content"].startswith("You are Parrot.")
    assert asked["temperature"] == 0.3


async def test_tools_write_files_that_outlive_the_run(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write", "python"])
    provider.queue_text("", to=name, calls=[build_call("filesystem_write", {"path": "in/a.txt", "content": "6 7"})])
    provider.queue_text("", to=name, calls=[build_call("python", {"code": PROGRAM})])
    provider.queue_text("It is 42.", to=name)
    ended = await run_execution(acme, made["id"], task="Multiply", mode="yolo")
    assert ended["status"] == "completed", ended
    told = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
    assert told[1]["result"]["stdout"] == "42\n", told
    files = (await acme.http.get(f"/executions/{ended['id']}/files")).json()
    assert [one["path"] for one in files["items"]] == ["in/a.txt", "out.txt"]
    got = await acme.http.get(f"/executions/{ended['id']}/files/out.txt")
    assert got.text == "42"


PROGRAM = """
a, b = open('in/a.txt').read().split()
print(int(a) * int(b))
open('out.txt', 'w').write(str(int(a) * int(b)))
"""


async def test_safe_mode_asks_first(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    provider.queue_text(
        "",
        to=name,
        calls=[
            build_call("filesystem_write", {"path": "a", "content": "1"}, id="c1"),
            build_call("filesystem_write", {"path": "b", "content": "2"}, id="c2"),
        ],
    )
    provider.queue_text("Done.", to=name)
    execution_id = await start_execution(acme, made["id"], task="Write")
    waiting = await wait_for_status(acme, execution_id, "waiting")
    assert [one["call_id"] for one in waiting["waiting_for"]] == ["c1", "c2"]
    first = await acme.http.post(f"/executions/{execution_id}/approve", json={"call_id": "c1"})
    assert first.json()["status"] == "waiting"
    second = await acme.http.post(f"/executions/{execution_id}/reject", json={"reason": "Not that one."})
    assert second.status_code == 200, second.text
    ended = await wait_for_status(acme, execution_id, "completed")
    files = (await acme.http.get(f"/executions/{execution_id}/files")).json()
    assert [one["path"] for one in files["items"]] == ["a"]
    results = [one["content"] for one in provider.requests[-1].body["messages"] if one["role"] == "tool"]
    assert "Not that one." in results[1]
    assert ended["attempt"] == 2


async def test_a_tool_by_itself(acme: TenantClient) -> None:
    wrote = await acme.http.post(
        "/tools/filesystem_write/execute", json={"args": {"path": "test.txt", "content": "File contents..."}}
    )
    assert wrote.status_code == 200, wrote.text
    read = await acme.http.post(
        "/tools/filesystem_read/execute",
        json={"args": {"path": "test.txt", "encoding": "utf-8"}, "execution_id": wrote.json()["execution_id"]},
    )
    assert read.json()["result"] == {"content": "File contents...", "size": 16}
    bad = await acme.http.post("/tools/filesystem_read/execute", json={"args": {"path": "../etc/passwd"}})
    assert (bad.status_code, bad.json()["error"]) == (422, "tool_failed"), bad.text


async def test_a_child_inherits_and_tools_add_up(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    coder = await create_model_agent(
        acme, name, instructions="You write code.", temperature=0.7, tools=["filesystem_read"]
    )
    child = await create_model_agent(acme, None, parent=coder["name"], temperature=0.2, tools=["python"])
    assert (child["parent"], child["model"], child["status"]) == (coder["name"], None, "ready")
    shown = (await acme.http.get(f"/agents/{child['id']}?resolved=true")).json()
    assert (shown["model"], shown["instructions"], shown["temperature"]) == (name, "You write code.", 0.2)
    assert shown["tools"] == ["filesystem_read", "python"]
    assert (await acme.http.get(f"/agents?parent={coder['id']}")).json()["items"][0]["id"] == child["id"]
    provider.queue_text("ok", to=name)
    assert (await run_execution(acme, child["id"], task="Go"))["status"] == "completed"
    asked = provider.requests[-1].body
    assert asked["temperature"] == 0.2
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["filesystem_read", "python"]
    refused = await acme.http.delete(f"/agents/{coder['id']}")
    assert refused.status_code == 409
    circle = await acme.http.patch(f"/agents/{coder['id']}", json={"parent": child["name"]})
    assert circle.json()["errors"][0]["field"] == "parent"


async def test_a_line_of_descent_has_five_agents_at_most(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    line = [await create_model_agent(acme, name)]
    for _ in range(4):
        line.append(await create_model_agent(acme, None, parent=line[-1]["name"]))
    sixth = await acme.http.post("/agents", json={"name": generate_name("agent"), "parent": line[-1]["id"]})
    assert (sixth.status_code, sixth.json()["errors"][0]["field"]) == (422, "parent")


async def test_an_agent_delegates_to_another(acme: TenantClient, provider: FakeProvider) -> None:
    boss, helper = (
        await create_model(acme, provider, generate_name("boss")),
        await create_model(acme, provider, generate_name("helper")),
    )
    other = await create_model_agent(acme, helper, role="Counter")
    made = await create_model_agent(acme, boss, allow_delegation=True)
    provider.queue_text("", to=boss, calls=[build_call("delegate", {"agent": other["name"], "task": "Count to three"})])
    provider.queue_text("One, two, three", to=helper)
    provider.queue_text("It said: One, two, three", to=boss)
    ended = await run_execution(acme, made["id"], task="Have somebody count")
    assert ended["result"] == {"content": "It said: One, two, three"}
    asked = [one for one in provider.requests if one.model == helper]
    assert asked[0].get_last_text("system") == "You are Counter."
    assert asked[0].get_last_text() == "Count to three"
    assert ended["steps_completed"] == ended["steps_total"] == 4


async def test_in_the_sandbox_mode_no_tool_leaves_the_fence(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["http_request", "filesystem_write"])
    provider.queue_text("", to=name, calls=[build_call("http_request", {"url": "http://example.com"})])
    provider.queue_text("", to=name, calls=[build_call("filesystem_write", {"path": "a", "content": "1"})])
    provider.queue_text("ok", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="sandbox")
    assert ended["status"] == "completed", ended
    asked = [one for one in provider.requests if one.model == name]
    assert [tool["function"]["name"] for tool in asked[0].body["tools"]] == ["filesystem_write"]
    assert "there is no tool" in asked[1].get_last_text("tool")
    assert '"size":1' in asked[2].get_last_text("tool")


async def test_what_is_said_about_a_run_has_an_effect(acme: TenantClient, provider: FakeProvider) -> None:
    name, other = (
        await create_model(acme, provider, generate_name()),
        await create_model(acme, provider, generate_name("other")),
    )
    made = await create_model_agent(
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
        acme, made["id"], task="Fix {thing}", inputs={"trade": "plumber", "thing": "pipes"}, model=other
    )
    asked = next(one for one in provider.requests if one.model == other)
    assert asked.get_last_text("system") == "You are a plumber.\n\nLong ago.\n\nYour goal: help"
    assert asked.get_last_text().startswith("Fix pipes")
    assert '"trade": "plumber"' in asked.get_last_text()
    assert asked.body.get("max_tokens", asked.body.get("max_completion_tokens")) == 77
    assert (ended["timeout"], ended["model"], ended["mode"]) == (123, other, "safe")
    logs = (await acme.http.get(f"/execution-logs/{ended['id']}")).json()["items"]
    assert any("Fix pipes" in one["message"] for one in logs), "verbose"
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {})])
    over = await run_execution(acme, made["id"], task="Go")
    assert (over["status"], over["error_type"]) == ("failed", "too_many_steps")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "no-such-model"}, "model"),
        ({"model": "gpt-4", "provider": "nobody"}, "provider"),
        ({"model": "gpt-4", "tools": ["filesystem_read", "no_such_tool"]}, "tools[1]"),
        ({"model": "gpt-4", "temperature": 3}, "temperature"),
        ({"model": "gpt-4", "llm": "gpt-4"}, "llm"),
        ({"provider": "openai"}, "provider"),
        ({"model": "gpt-4", "parent": "nobody"}, "parent"),
        ({"model": "gpt-4", "fallback_model": "no-such-model"}, "fallback_model"),
        ({"model": "gpt-4", "max_steps": 0}, "max_steps"),
        ({"model": "gpt-4", "colour": "red"}, "colour"),
    ],
)
async def test_bad_agents_are_refused_by_name(acme: TenantClient, body: dict, field: str) -> None:
    answer = await acme.http.post("/agents", json={"name": generate_name("agent"), **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field, answer.text


async def test_bad_starts_are_refused_by_name(acme: TenantClient, shared_tenant: TenantClient) -> None:
    made = await create_model_agent(acme, "smollm2")
    for body, field in (
        ({}, "task"),
        ({"task": "x", "mode": "wild"}, "mode"),
        ({"task": "x", "cost_limit": 0}, "cost_limit"),
        ({"task": "x", "model": "no-such-model"}, "model"),
        ({"task": "x", "agent_version_id": "v1"}, "agent_version_id"),
    ):
        answer = await acme.http.post(f"/agents/{made['id']}/execute", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    for field, value in (("mode", "safe"), ("model", "smollm2"), ("cost_limit", 1.0)):
        answer = await shared_tenant.http.post("/agents/hello/execute", json={"payload": {}, field: value})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text


async def test_a_run_is_on_record_as_an_artifact(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    made = await create_model_agent(acme, name, instructions="Be brief.", temperature=0.1, tools=["filesystem_list"])
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {"path": "no/such"})])
    provider.queue_text("Nothing there", to=name)
    ended = await run_execution(acme, made["id"], task="Look")
    for _ in range(100):
        found = await acme.http.get(f"/artifacts/{ended['id']}")
        if found.status_code == 200:
            break
        await asyncio.sleep(0.05)
    artifact = found.json()
    assert artifact["llm_config"]["model_name"] == name
    assert artifact["llm_config"]["parameters"] == {"temperature": 0.1}
    assert artifact["resolved_prompt"]["system_prompt"] == "Be brief."
    assert artifact["resolved_prompt"]["final_text"] == "Look"
    usage = artifact["token_usage"]
    assert usage["total"] == usage["prompt"] + usage["completion"] > 2
    (called,) = artifact["tool_calls"]
    assert (called["tool_name"], called["status"]) == ("filesystem_list", "error")
    assert artifact["cost_usd"] == pytest.approx(ended["total_cost"])
