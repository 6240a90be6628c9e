"""Paracle's own walk through agents, their execution and streaming, as seeds/paracle.md shows it; on the local model."""

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
    made = await acme.http.post("/agents", json=coder)
    assert made.status_code == 201, made.text
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
    shown = (await acme.http.get(f"/agents/{created['id']}")).json()
    assert shown["created_at"].endswith("Z")
    listed = (await acme.http.get("/agents", params={"parent": "coder", "status": "ready", "limit": 100})).json()
    assert ([one["name"] for one in listed["items"]], listed["total"]) == (["python-expert"], 1)
    changed = await acme.http.patch(
        f"/agents/{created['id']}", json={"temperature": 0.3, "instructions": "Updated instructions"}
    )
    assert (changed.status_code, changed.json()["temperature"]) == (200, 0.3)
    gone = await acme.http.delete(f"/agents/{created['id']}")
    assert (gone.status_code, gone.content) == (204, b"")


async def test_an_execution_as_paracle_shows_it_on_the_local_model(acme: TenantClient) -> None:
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
    same = (await acme.http.get(f"/agents/executions/{ended['execution_id']}")).json()
    assert same["status"] == "completed"
    (cost,) = (await acme.http.get("/costs", params={"agent_id": "reviewer"})).json()["items"]
    assert (cost["provider"], cost["cost_usd"], cost["estimated"]) == ("local", 0.0, False)
    assert cost["total_tokens"] == cost["prompt_tokens"] + cost["completion_tokens"] > 0


async def test_the_stream_as_paracle_shows_it_on_the_local_model(system, acme: TenantClient) -> None:
    agent = {"name": "builder", "model": "smollm2", "max_tokens": 60}
    assert (await acme.http.post("/agents", json=agent)).status_code == 201
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/builder/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}
    seen = []
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"task": "Implement feature X", "mode": "safe"}))
        async for message in socket:
            seen.append(json.loads(message))
            if seen[-1]["type"] == "complete":
                break
    tokens = [one["content"] for one in seen if one["type"] == "token"]
    assert len(tokens) > 1, "it came in pieces"
    assert seen[-1]["result"] == {"content": "".join(tokens)}
    assert seen[-1]["cost"] == 0
    assert [one["seq"] for one in seen[:-1]] == list(range(1, len(seen)))


async def test_tools_as_paracle_shows_them(acme: TenantClient) -> None:
    listed = (await acme.http.get("/tools", params={"category": "filesystem"})).json()
    read = next(one for one in listed["items"] if one["name"] == "filesystem_read")
    assert read["category"] == "filesystem"
    assert read["parameters"]["properties"]["path"]
    wrote = await acme.http.post(
        "/tools/filesystem_write/execute", json={"args": {"path": "test.txt", "content": "File contents..."}}
    )
    body = {"args": {"path": "test.txt", "encoding": "utf-8"}, "execution_id": wrote.json()["execution_id"]}
    done = await acme.http.post("/tools/filesystem_read/execute", json=body)
    assert (done.status_code, done.json()["result"]) == (200, {"content": "File contents...", "size": 16})
