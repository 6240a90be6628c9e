"""Test agents and one of their runs, as seeds/kasal.md shows them."""

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name

KASAL_AGENT = {
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
    unknown = await acme.http.post("/agents", json=KASAL_AGENT)
    assert [error["field"] for error in unknown.json()["errors"]] == ["tools[0]", "tools[1]"]
    for name in ("Search Tool", "browser_tool"):
        tool = {"name": name, "tool_type": "custom", "configuration": {"api_endpoint": "https://api.example.com"}}
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
    answer = await acme.http.post("/agents", json=KASAL_AGENT)
    assert answer.status_code == 201, answer.text
    agent = answer.json()
    expected = {name: value for name, value in KASAL_AGENT.items() if name != "llm"}
    assert {name: agent[name] for name in expected} == expected
    assert (agent["model"], agent["kind"], agent["status"]) == ("gpt-4", "llm", "ready")
    listed = (await acme.http.get("/agents", params={"limit": 20, "offset": 0})).json()
    assert (listed["total"], listed["has_more"]) == (1, False)
    changes = {"name": "Updated Research Agent", "goal": "Enhanced research capabilities"}
    changed = await acme.http.put(f"/agents/{agent['id']}", json=changes)
    assert {name: changed.json()[name] for name in changes} == changes
    assert changed.json()["role"] == KASAL_AGENT["role"], "PUT changes only the sent fields"
    assert (await acme.http.delete(f"/agents/{agent['id']}")).status_code == 204
    assert (await acme.http.get(f"/agents/{agent['id']}")).status_code == 404


async def test_agent_execution_with_another_model_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = {**KASAL_AGENT, "tools": []}
    assert (await acme.http.post("/agents", json=agent)).status_code == 201
    provider.queue_text("Detailed research report...", to=name)
    body = {"agent_id": "Research Agent", "inputs": {"topic": "AI developments in 2024"}, "model": name}
    started = await acme.http.post("/executions", json=body)
    assert started.status_code == 201, started.text
    execution = started.json()
    assert execution["status"] == "pending"
    assert execution["message"]
    assert execution["run_name"].startswith("Research Agent-")
    ended = await acme.wait_for_end(execution["execution_id"])
    assert (ended["status"], ended["result"]) == ("completed", {"content": "Detailed research report..."})
    request = next(sent_request for sent_request in provider.requests if sent_request.model == name)
    assert request.get_last_text("system").startswith("You are Senior Researcher.")
    assert "AI developments in 2024" in request.get_last_text()
    logs = (await acme.http.get(f"/execution-logs/{ended['id']}")).json()["items"]
    assert any("AI developments in 2024" in entry["message"] for entry in logs), "verbose"
