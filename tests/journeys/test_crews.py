"""Test crews and tasks as seeds/kasal.md shows them, the errors for invalid ones, and their YAML."""

from typing import Any

import yaml

from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent, generate_name

AGENTS_YAML = """\
research_agent:
  role: >
    Senior Researcher
  goal: >
    Conduct thorough research on {topic}
  backstory: >
    You are an experienced researcher.
  allow_delegation: false
writer:
  role: Writer
  goal: Write what people like to read
  llm: smollm2
  max_iter: 4
"""
TASKS_YAML = """\
research:
  description: >
    Research the latest developments in {topic}
  expected_output: A comprehensive report on {topic}
  agent: research_agent
write:
  description: Write an article
  expected_output: An article of {words} words
  agent: writer
  context: [research]
  output_file: article.md
"""
KASAL_TASK = {
    "name": "Research Task",
    "description": "Research the latest developments in AI",
    "expected_output": "A comprehensive report on AI developments",
    "agent": "research_agent",
    "tools": ["search_tool"],
}
KASAL_CREW = {
    "name": "Research Team",
    "description": "Team specialized in research and analysis",
    "agents_yaml": AGENTS_YAML,
    "tasks_yaml": TASKS_YAML,
    "model": "gpt-4",
    "process": "sequential",
    "verbose": True,
}


async def create_search_tool(acme: TenantClient) -> None:
    tool = {"name": "search_tool", "tool_type": "custom", "configuration": {"api_endpoint": "https://api.example.com"}}
    assert (await acme.http.post("/tools", json=tool)).status_code == 201


