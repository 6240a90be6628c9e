"""Test generation of agents, tasks, crews and run names with the bodies that seeds/kasal.md shows."""

import json
from typing import Any

import pytest

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, stream_events, wait_for_status

AGENT_DESCRIPTION = "Create a customer service agent that can handle inquiries and escalate complex issues"
TASK_DESCRIPTION = "Create a task for analyzing customer feedback data"
CREW_DESCRIPTION = "Create a crew for content marketing including research, writing, and review"
KASAL_AGENT = {
    "name": "Customer Service Agent",
    "role": "Customer Support Specialist",
    "goal": "Provide excellent customer service and resolve inquiries",
    "backstory": "You are an experienced customer service professional...",
    "tools": ["email_tool", "knowledge_base_tool"],
}


async def create_tool(acme: TenantClient, name: str) -> None:
    configuration = {"api_endpoint": "https://api.example.com", "parameters": {}}
    response = await acme.http.post("/tools", json={"name": name, "configuration": configuration})
    assert response.status_code == 201, response.text


async def create_scripted_model(acme: TenantClient, provider: FakeProvider, *answers: Any) -> str:
    """Register a model that gives these answers in order; return its name."""
    name = await create_model(acme, provider, generate_name())
    for answer in answers:
        provider.queue_text(answer if isinstance(answer, str) else json.dumps(answer), to=name)
    return name


