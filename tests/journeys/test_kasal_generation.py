"""The Generation part of seeds/kasal.md, with the bodies it shows, as api.md settles it."""

import json
from typing import Any

import pytest

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, stream_events, wait_for_status

SERVICE = "Create a customer service agent that can handle inquiries and escalate complex issues"
FEEDBACK = "Create a task for analyzing customer feedback data"
CREW = "Create a crew for content marketing including research, writing, and review"
AGENT = {
    "name": "Customer Service Agent",
    "role": "Customer Support Specialist",
    "goal": "Provide excellent customer service and resolve inquiries",
    "backstory": "You are an experienced customer service professional...",
    "tools": ["email_tool", "knowledge_base_tool"],
}


async def tool(acme: TenantClient, name: str) -> None:
    configuration = {"api_endpoint": "https://api.example.com", "parameters": {}}
    made = await acme.http.post("/tools", json={"name": name, "configuration": configuration})
    assert made.status_code == 201, made.text


async def thinker(acme: TenantClient, provider: FakeProvider, *answers: Any) -> str:
    """A model that answers this, one after the other; its name."""
    name = await create_model(acme, provider, generate_name())
    for answer in answers:
        provider.queue_text(answer if isinstance(answer, str) else json.dumps(answer), to=name)
    return name


async def create(acme: TenantClient, path: str, body: Any) -> dict[str, Any]:
    made = await acme.http.post(path, json=body)
    assert made.status_code == 201, made.text
    return dict(made.json())


async def local(acme: TenantClient, kind: str, description: str) -> dict[str, Any]:
    """What the local model thinks up, on however busy a machine."""
    made = await acme.http.post(f"/{kind}-generation/generate", json={"description": description})
    assert made.status_code == 200, made.text
    if made.json()["status"] == "running":
        path = f"/{kind}-generation/{made.json()['execution_id']}"
        made = await acme.http.get(path, headers={"Prefer": "wait=60"})
    assert made.json()["status"] == "completed", made.text
    return dict(made.json())


# The local model, which comes with Paddock


async def test_the_local_model_thinks_up_an_agent(acme: TenantClient) -> None:
    answer = await local(acme, "agent", SERVICE)
    assert set(answer["agent"]) == {"name", "role", "goal", "backstory", "tools", "model"}
    assert answer["agent"]["model"] == "smollm2"
    created = await create(acme, "/agents", answer["agent"])
    assert (created["kind"], created["status"]) == ("llm", "ready")


async def test_the_local_model_thinks_up_a_task(acme: TenantClient) -> None:
    task = (await local(acme, "task", FEEDBACK))["task"]
    assert set(task) == {"name", "description", "expected_output", "agent", "tools"}
    created = await create(acme, "/tasks", task)
    assert created["description"] == task["description"]


async def test_the_local_model_thinks_up_a_crew(acme: TenantClient) -> None:
    answer = await local(acme, "crew", CREW)
    assert len(answer["agents"]) in (2, 3)
    assert len(answer["tasks"]) in (2, 3)
    created = await create(acme, "/crews", answer["crew"])
    assert created["process"] in ("sequential", "hierarchical")
    debugged = await acme.http.post(
        "/crews/debug", json={name: answer["crew"][name] for name in ("agents_yaml", "tasks_yaml", "process", "model")}
    )
    assert debugged.json()["valid"], debugged.text
    for one in answer["agents"]:
        await create(acme, "/agents", one)
    for one in answer["tasks"]:
        await create(acme, "/tasks", one)


async def test_the_local_model_names_a_run(acme: TenantClient) -> None:
    body = {
        "agents_yaml": "researcher:\n  role: Senior Researcher\n",
        "tasks_yaml": "find:\n  description: Find bees\n",
    }
    made = await acme.http.post("/executions/generate-name", json=body)
    assert made.status_code == 200, made.text
    name = made.json()["name"]
    assert len(name) <= 60
    assert 2 <= len(name.replace("-", " ").split()) <= 6
    worker = await create_model_agent(acme, "smollm2", max_tokens=3)
    ran = await acme.http.post(f"/agents/{worker['id']}/execute", json={"task": "Hello", "run_name": name})
    assert ran.json()["run_name"] == name


# Others


