"""Model agents as people use them: a task, tools, approvals, budgets, streams; against a provider's wire."""

import asyncio
import secrets
from typing import Any

import httpx
import pytest

from tests.clients import Tenant
from tests.wire import Wire, call

WAIT = {"Prefer": "wait=30"}


async def model(acme: Tenant, provider: Wire, name: str, **more: Any) -> dict[str, Any]:
    """Register a model of the provider on this machine."""
    body = {"name": name, "provider": "openai_compatible", "model": name, "base_url": provider.url, **more}
    answer = await acme.http.post("/models", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def agent(acme: Tenant, model_name: str, **more: Any) -> dict[str, Any]:
    answer = await acme.http.post("/agents", json={"name": f"a-{secrets.token_hex(4)}", "model": model_name, **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def run(acme: Tenant, agent_id: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json=body, headers=WAIT)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def events(acme: Tenant, execution_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with acme.http.stream("GET", f"/executions/{execution_id}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                import json

                found.append(json.loads(line[5:]))
    return found


async def test_a_task_is_answered_and_streamed(acme: Tenant, provider: Wire) -> None:
    await model(acme, provider, "echo", price={"input": 1.0, "output": 2.0})
    made = await agent(acme, "echo", role="Parrot", instructions="Repeat.", temperature=0.3)
    assert (made["kind"], made["status"]) == ("llm", "ready")
    ended = await run(acme, made["id"], task="Say these five words back")
    assert ended["status"] == "completed", ended
    assert ended["result"] == {"content": "Say these five words back"}
    told = await events(acme, ended["id"])
    assert "".join(one["content"] for one in told if one["type"] == "token") == "Say these five words back"
    (cost,) = [one for one in told if one["type"] == "cost"]
    assert cost["completion_tokens"] == 5
    assert ended["total_cost"] == pytest.approx(cost["cost_usd"])
    assert told[-1]["status"] == "completed"
    asked = provider.requests[-1].body
    assert asked["messages"][0]["content"].startswith("You are Parrot.")
    assert asked["temperature"] == 0.3


async def test_tools_write_files_that_outlive_the_run(acme: Tenant, provider: Wire) -> None:
    name = f"script:{secrets.token_hex(4)}"
    await model(acme, provider, name.replace(":", "-"), model=name)
    made = await agent(acme, name.replace(":", "-"), tools=["filesystem_write", "python"])
    provider.say("", to=name, calls=[call("filesystem_write", {"path": "in/a.txt", "content": "6 7"})])
    provider.say("", to=name, calls=[call("python", {"code": PROGRAM})])
    provider.say("It is 42.", to=name)
    ended = await run(acme, made["id"], task="Multiply", mode="yolo")
    assert ended["status"] == "completed", ended
    told = [one for one in await events(acme, ended["id"]) if one["type"] == "tool_result"]
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


async def test_safe_mode_asks_first(acme: Tenant, provider: Wire) -> None:
    name = f"script-{secrets.token_hex(4)}"
    await model(acme, provider, name)
    made = await agent(acme, name, tools=["filesystem_write"])
    provider.say("", to=name, calls=[call("filesystem_write", {"path": "a", "content": "1"}, id="c1"),
                                     call("filesystem_write", {"path": "b", "content": "2"}, id="c2")])
    provider.say("Done.", to=name)
    answer = await acme.http.post(f"/agents/{made['id']}/execute", json={"task": "Write"})
    execution_id = answer.json()["id"]
    waiting = await until(acme, execution_id, "waiting")
    assert [one["call_id"] for one in waiting["waiting_for"]] == ["c1", "c2"]
    first = await acme.http.post(f"/executions/{execution_id}/approve", json={"call_id": "c1"})
    assert first.json()["status"] == "waiting"
    second = await acme.http.post(f"/executions/{execution_id}/reject", json={"reason": "Not that one."})
    assert second.status_code == 200, second.text
    ended = await until(acme, execution_id, "completed")
    files = (await acme.http.get(f"/executions/{execution_id}/files")).json()
    assert [one["path"] for one in files["items"]] == ["a"]
    results = [one["content"] for one in provider.requests[-1].body["messages"] if one["role"] == "tool"]
    assert "Not that one." in results[1]
    assert ended["attempt"] == 2


async def until(acme: Tenant, execution_id: str, status: str) -> dict[str, Any]:
    for _ in range(200):
        found = (await acme.http.get(f"/executions/{execution_id}")).json()
        if found["status"] == status:
            return dict(found)
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def test_a_tool_by_itself(acme: Tenant) -> None:
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


assert httpx