async def create_object(acme: TenantClient, path: str, body: Any) -> dict[str, Any]:
    response = await acme.http.post(path, json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


async def generate_locally(acme: TenantClient, kind: str, description: str) -> dict[str, Any]:
    """Generate with the local model and wait for its answer, also on a busy machine."""
    response = await acme.http.post(f"/{kind}-generation/generate", json={"description": description})
    assert response.status_code == 200, response.text
    if response.json()["status"] == "running":
        path = f"/{kind}-generation/{response.json()['execution_id']}"
        response = await acme.http.get(path, headers={"Prefer": "wait=60"})
    assert response.json()["status"] == "completed", response.text
    return dict(response.json())


# The local model


async def test_local_model_generates_an_agent(acme: TenantClient) -> None:
    answer = await generate_locally(acme, "agent", AGENT_DESCRIPTION)
    assert set(answer["agent"]) == {"name", "role", "goal", "backstory", "tools", "model"}
    assert answer["agent"]["model"] == "smollm2"
    created = await create_object(acme, "/agents", answer["agent"])
    assert (created["kind"], created["status"]) == ("llm", "ready")


async def test_local_model_generates_a_task(acme: TenantClient) -> None:
    task = (await generate_locally(acme, "task", TASK_DESCRIPTION))["task"]
    assert set(task) == {"name", "description", "expected_output", "agent", "tools"}
    created = await create_object(acme, "/tasks", task)
    assert created["description"] == task["description"]


async def test_local_model_generates_a_crew(acme: TenantClient) -> None:
    answer = await generate_locally(acme, "crew", CREW_DESCRIPTION)
    assert len(answer["agents"]) in (2, 3)
    assert len(answer["tasks"]) in (2, 3)
    created = await create_object(acme, "/crews", answer["crew"])
    assert created["process"] in ("sequential", "hierarchical")
    debugged = await acme.http.post(
        "/crews/debug", json={name: answer["crew"][name] for name in ("agents_yaml", "tasks_yaml", "process", "model")}
    )
    assert debugged.json()["valid"], debugged.text
    for draft in answer["agents"]:
        await create_object(acme, "/agents", draft)
    for draft in answer["tasks"]:
        await create_object(acme, "/tasks", draft)


async def test_local_model_generates_a_run_name(acme: TenantClient) -> None:
    body = {
        "agents_yaml": "researcher:\n  role: Senior Researcher\n",
        "tasks_yaml": "find:\n  description: Find bees\n",
    }
    response = await acme.http.post("/executions/generate-name", json=body)
    assert response.status_code == 200, response.text
    name = response.json()["name"]
    assert len(name) <= 60
    assert 2 <= len(name.replace("-", " ").split()) <= 6
    worker = await create_model_agent(acme, "smollm2", max_tokens=3)
    started = await acme.http.post(f"/agents/{worker['id']}/execute", json={"task": "Hello", "run_name": name})
    assert started.json()["run_name"] == name


# Models of providers


async def test_agent_generation_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    for name in ("email_tool", "knowledge_base_tool"):
        await create_tool(acme, name)
    name = await create_scripted_model(acme, provider, KASAL_AGENT)
    response = await acme.http.post(
        "/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name}
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["agent"] == {**KASAL_AGENT, "model": name}
    created = await create_object(acme, "/agents", answer["agent"])
    assert {field: created[field] for field in KASAL_AGENT} == KASAL_AGENT
    # The prompt and the offered tools.
    request_body = provider.requests[-1].body
    assert AGENT_DESCRIPTION in request_body["messages"][-1]["content"]
    schema = request_body["response_format"]["json_schema"]["schema"]
    offered_tools = schema["properties"]["tools"]["items"]["enum"]
    assert {"email_tool", "knowledge_base_tool", "python"} <= set(offered_tools)
    assert "email_tool" in request_body["messages"][0]["content"]
    # A generation is an execution.
    execution = (await acme.http.get(f"/executions/{answer['execution_id']}")).json()
    assert (execution["kind"], execution["status"], execution["agent_id"]) == ("generation", "completed", None)
    assert execution["output_data"] == KASAL_AGENT
    listed = (await acme.http.get("/executions?kind=generation")).json()["items"]
    assert [item["id"] for item in listed] == [answer["execution_id"]]
    # Afterwards its name is used by the created agent.
    generated_later = (await acme.http.get(f"/agent-generation/{answer['execution_id']}")).json()
    assert generated_later["agent"]["name"] == "Customer Service Agent 2"
    for path in ("task", "crew"):
        assert (await acme.http.get(f"/{path}-generation/{answer['execution_id']}")).status_code == 404


async def test_generated_agent_uses_only_offered_tools(acme: TenantClient, provider: FakeProvider) -> None:
    await create_tool(acme, "Email Tool")
    name = await create_scripted_model(
        acme, provider, {**KASAL_AGENT, "tools": ["email_tool", "email_tool"]}, {**KASAL_AGENT, "tools": ["python"]}
    )
    body = {"description": AGENT_DESCRIPTION, "model": name, "tools": ["Email Tool"]}
    chosen = (await acme.http.post("/agent-generation/generate", json=body)).json()
    assert chosen["agent"]["tools"] == ["email_tool"]
    answer_schema = provider.requests[-1].body["response_format"]["json_schema"]["schema"]
    assert answer_schema["properties"]["tools"]["items"]["enum"] == ["email_tool"]
    # A tool that was not offered cannot be chosen.
    not_offered = await acme.http.post("/agent-generation/generate", json=body)
    assert (not_offered.status_code, not_offered.json()["errors"][0]["field"]) == (422, "model")
    provider.queue_text(json.dumps({name: KASAL_AGENT[name] for name in KASAL_AGENT if name != "tools"}), to=name)
    without_tools = await acme.http.post("/agent-generation/generate", json={**body, "tools": []})
    assert without_tools.json()["agent"]["tools"] == []
    assert "tools" not in provider.requests[-1].body["response_format"]["json_schema"]["schema"]["properties"]
    # A tool that was deleted since is not named.
    await acme.http.delete("/tools/email_tool")
    assert (await acme.http.get(f"/agent-generation/{chosen['execution_id']}")).json()["agent"]["tools"] == []


async def test_generated_task_names_an_existing_agent(acme: TenantClient, provider: FakeProvider) -> None:
    analyst = await create_model_agent(acme, "smollm2")
    task_answer = {
        "name": "Feedback: 2024/25",
        "description": "Read it.",
        "expected_output": "A table.",
        "tools": ["python"],
    }
    name = await create_scripted_model(
        acme, provider, {**task_answer, "agent": analyst["name"]}, {**task_answer, "agent": None}
    )
    body = {"description": TASK_DESCRIPTION, "model": name}
    first = (await acme.http.post("/task-generation/generate", json=body)).json()
    task = first["task"]
    assert task == {**task_answer, "name": "Feedback 2024 25", "agent": analyst["name"]}
    created = await create_object(acme, "/tasks", task)
    assert created["tools"] == ["python"]
    second = (await acme.http.post("/task-generation/generate", json=body)).json()["task"]
    assert (second["name"], second["agent"]) == ("Feedback 2024 25 2", None)
    # An agent that was deleted since is not named.
    assert (await acme.http.delete(f"/agents/{analyst['id']}")).status_code == 204
    assert (await acme.http.get(f"/task-generation/{first['execution_id']}")).json()["task"]["agent"] is None


async def test_generated_crew_is_corrected(acme: TenantClient, provider: FakeProvider) -> None:
    """Correct duplicate names, unknown agents and invalid names, so that everything can be created."""
    await create_model_agent(acme, "smollm2", name="Writer")
    agent_fields = {"role": "Writer", "goal": "Write: well # always", "backstory": "You are\na writer.", "tools": []}
    task_fields = {"description": "Do {topic}.", "expected_output": "- text", "tools": ["python"]}
    crew_answer = {
        "name": "Content / Crew",
        "description": "Makes content",
        "process": "hierarchical",
        "agents": [
            {**agent_fields, "name": "Writer"},
            {**agent_fields, "name": "Writer"},
            {**agent_fields, "name": "..."},
        ],
        "tasks": [
            {**task_fields, "name": "planning", "agent": "writer"},
            {**task_fields, "name": "Write", "agent": "Missing"},
            {**task_fields, "name": "Write", "agent": ""},
        ],
    }
    name = await create_scripted_model(acme, provider, crew_answer)
    response = await acme.http.post("/crew-generation/generate", json={"description": CREW_DESCRIPTION, "model": name})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [draft["name"] for draft in answer["agents"]] == ["Writer 2", "Writer 3", "Agent"]
    assert [draft["name"] for draft in answer["tasks"]] == ["planning", "Write", "Write 2"]
    assert [draft["agent"] for draft in answer["tasks"]] == ["Writer 2", "Writer 3", "Agent"]
    crew = answer["crew"]
    assert (crew["name"], crew["process"], crew["model"]) == ("Content Crew", "hierarchical", name)
    created = await create_object(acme, "/crews", crew)
    assert created["agents_yaml"] == crew["agents_yaml"]
    for draft in answer["agents"]:
        await create_object(acme, "/agents", draft)
    for draft in answer["tasks"]:
        await create_object(acme, "/tasks", draft)


async def test_generated_crew_can_be_executed(acme: TenantClient, provider: FakeProvider) -> None:
    crew_answer = {
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
    name = await create_scripted_model(acme, provider, crew_answer, "Bees are fine.")
    answer = (
        await acme.http.post("/crew-generation/generate", json={"description": CREW_DESCRIPTION, "model": name})
    ).json()
    crew = await create_object(acme, "/crews", answer["crew"])
    started = await acme.http.post(f"/crews/{crew['id']}/execute", json={}, headers={"Prefer": "wait=30"})
    assert started.json()["status"] == "completed", started.text
    assert "Bees are fine." in json.dumps(started.json()["result"])


@pytest.mark.parametrize(
    ("generated_name", "name"),
    [
        ("Research Team - AI Analysis", "Research Team - AI Analysis"),
        ("Research", "Research Run"),
        ("a b c d e f g h", "a b c d e f"),
    ],
)
async def test_generated_run_names_are_cleaned(
    acme: TenantClient, provider: FakeProvider, generated_name: str, name: str
) -> None:
    model_name = await create_scripted_model(acme, provider, {"name": generated_name})
    body = {"agents_yaml": "agent_config", "tasks_yaml": "task_config", "model": model_name}
    response = await acme.http.post("/executions/generate-name", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["name"] == name
    question = provider.requests[-1].body["messages"][-1]["content"]
    assert "agent_config" in question
    assert "task_config" in question


# Errors


@pytest.mark.parametrize(
    "answer",
    [
        "I would rather not.",
        '{"name": "x"}',
        "[]",
        json.dumps({**KASAL_AGENT, "tools": [], "wheels": 4}),
        '{"name": "cu',
    ],
)
async def test_invalid_model_answer_is_refused_without_retry(
    acme: TenantClient, provider: FakeProvider, answer: str
) -> None:
    name = await create_scripted_model(acme, provider, answer)
    before = len(provider.requests)
    response = await acme.http.post(
        "/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name}
    )
    assert (response.status_code, response.json()["error"]) == (422, "invalid_field"), response.text
    assert response.json()["errors"][0]["field"] == "model"
    # The model is called once; an invalid answer is not retried.
    assert len(provider.requests) == before + 1


async def test_failing_model_is_reported(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_failure(401, to=name)
    refused = await acme.http.post("/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model"), refused.text
    for _ in range(4):
        provider.queue_failure(503, to=name)
    unavailable = await acme.http.post(
        "/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name}
    )
    assert (unavailable.status_code, unavailable.json()["error"]) == (503, "model_unavailable"), unavailable.text


async def test_budget_limits_generations(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    await create_object(acme, "/budgets", {"scope": "tenant", "limit_usd": 0.000001, "period": "total"})
    before = len(provider.requests)
    response = await acme.http.post(
        "/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name}
    )
    assert (response.status_code, response.json()["error"]) == (402, "budget_exceeded"), response.text
    assert len(provider.requests) == before


async def test_generation_costs_equal_its_model_call(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    provider.queue_text(json.dumps({**KASAL_AGENT, "tools": []}), to=name)
    response = (
        await acme.http.post("/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name})
    ).json()
    execution = (await acme.http.get(f"/executions/{response['execution_id']}")).json()
    (cost,) = [event for event in await stream_events(acme, response["execution_id"]) if event["type"] == "cost"]
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
async def test_invalid_description_is_refused_by_field(acme: TenantClient, body: dict[str, Any], field: str) -> None:
    for path in ("agent", "task", "crew"):
        refused = await acme.http.post(f"/{path}-generation/generate", json=body)
        assert refused.status_code == 422, refused.text
        assert [error["field"] for error in refused.json()["errors"]] == [field]


async def test_generate_name_requires_a_description(acme: TenantClient) -> None:
    for body in ({}, {"agents_yaml": " \n"}):
        refused = await acme.http.post("/executions/generate-name", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "description")


async def test_idempotency_key_starts_one_generation(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_scripted_model(acme, provider, {**KASAL_AGENT, "tools": []})
    headers = {"Idempotency-Key": "the same"}
    body = {"description": AGENT_DESCRIPTION, "model": name}
    first = await acme.http.post("/agent-generation/generate", json=body, headers=headers)
    repeated = await acme.http.post("/agent-generation/generate", json=body, headers=headers)
    assert repeated.headers["Idempotency-Replayed"] == "true"
    assert repeated.json() == first.json()
    assert (await acme.http.get("/executions?kind=generation")).json()["total"] == 1


async def test_unfinished_generation_can_be_read_later(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_text(json.dumps({**KASAL_AGENT, "tools": []}), to=name, wait=2.5)
    path = "/agent-generation/generate"
    unfinished = await acme.http.post(
        path, json={"description": AGENT_DESCRIPTION, "model": name}, headers={"Prefer": "wait=1"}
    )
    assert unfinished.status_code == 200, unfinished.text
    assert unfinished.json()["agent"] is None
    assert unfinished.json()["status"] in ("pending", "running")
    later = f"/agent-generation/{unfinished.json()['execution_id']}"
    assert (await acme.http.get(later, headers={"Prefer": "wait=30"})).json()["agent"]["name"] == KASAL_AGENT["name"]
    # A retry is a generation, too.
    provider.queue_text(json.dumps({**KASAL_AGENT, "name": "Second", "tools": []}), to=name)
    retried = await acme.http.post(f"/executions/{unfinished.json()['execution_id']}/retry")
    await wait_for_status(acme, retried.json()["id"], "completed")
    assert (await acme.http.get(f"/agent-generation/{retried.json()['id']}")).json()["agent"]["name"] == "Second"


async def test_cancelled_generation_conflicts(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_hang(to=name)
    path = "/crew-generation/generate"
    response = await acme.http.post(
        path, json={"description": CREW_DESCRIPTION, "model": name}, headers={"Prefer": "wait=1"}
    )
    execution_id = response.json()["execution_id"]
    assert response.json() == {
        "crew": None,
        "agents": [],
        "tasks": [],
        "execution_id": execution_id,
        "status": "running",
    }
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    cancelled = await acme.http.get(f"/crew-generation/{execution_id}")
    assert (cancelled.status_code, cancelled.json()["error"]) == (409, "conflict")


async def test_generations_of_other_tenants_are_not_found(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    name = await create_scripted_model(acme, provider, {**KASAL_AGENT, "tools": []})
    response = (
        await acme.http.post("/agent-generation/generate", json={"description": AGENT_DESCRIPTION, "model": name})
    ).json()
    assert (await other_tenant.http.get(f"/agent-generation/{response['execution_id']}")).status_code == 404