async def test_an_agent_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    for name in ("email_tool", "knowledge_base_tool"):
        await tool(acme, name)
    name = await thinker(acme, provider, AGENT)
    made = await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})
    assert made.status_code == 200, made.text
    answer = made.json()
    assert answer["agent"] == {**AGENT, "model": name}
    created = await create(acme, "/agents", answer["agent"])
    assert {field: created[field] for field in AGENT} == AGENT
    # What was asked, and what was offered to choose among.
    asked = provider.requests[-1].body
    assert SERVICE in asked["messages"][-1]["content"]
    schema = asked["response_format"]["json_schema"]["schema"]
    offered = schema["properties"]["tools"]["items"]["enum"]
    assert {"email_tool", "knowledge_base_tool", "python"} <= set(offered)
    assert "email_tool" in asked["messages"][0]["content"]
    # It is an execution like any other.
    execution = (await acme.http.get(f"/executions/{answer['execution_id']}")).json()
    assert (execution["kind"], execution["status"], execution["agent_id"]) == ("generation", "completed", None)
    assert execution["output_data"] == AGENT
    listed = (await acme.http.get("/executions?kind=generation")).json()["items"]
    assert [one["id"] for one in listed] == [answer["execution_id"]]
    # Later on its name is taken, by that very agent.
    later = (await acme.http.get(f"/agent-generation/{answer['execution_id']}")).json()
    assert later["agent"]["name"] == "Customer Service Agent 2"
    for path in ("task", "crew"):
        assert (await acme.http.get(f"/{path}-generation/{answer['execution_id']}")).status_code == 404


async def test_tools_to_choose_among(acme: TenantClient, provider: FakeProvider) -> None:
    await tool(acme, "Email Tool")
    name = await thinker(
        acme, provider, {**AGENT, "tools": ["email_tool", "email_tool"]}, {**AGENT, "tools": ["python"]}
    )
    body = {"description": SERVICE, "model": name, "tools": ["Email Tool"]}
    chosen = (await acme.http.post("/agent-generation/generate", json=body)).json()
    assert chosen["agent"]["tools"] == ["email_tool"]
    asked = provider.requests[-1].body["response_format"]["json_schema"]["schema"]
    assert asked["properties"]["tools"]["items"]["enum"] == ["email_tool"]
    # One that was not offered is none that it may choose.
    other = await acme.http.post("/agent-generation/generate", json=body)
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "model")
    provider.queue_text(json.dumps({name: AGENT[name] for name in AGENT if name != "tools"}), to=name)
    none = await acme.http.post("/agent-generation/generate", json={**body, "tools": []})
    assert none.json()["agent"]["tools"] == []
    assert "tools" not in provider.requests[-1].body["response_format"]["json_schema"]["schema"]["properties"]
    # A tool that is gone by the time somebody looks is not named.
    await acme.http.delete("/tools/email_tool")
    assert (await acme.http.get(f"/agent-generation/{chosen['execution_id']}")).json()["agent"]["tools"] == []


async def test_a_task_for_an_agent_that_there_is(acme: TenantClient, provider: FakeProvider) -> None:
    analyst = await create_model_agent(acme, "smollm2")
    said = {"name": "Feedback: 2024/25", "description": "Read it.", "expected_output": "A table.", "tools": ["python"]}
    name = await thinker(acme, provider, {**said, "agent": analyst["name"]}, {**said, "agent": None})
    body = {"description": FEEDBACK, "model": name}
    first = (await acme.http.post("/task-generation/generate", json=body)).json()
    task = first["task"]
    assert task == {**said, "name": "Feedback 2024 25", "agent": analyst["name"]}
    created = await create(acme, "/tasks", task)
    assert created["tools"] == ["python"]
    second = (await acme.http.post("/task-generation/generate", json=body)).json()["task"]
    assert (second["name"], second["agent"]) == ("Feedback 2024 25 2", None)
    # An agent that is gone by the time somebody looks is not named.
    assert (await acme.http.delete(f"/agents/{analyst['id']}")).status_code == 204
    assert (await acme.http.get(f"/task-generation/{first['execution_id']}")).json()["task"]["agent"] is None