async def create_object(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def list_refused_fields(answer: Any) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [error["field"] for error in answer.json()["errors"]]


# Tasks.


async def test_tasks_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    assert list_refused_fields(await web.post("/tasks", json=KASAL_TASK)) == ["agent", "tools[0]"]
    await create_search_tool(acme)
    await create_model_agent(acme, "smollm2", name="Research Agent")
    task = await create_object(acme, "/tasks", **KASAL_TASK)
    assert {name: task[name] for name in KASAL_TASK} == KASAL_TASK
    assert (task["slug"], task["context"], task["async_execution"]) == ("research_task", None, False)
    for reference in (task["id"], "Research Task", "research_task"):
        assert (await web.get(f"/tasks/{reference}")).json() == task
    listed = (await web.get("/tasks")).json()
    assert listed == {"items": [task], "total": 1, "limit": 100, "offset": 0, "has_more": False}

    changed = await web.put(f"/tasks/{task['id']}", json={"name": "Updated Task Name"})
    assert (changed.status_code, changed.json()["name"]) == (200, "Updated Task Name")
    assert changed.json()["description"] == KASAL_TASK["description"], "PUT changes only the sent fields"
    body = {
        "name": "Updated Research Task",
        "description": "Enhanced research requirements",
        "expected_output": "Detailed research report",
    }
    replaced = (await web.put(f"/tasks/{task['id']}/full", json=body)).json()
    assert {name: replaced[name] for name in body} == body
    assert (replaced["agent"], replaced["tools"], replaced["slug"]) == (None, [], "updated_research_task")
    patched = (await web.patch("/tasks/updated_research_task", json={"markdown": True})).json()
    assert (patched["markdown"], patched["expected_output"]) == (True, "Detailed research report")
    assert (await web.delete(f"/tasks/{task['id']}")).status_code == 204
    assert (await web.get(f"/tasks/{task['id']}")).status_code == 404


async def test_all_invalid_fields_of_a_task_are_reported_together(acme: TenantClient) -> None:
    body = {
        "name": "t",
        "description": "D",
        "agent": "missing",
        "tools": ["python", "no_tool"],
        "context": ["no_task"],
        "output_file": "../etc/passwd",
    }
    assert list_refused_fields(await acme.http.post("/tasks", json=body)) == [
        "agent",
        "tools[1]",
        "output_file",
        "context[0]",
    ]
    assert list_refused_fields(await acme.http.post("/tasks", json={"name": "t"})) == ["description"]
    assert list_refused_fields(
        await acme.http.post("/tasks", json={"name": "t", "description": "D", "colour": "red"})
    ) == ["colour"]
    assert list_refused_fields(await acme.http.post("/tasks", json={"name": " ", "description": "D"})) == ["name"]
    await create_object(acme, "/tasks", name="One Task", description="D")
    duplicate = await acme.http.post("/tasks", json={"name": "one-task", "description": "D"})
    assert (duplicate.status_code, duplicate.json()["error"]) == (409, "conflict")
    await create_object(acme, "/tasks", name="Other", description="D")
    assert (await acme.http.patch("/tasks/Other", json={"name": "One Task"})).status_code == 409


async def test_task_context_cannot_form_a_cycle_or_be_deleted(acme: TenantClient) -> None:
    web = acme.http
    first = await create_object(acme, "/tasks", name="first", description="D")
    second = await create_object(acme, "/tasks", name="second", description="D", context=["first", first["id"]])
    third = await create_object(acme, "/tasks", name="third", description="D", context=["second"])
    assert (second["context"], third["context"]) == ([first["id"]], [second["id"]])
    for context in (["first"], ["third"]):
        assert list_refused_fields(await web.patch("/tasks/first", json={"context": context})) == ["context"]
    refused = await web.delete("/tasks/first")
    assert (refused.status_code, "'second'" in refused.json()["detail"]) == (409, True)
    assert (await web.patch("/tasks/second", json={"context": None})).json()["context"] is None
    assert (await web.delete("/tasks/first")).status_code == 204


# Crews.


async def test_crews_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    crew = await create_object(acme, "/crews", **KASAL_CREW)
    assert {name: crew[name] for name in KASAL_CREW} == KASAL_CREW, "the texts are stored as they were sent"
    assert (crew["agents"], crew["tasks"], crew["tenant_id"]) == ([], [], acme.tenant_id)
    for reference in (crew["id"], "Research Team"):
        assert (await web.get(f"/crews/{reference}")).json() == crew
    assert (await web.get("/crews")).json()["items"] == [crew]
    body = {"name": "Updated Research Team", "description": "Enhanced research capabilities"}
    changed = await web.put(f"/crews/{crew['id']}", json=body)
    assert {name: changed.json()[name] for name in body} == body
    assert changed.json()["tasks_yaml"] == TASKS_YAML
    duplicate = await web.post("/crews", json={**KASAL_CREW, "name": "Updated Research Team"})
    assert (duplicate.status_code, duplicate.json()["error"]) == (409, "conflict")
    assert (await web.delete("/crews/Updated Research Team")).status_code == 204
    assert (await web.get(f"/crews/{crew['id']}")).status_code == 404


async def test_debug_of_a_valid_crew_shows_its_steps(acme: TenantClient) -> None:
    answer = await acme.http.post("/crews/debug", json={"agents_yaml": AGENTS_YAML, "tasks_yaml": TASKS_YAML})
    assert answer.status_code == 200
    result = answer.json()
    assert (result["valid"], result["errors"], result["inputs"]) == (True, [], ["topic", "words"])
    assert [(agent["key"], agent["role"], agent["model"]) for agent in result["agents"]] == [
        ("research_agent", "Senior Researcher", None),
        ("writer", "Writer", "smollm2"),
    ]
    assert [(task["key"], task["agent"], task["context"], task["output_file"]) for task in result["tasks"]] == [
        ("research", "research_agent", [], None),
        ("write", "writer", ["research"], "article.md"),
    ]
    assert [(step["id"], step["agent"], step["depends_on"]) for step in result["steps"]] == [
        ("research", "research_agent", []),
        ("write", "writer", ["research"]),
    ]
    assert [(warning["field"], warning["line"]) for warning in result["warnings"]] == [
        ("agents_yaml.research_agent", 1)
    ]
    manager_fields = {"process": "hierarchical", "planning": True, "model": "smollm2", "manager_agent": "writer"}
    debugged = await acme.http.post(
        "/crews/debug", json={"agents_yaml": AGENTS_YAML, "tasks_yaml": MANAGED_TASKS_YAML, **manager_fields}
    )
    steps = debugged.json()["steps"]
    assert [(step["id"], step["agent"], step["depends_on"]) for step in steps] == [
        ("planning", "planner", []),
        ("research", "writer", ["planning"]),
    ]


MANAGED_TASKS_YAML = "research:\n  description: Look into {topic}\n  expected_output: A list\n"

INVALID_AGENTS_YAML = """\
researcher:
  role: Researcher
  goal: Find out
  llm: no-such-model
  tools: [no_tool]
  mood: fine
writer:
  goal: Write
  max_iter: a lot
idle:
  role: Idler
  goal: Rest
  allow_delegation: false
"""
INVALID_TASKS_YAML = """\
research:
  description: Look into it
  agent: researcher
  context: [write]
write:
  description: Write it down
  expected_output: A report
  agent: missing
  context: [research, gossip]
  tools: [http_request, no_tool]
  output_file: /etc/passwd
  callback: notify.done
proofread:
  expected_output: A report without mistakes
  agent: writer
  context: [publish]
publish:
  description: Put it up
  expected_output: A link
"""


async def test_debug_reports_all_problems_together(acme: TenantClient) -> None:
    body = {
        "agents_yaml": INVALID_AGENTS_YAML,
        "tasks_yaml": INVALID_TASKS_YAML,
        "model": "nor-this-one",
        "manager_agent": "writer",
        "planning_model": "smollm2",
        "agents": ["missing agent"],
        "tasks": ["no task"],
    }
    answer = await acme.http.post("/crews/debug", json=body)
    assert answer.status_code == 200
    result = answer.json()
    assert result["valid"] is False
    assert result["steps"] == []
    errors = {error["field"]: (error["line"], error["message"]) for error in result["errors"]}
    assert {field: line for field, (line, _) in errors.items()} == {
        "agents_yaml.researcher.llm": 4,
        "agents_yaml.researcher.tools[0]": 5,
        "agents_yaml.researcher.mood": 6,
        "agents_yaml.writer.role": 7,
        "agents_yaml.writer.max_iter": 9,
        "tasks_yaml.research.context[0]": 4,
        "tasks_yaml.write.agent": 8,
        "tasks_yaml.write.context[1]": 9,
        "tasks_yaml.write.tools[1]": 10,
        "tasks_yaml.write.output_file": 11,
        "tasks_yaml.write.callback": 12,
        "tasks_yaml.proofread.description": 13,
        "tasks_yaml.proofread.context[0]": 16,
        "tasks_yaml.publish.agent": 17,
        "model": None,
        "manager_agent": None,
        "planning_model": None,
        "agents[0]": None,
        "tasks[0]": None,
    }
    assert "research → write → research" in errors["tasks_yaml.research.context[0]"][1]
    assert "comes later" in errors["tasks_yaml.proofread.context[0]"][1]
    assert "code" in errors["tasks_yaml.write.callback"][1]
    warning_lines = {warning["field"]: warning["line"] for warning in result["warnings"]}
    assert warning_lines == {"agents_yaml.idle": 10, "tasks_yaml.research.expected_output": 1}


async def test_unreadable_documents_are_both_reported(acme: TenantClient) -> None:
    alias_bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for document in (
        alias_bomb,
        "a: !!python/object/apply:os.system [ls]\n",
        "a:\n\tb: c\n",
        "a: {\n",
        "a: 1\n---\nb: 2\n",
    ):
        answer = await acme.http.post("/crews/debug", json={"agents_yaml": document, "tasks_yaml": document})
        assert answer.status_code == 200, answer.text
        errors = answer.json()["errors"]
        assert {error["field"].split(".")[0] for error in errors} == {"agents_yaml", "tasks_yaml"}, document
        assert all(error["line"] for error in errors), errors
        refused = await acme.http.post("/crews", json={"name": "x", "agents_yaml": document, "tasks_yaml": document})
        assert all(" (line " in field for field in list_refused_fields(refused))


async def test_invalid_crew_is_refused(acme: TenantClient) -> None:
    web = acme.http
    invalid_tasks = TASKS_YAML.replace("agent: writer", "agent: missing").replace("[research]", "[gossip]")
    refused = await web.post("/crews", json={**KASAL_CREW, "tasks_yaml": invalid_tasks})
    assert list_refused_fields(refused) == ["tasks_yaml.write.agent (line 9)", "tasks_yaml.write.context[0] (line 10)"]
    crew = await create_object(acme, "/crews", **KASAL_CREW)
    for path in (f"/crews/{crew['id']}", "/crews/Research Team"):
        assert list_refused_fields(await web.patch(path, json={"tasks_yaml": invalid_tasks})) == list_refused_fields(
            refused
        )
        assert list_refused_fields(await web.put(path, json={"manager_model": "gpt-4"})) == ["manager_model"]
    assert (await web.get(f"/crews/{crew['id']}")).json() == crew
    escaping_tasks = TASKS_YAML.replace("article.md", "../about-{topic}.md")
    for body, field in (
        ({**KASAL_CREW, "name": "x", "tasks_yaml": escaping_tasks}, "tasks_yaml.write.output_file (line 11)"),
        ({"name": "debug"}, "name"),
        ({"name": "x", "agents_yaml": AGENTS_YAML}, "tasks_yaml"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({**KASAL_CREW, "name": "x", "max_rpm": 0}, "max_rpm"),
        ({**KASAL_CREW, "name": "x", "process": "parallel"}, "process"),
        ({"name": "x", "process": "hierarchical", "tasks_yaml": MANAGED_TASKS_YAML}, "agents_yaml"),
        (
            {**KASAL_CREW, "name": "x", "process": "hierarchical", "manager_agent": "writer"},
            "tasks_yaml.write.agent (line 9)",
        ),
        (
            {**KASAL_CREW, "name": "x", "planning": True, "tasks_yaml": TASKS_YAML.replace("write:", "planning:")},
            "tasks_yaml.planning (line 6)",
        ),
    ):
        assert list_refused_fields(await web.post("/crews", json=body)) == [field], body


async def test_number_of_tools_of_a_crew_is_limited(acme: TenantClient) -> None:
    agents = "".join(
        f"a{n}: {{role: R, goal: G, llm: smollm2, tools: [{', '.join(f't{n}_{m}' for m in range(60))}]}}\n"
        for n in range(17)
    )
    body = {"agents_yaml": agents, "tasks_yaml": "t: {description: D, expected_output: E, agent: a0}\n"}
    result = (await acme.http.post("/crews/debug", json=body)).json()
    assert [error["message"].split(";")[0] for error in result["errors"]] == ["the crew names 1020 tools"]


async def test_crew_of_catalog_agents_and_tasks(acme: TenantClient) -> None:
    web = acme.http
    await create_search_tool(acme)
    searcher = await create_model_agent(
        acme,
        "gpt-4",
        name="Research Agent",
        role="Researcher",
        goal="Find {topic}",
        instructions="Say where\nyou found it.\n",
        tools=["search_tool"],
        provider="openai",
        temperature=0.5,
        max_steps=9,
        timeout=77,
        allow_delegation=True,
    )
    research = await create_object(acme, "/tasks", name="Research Task", description="Look", agent="research_agent")
    task_fields = {"context": ["Research Task"], "markdown": True, "output_file": "a.md", "async_execution": True}
    report = await create_object(
        acme,
        "/tasks",
        name="Report",
        description="Write of {length}",
        agent=searcher["id"],
        tools=["python"],
        **task_fields,
    )
    crew = await create_object(
        acme, "/crews", name="found", agents=["Research Agent"], tasks=["research_task", report["id"]]
    )
    assert (crew["agents"], crew["tasks"]) == ([searcher["id"]], [research["id"], report["id"]])
    refused = await web.delete("/tasks/Research Task")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")

    written = (await web.get("/crews/found/yaml")).json()
    assert yaml.safe_load(written["agents_yaml"]) == {
        "research_agent": {
            "role": "Researcher",
            "goal": "Find {topic}",
            "instructions": "Say where\nyou found it.\n",
            "llm": "openai/gpt-4",
            "tools": ["search_tool"],
            "allow_delegation": True,
            "max_iter": 9,
            "max_execution_time": 77,
            "temperature": 0.5,
        }
    }
    assert yaml.safe_load(written["tasks_yaml"]) == {
        "research_task": {"name": "Research Task", "description": "Look", "agent": "research_agent"},
        "report": {
            "name": "Report",
            "description": "Write of {length}",
            "agent": "research_agent",
            "context": ["research_task"],
            "tools": ["python"],
            "async_execution": True,
            "markdown": True,
            "output_file": "a.md",
        },
    }
    copied = await create_object(acme, "/crews", name="again", **written)
    assert (await web.get(f"/crews/{copied['id']}/yaml")).json() == written
    from_catalog, from_yaml = [
        (await web.post("/crews/debug", json=body)).json()
        for body in ({"agents": crew["agents"], "tasks": crew["tasks"]}, written)
    ]
    for field in ("tasks", "inputs", "steps"):
        assert from_catalog[field] == from_yaml[field]
    # A key of the document wins over an agent of the tenant; catalog tasks come last.
    mixed_body = {"agents_yaml": "research_agent: {role: Other, goal: G}\n", "tasks": ["research_task"]}
    mixed = await web.post(
        "/crews/debug", json={**mixed_body, "tasks_yaml": "first: {description: D, agent: Research Agent}\n"}
    )
    assert [(task["key"], task["agent"]) for task in mixed.json()["tasks"]] == [
        ("first", "research_agent_2"),
        ("research_task", "research_agent"),
    ]


async def test_inconsistent_catalog_crews_are_refused(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="worker")
    await create_object(acme, "/tasks", name="lonely", description="D")
    first = await create_object(acme, "/tasks", name="first", description="D", agent="worker")
    second = await create_object(acme, "/tasks", name="second", description="D", agent="worker", context=["first"])
    for body, expected in (
        ({"tasks": ["lonely"]}, ["tasks[0].agent"]),
        ({"tasks": ["second", "first"]}, ["tasks[0].context[0]"]),
        ({"tasks": ["second"]}, ["tasks[0].context[0]"]),
        ({"tasks": ["first", first["id"]]}, ["tasks[1]"]),
        ({"tasks": [first["id"], second["id"]], "agents": ["worker", "worker"]}, ["agents[1]"]),
        (
            {"tasks": ["first"], "tasks_yaml": "first: {description: D, agent: worker, context: []}"},
            ["tasks[0]"],
        ),
    ):
        assert list_refused_fields(await acme.http.post("/crews", json={"name": "x", **body})) == expected, body
    assert (await acme.http.patch("/agents/worker", json={"status": "archived"})).status_code == 200
    assert list_refused_fields(await acme.http.post("/crews", json={"name": "x", "tasks": ["first"]})) == [
        "tasks[0].agent"
    ]


async def test_crew_lists_omit_long_texts(acme: TenantClient) -> None:
    long = AGENTS_YAML + "#" * 17_000
    crew = await create_object(acme, "/crews", **{**KASAL_CREW, "agents_yaml": long})
    (listed,) = (await acme.http.get("/crews")).json()["items"]
    assert (listed["agents_yaml"], listed["tasks_yaml"]) == (None, TASKS_YAML)
    assert (await acme.http.get(f"/crews/{crew['id']}")).json()["agents_yaml"] == long


async def test_idempotency_key_creates_one_crew(acme: TenantClient) -> None:
    name = generate_name("crew")
    headers = {"Idempotency-Key": name}
    first = await acme.http.post("/crews", json={**KASAL_CREW, "name": name}, headers=headers)
    second = await acme.http.post("/crews", json={**KASAL_CREW, "name": name}, headers=headers)
    assert (first.json(), second.headers["Idempotency-Replayed"]) == (second.json(), "true")
    task = {"name": name, "description": "D"}
    assert [
        (await acme.http.post("/tasks", json=task, headers={"Idempotency-Key": f"t{name}"})).status_code for _ in "ab"
    ] == [201, 201]
