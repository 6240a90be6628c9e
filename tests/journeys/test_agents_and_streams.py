"""Test agents, their execution and streaming on the local model, as seeds/paracle.md shows them."""

import json

from websockets.asyncio.client import connect

from tests.support.clients import TenantClient


async def test_agents_as_paracle_shows_them(acme: TenantClient) -> None:
    coder = {
        "name": "coder",
        "provider": "openai",
        "model": "gpt-4",
        "temperature": 0.7,
        "instructions": "You are a helpful coding assistant",
        "tools": ["filesystem_read", "filesystem_write"],
    }
    answer = await acme.http.post("/agents", json=coder)
    assert answer.status_code == 201, answer.text
    tool = {"name": "python_ast_parser", "configuration": {"api_endpoint": "https://tools.example.com/parse"}}
    assert (await acme.http.post("/tools", json=tool)).status_code == 201
    expert = {
        "name": "python-expert",
        "provider": "openai",
        "model": "gpt-4",
        "temperature": 0.5,
        "instructions": "You are a Python expert",
        "tools": ["python_ast_parser"],
        "parent": "coder",
    }
    created = (await acme.http.post("/agents", json=expert)).json()
    assert created["id"].startswith("agent_")
    assert {name: created[name] for name in expert} == expert
    read_agent = (await acme.http.get(f"/agents/{created['id']}")).json()
    assert read_agent["created_at"].endswith("Z")
    listed = (await acme.http.get("/agents", params={"parent": "coder", "status": "ready", "limit": 100})).json()
    assert ([item["name"] for item in listed["items"]], listed["total"]) == (["python-expert"], 1)
    changed = await acme.http.patch(
        f"/agents/{created['id']}", json={"temperature": 0.3, "instructions": "Updated instructions"}
    )
    assert (changed.status_code, changed.json()["temperature"]) == (200, 0.3)
    deleted = await acme.http.delete(f"/agents/{created['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")


async def test_execution_as_paracle_shows_it_on_the_local_model(acme: TenantClient) -> None:
    agent = {"name": "reviewer", "model": "smollm2", "instructions": "Answer in one short sentence.", "max_tokens": 40}
    assert (await acme.http.post("/agents", json=agent)).status_code == 201
    body = {
        "task": "Review this code for bugs",
        "mode": "safe",
        "inputs": {"file": "api.py", "focus": "security"},
        "cost_limit": 5.0,
        "timeout": 300,
    }
    answer = await acme.http.post("/agents/reviewer/execute", json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code == 201, answer.text
    ended = answer.json()
    assert (ended["status"], ended["execution_id"]) == ("completed", ended["id"]), ended
    assert ended["result"]["content"].strip()
    read_execution = (await acme.http.get(f"/agents/executions/{ended['execution_id']}")).json()
    assert read_execution["status"] == "completed"
    (cost,) = (await acme.http.get("/costs", params={"agent_id": "reviewer"})).json()["items"]
    assert (cost["provider"], cost["cost_usd"], cost["estimated"]) == ("local", 0.0, False)
    assert cost["total_tokens"] == cost["prompt_tokens"] + cost["completion_tokens"] > 0


async def test_stream_as_paracle_shows_it_on_the_local_model(system, acme: TenantClient) -> None:
    agent = {"name": "builder", "model": "smollm2", "max_tokens": 60}
    assert (await acme.http.post("/agents", json=agent)).status_code == 201
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/builder/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}
    events = []
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"task": "Implement feature X", "mode": "safe"}))
        async for message in socket:
            events.append(json.loads(message))
            if events[-1]["type"] == "complete":
                break
    tokens = [event["content"] for event in events if event["type"] == "token"]
    assert len(tokens) > 1, "the answer is streamed in pieces"
    assert events[-1]["result"] == {"content": "".join(tokens)}
    assert events[-1]["cost"] == 0
    assert [event["seq"] for event in events[:-1]] == list(range(1, len(events)))


async def test_tools_as_paracle_shows_them(acme: TenantClient) -> None:
    listed = (await acme.http.get("/tools", params={"category": "filesystem"})).json()
    read_tool = next(tool for tool in listed["items"] if tool["name"] == "filesystem_read")
    assert read_tool["category"] == "filesystem"
    assert read_tool["parameters"]["properties"]["path"]
    written = await acme.http.post(
        "/tools/filesystem_write/execute", json={"args": {"path": "test.txt", "content": "File contents..."}}
    )
    body = {"args": {"path": "test.txt", "encoding": "utf-8"}, "execution_id": written.json()["execution_id"]}
    read_answer = await acme.http.post("/tools/filesystem_read/execute", json=body)
    assert (read_answer.status_code, read_answer.json()["result"]) == (200, {"content": "File contents...", "size": 16})
