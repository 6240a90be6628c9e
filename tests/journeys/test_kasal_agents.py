"""Kasal's agents, as seeds/kasal.md shows them, and one run of theirs."""

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name

AGENT = {
    "name": "Research Agent",
    "role": "Senior Researcher",
    "goal": "Conduct thorough research on given topics",
    "backstory": "You are an experienced researcher with expertise in gathering and analyzing information",
    "llm": "gpt-4",
    "tools": ["search_tool", "browser_tool"],
    "allow_delegation": False,
    "verbose": True,
}


async def test_agents_as_kasal_shows_them(acme: TenantClient) -> None:
    unknown = await acme.http.post("/agents", json=AGENT)
    assert [one["field"] for one in unknown.json()["errors"]] == ["tools[0]", "tools[1]"]
    for name in ("Search Tool", "browser_tool"):
        tool = {"name": name, "tool_type": "custom", "configuration": {"api_endpoint": "https://api.example.com"}}
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
    made = await acme.http.post("/agents", json=AGENT)
    assert made.status_code == 201, made.text
    agent = made.json()
    kept = {name: value for name, value in AGENT.items() if name != "llm"}
    assert {name: agent[name] for name in kept} == kept
    assert (agent["model"], agent["kind"], agent["status"]) == ("gpt-4", "llm", "ready")
    listed = (await acme.http.get("/agents", params={"limit": 20, "offset": 0})).json()
    assert (listed["total"], listed["has_more"]) == (1, False)
    changes = {"name": "Updated Research Agent", "goal": "Enhanced research capabilities"}
    changed = await acme.http.put(f"/agents/{agent['id']}", json=changes)
    assert {name: changed.json()[name] for name in changes} == changes
    assert changed.json()["role"] == AGENT["role"], "PUT changes what is sent"
    assert (await acme.http.delete(f"/agents/{agent['id']}")).status_code == 204
    assert (await acme.http.get(f"/agents/{agent['id']}")).status_code == 404


async def test_an_execution_with_another_model_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = {**AGENT, "tools": []}
    assert (await acme.http.post("/agents", json=agent)).status_code == 201
    provider.queue_text("Detailed research report...", to=name)
    body = {"agent_id": "Research Agent", "inputs": {"topic": "AI developments in 2024"}, "model": name}
    started = await acme.http.post("/executions", json=body)
    assert started.status_code == 201, started.text
    begun = started.json()
    assert begun["status"] == "pending"
    assert begun["message"]
    assert begun["run_name"].startswith("Research Agent-")
    ended = await acme.wait_for_end(begun["execution_id"])
    assert (ended["status"], ended["result"]) == ("completed", {"content": "Detailed research report..."})
    asked = next(one for one in provider.requests if one.model == name)
    assert asked.get_last_text("system").startswith("You are Senior Researcher.")
    assert "AI developments in 2024" in asked.get_last_text()
    logs = (await acme.http.get(f"/execution-logs/{ended['id']}")).json()["items"]
    assert any("AI developments in 2024" in one["message"] for one in logs), "verbose"