async def test_a_crew_is_put_right(acme: TenantClient, provider: FakeProvider) -> None:
    """Agents of one name, tasks of agents that are none, names that cannot stand in a path: all of it can be created."""
    await create_model_agent(acme, "smollm2", name="Writer")
    one = {"role": "Writer", "goal": "Write: well # always", "backstory": "You are\na writer.", "tools": []}
    work = {"description": "Do {topic}.", "expected_output": "- text", "tools": ["python"]}
    said = {
        "name": "Content / Crew",
        "description": "Makes content",
        "process": "hierarchical",
        "agents": [{**one, "name": "Writer"}, {**one, "name": "Writer"}, {**one, "name": "..."}],
        "tasks": [
            {**work, "name": "planning", "agent": "writer"},
            {**work, "name": "Write", "agent": "Nobody"},
            {**work, "name": "Write", "agent": ""},
        ],
    }
    name = await thinker(acme, provider, said)
    made = await acme.http.post("/crew-generation/generate", json={"description": CREW, "model": name})
    assert made.status_code == 200, made.text
    answer = made.json()
    assert [one["name"] for one in answer["agents"]] == ["Writer 2", "Writer 3", "Agent"]
    assert [one["name"] for one in answer["tasks"]] == ["planning", "Write", "Write 2"]
    assert [one["agent"] for one in answer["tasks"]] == ["Writer 2", "Writer 3", "Agent"]
    crew = answer["crew"]
    assert (crew["name"], crew["process"], crew["model"]) == ("Content Crew", "hierarchical", name)
    created = await create(acme, "/crews", crew)
    assert created["agents_yaml"] == crew["agents_yaml"]
    for draft in answer["agents"]:
        await create(acme, "/agents", draft)
    for draft in answer["tasks"]:
        await create(acme, "/tasks", draft)


async def test_a_crew_that_was_thought_up_runs(acme: TenantClient, provider: FakeProvider) -> None:
    said = {
        "name": "Bees",
        "description": "Writes of bees",
        "process": "sequential",
        "agents": [{"name": "Writer", "role": "Writer", "goal": "Write", "backstory": "You are one.", "tools": []}],
        "tasks": [
            {
                "name": "Write",
                "description": "Write of bees",
                "expected_output": "A text",
                "agent": "Writer",
                "tools": [],
            }
        ],
    }
    name = await thinker(acme, provider, said, "Bees are fine.")
    answer = (await acme.http.post("/crew-generation/generate", json={"description": CREW, "model": name})).json()
    crew = await create(acme, "/crews", answer["crew"])
    ran = await acme.http.post(f"/crews/{crew['id']}/execute", json={}, headers={"Prefer": "wait=30"})
    assert ran.json()["status"] == "completed", ran.text
    assert "Bees are fine." in json.dumps(ran.json()["result"])


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Research Team - AI Analysis", "Research Team - AI Analysis"),
        ("Research", "Research Run"),
        ("a b c d e f g h", "a b c d e f"),
    ],
)
async def test_names_of_runs(acme: TenantClient, provider: FakeProvider, said: str, name: str) -> None:
    model_name = await thinker(acme, provider, {"name": said})
    body = {"agents_yaml": "agent_config", "tasks_yaml": "task_config", "model": model_name}
    made = await acme.http.post("/executions/generate-name", json=body)
    assert made.status_code == 200, made.text
    assert made.json()["name"] == name
    question = provider.requests[-1].body["messages"][-1]["content"]
    assert "agent_config" in question
    assert "task_config" in question


# What goes wrong


@pytest.mark.parametrize(
    "answer",
    ["I would rather not.", '{"name": "x"}', "[]", json.dumps({**AGENT, "tools": [], "wheels": 4}), '{"name": "cu'],
)
async def test_a_model_that_answers_rubbish(acme: TenantClient, provider: FakeProvider, answer: str) -> None:
    name = await thinker(acme, provider, answer)
    before = len(provider.requests)
    made = await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})
    assert (made.status_code, made.json()["error"]) == (422, "invalid_field"), made.text
    assert made.json()["errors"][0]["field"] == "model"
    # It is asked once, and not again for an answer that it cannot give.
    assert len(provider.requests) == before + 1


async def test_a_model_that_does_not_answer(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_failure(401, to=name)
    refused = await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model"), refused.text
    for _ in range(4):
        provider.queue_failure(503, to=name)
    away = await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})
    assert (away.status_code, away.json()["error"]) == (503, "model_unavailable"), away.text


async def test_budgets_hold_for_generations(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    await create(acme, "/budgets", {"scope": "tenant", "limit_usd": 0.000001, "period": "total"})
    before = len(provider.requests)
    made = await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})
    assert (made.status_code, made.json()["error"]) == (402, "budget_exceeded"), made.text
    assert len(provider.requests) == before


async def test_a_generation_costs_what_its_call_costs(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    provider.queue_text(json.dumps({**AGENT, "tools": []}), to=name)
    made = (await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})).json()
    execution = (await acme.http.get(f"/executions/{made['execution_id']}")).json()
    (cost,) = [one for one in await stream_events(acme, made["execution_id"]) if one["type"] == "cost"]
    assert execution["total_cost"] == pytest.approx(cost["cost_usd"])
    assert execution["total_cost"] > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "description"),
        ({"description": ""}, "description"),
        ({"description": "x" * 4001}, "description"),
        ({"description": "x", "model": "no such"}, "model"),
        ({"description": "x", "tools": ["python", "no_such"]}, "tools[1]"),
        ({"description": "x", "temperature": 1}, "temperature"),
    ],
)
async def test_bad_input(acme: TenantClient, body: dict[str, Any], field: str) -> None:
    for path in ("agent", "task", "crew"):
        refused = await acme.http.post(f"/{path}-generation/generate", json=body)
        assert refused.status_code == 422, refused.text
        assert [one["field"] for one in refused.json()["errors"]] == [field]


async def test_a_name_needs_something_to_name(acme: TenantClient) -> None:
    for body in ({}, {"agents_yaml": " \n"}):
        refused = await acme.http.post("/executions/generate-name", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "description")


async def test_one_key_one_generation(acme: TenantClient, provider: FakeProvider) -> None:
    name = await thinker(acme, provider, {**AGENT, "tools": []})
    headers = {"Idempotency-Key": "the same"}
    body = {"description": SERVICE, "model": name}
    first = await acme.http.post("/agent-generation/generate", json=body, headers=headers)
    again = await acme.http.post("/agent-generation/generate", json=body, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert (await acme.http.get("/executions?kind=generation")).json()["total"] == 1


async def test_whoever_does_not_wait_asks_later(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_text(json.dumps({**AGENT, "tools": []}), to=name, wait=2.5)
    path = "/agent-generation/generate"
    hasty = await acme.http.post(path, json={"description": SERVICE, "model": name}, headers={"Prefer": "wait=1"})
    assert hasty.status_code == 200, hasty.text
    assert hasty.json()["agent"] is None
    assert hasty.json()["status"] in ("pending", "running")
    later = f"/agent-generation/{hasty.json()['execution_id']}"
    assert (await acme.http.get(later, headers={"Prefer": "wait=30"})).json()["agent"]["name"] == AGENT["name"]
    # A retry of it is one too.
    provider.queue_text(json.dumps({**AGENT, "name": "Second", "tools": []}), to=name)
    again = await acme.http.post(f"/executions/{hasty.json()['execution_id']}/retry")
    await wait_for_status(acme, again.json()["id"], "completed")
    assert (await acme.http.get(f"/agent-generation/{again.json()['id']}")).json()["agent"]["name"] == "Second"


async def test_a_generation_that_is_cancelled(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_hang(to=name)
    path = "/crew-generation/generate"
    made = await acme.http.post(path, json={"description": CREW, "model": name}, headers={"Prefer": "wait=1"})
    execution_id = made.json()["execution_id"]
    assert made.json() == {"crew": None, "agents": [], "tasks": [], "execution_id": execution_id, "status": "running"}
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    gone = await acme.http.get(f"/crew-generation/{execution_id}")
    assert (gone.status_code, gone.json()["error"]) == (409, "conflict")


async def test_generations_of_others_are_none(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    name = await thinker(acme, provider, {**AGENT, "tools": []})
    made = (await acme.http.post("/agent-generation/generate", json={"description": SERVICE, "model": name})).json()
    assert (await other_tenant.http.get(f"/agent-generation/{made['execution_id']}")).status_code == 404
