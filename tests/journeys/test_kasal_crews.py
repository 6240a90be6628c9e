"""Kasal's crews and tasks, as seeds/kasal.md shows them, what is said of mistakes in them, and their form in YAML."""

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
TASK = {
    "name": "Research Task",
    "description": "Research the latest developments in AI",
    "expected_output": "A comprehensive report on AI developments",
    "agent": "research_agent",
    "tools": ["search_tool"],
}
CREW = {
    "name": "Research Team",
    "description": "Team specialized in research and analysis",
    "agents_yaml": AGENTS_YAML,
    "tasks_yaml": TASKS_YAML,
    "model": "gpt-4",
    "process": "sequential",
    "verbose": True,
}


async def search_tool(acme: TenantClient) -> None:
    tool = {"name": "search_tool", "tool_type": "custom", "configuration": {"api_endpoint": "https://api.example.com"}}
    assert (await acme.http.post("/tools", json=tool)).status_code == 201


async def made(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def fields(answer: Any) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [one["field"] for one in answer.json()["errors"]]


# tasks


async def test_tasks_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    assert fields(await web.post("/tasks", json=TASK)) == ["agent", "tools[0]"]
    await search_tool(acme)
    await create_model_agent(acme, "smollm2", name="Research Agent")
    task = await made(acme, "/tasks", **TASK)
    assert {name: task[name] for name in TASK} == TASK
    assert (task["slug"], task["context"], task["async_execution"]) == ("research_task", None, False)
    for reference in (task["id"], "Research Task", "research_task"):
        assert (await web.get(f"/tasks/{reference}")).json() == task
    listed = (await web.get("/tasks")).json()
    assert listed == {"items": [task], "total": 1, "limit": 100, "offset": 0, "has_more": False}

    changed = await web.put(f"/tasks/{task['id']}", json={"name": "Updated Task Name"})
    assert (changed.status_code, changed.json()["name"]) == (200, "Updated Task Name")
    assert changed.json()["description"] == TASK["description"], "PUT changes what is sent"
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


async def test_what_is_wrong_with_a_task_is_told_at_once(acme: TenantClient) -> None:
    body = {
        "name": "t",
        "description": "D",
        "agent": "nobody",
        "tools": ["python", "no_tool"],
        "context": ["no_task"],
        "output_file": "../etc/passwd",
    }
    assert fields(await acme.http.post("/tasks", json=body)) == ["agent", "tools[1]", "output_file", "context[0]"]
    assert fields(await acme.http.post("/tasks", json={"name": "t"})) == ["description"]
    assert fields(await acme.http.post("/tasks", json={"name": "t", "description": "D", "colour": "red"})) == ["colour"]
    assert fields(await acme.http.post("/tasks", json={"name": " ", "description": "D"})) == ["name"]
    await made(acme, "/tasks", name="One Task", description="D")
    again = await acme.http.post("/tasks", json={"name": "one-task", "description": "D"})
    assert (again.status_code, again.json()["error"]) == (409, "conflict")
    await made(acme, "/tasks", name="Other", description="D")
    assert (await acme.http.patch("/tasks/Other", json={"name": "One Task"})).status_code == 409


async def test_tasks_that_need_one_another(acme: TenantClient) -> None:
    web = acme.http
    first = await made(acme, "/tasks", name="first", description="D")
    second = await made(acme, "/tasks", name="second", description="D", context=["first", first["id"]])
    third = await made(acme, "/tasks", name="third", description="D", context=["second"])
    assert (second["context"], third["context"]) == ([first["id"]], [second["id"]])
    for context in (["first"], ["third"]):
        assert fields(await web.patch("/tasks/first", json={"context": context})) == ["context"]
    kept = await web.delete("/tasks/first")
    assert (kept.status_code, "'second'" in kept.json()["detail"]) == (409, True)
    assert (await web.patch("/tasks/second", json={"context": None})).json()["context"] is None
    assert (await web.delete("/tasks/first")).status_code == 204


# crews


async def test_crews_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    crew = await made(acme, "/crews", **CREW)
    assert {name: crew[name] for name in CREW} == CREW, "the texts too, as they were sent"
    assert (crew["agents"], crew["tasks"], crew["tenant_id"]) == ([], [], acme.tenant_id)
    for reference in (crew["id"], "Research Team"):
        assert (await web.get(f"/crews/{reference}")).json() == crew
    assert (await web.get("/crews")).json()["items"] == [crew]
    body = {"name": "Updated Research Team", "description": "Enhanced research capabilities"}
    changed = await web.put(f"/crews/{crew['id']}", json=body)
    assert {name: changed.json()[name] for name in body} == body
    assert changed.json()["tasks_yaml"] == TASKS_YAML
    taken = await web.post("/crews", json={**CREW, "name": "Updated Research Team"})
    assert (taken.status_code, taken.json()["error"]) == (409, "conflict")
    assert (await web.delete("/crews/Updated Research Team")).status_code == 204
    assert (await web.get(f"/crews/{crew['id']}")).status_code == 404


async def test_a_crew_without_a_mistake_shows_what_it_comes_to(acme: TenantClient) -> None:
    answer = await acme.http.post("/crews/debug", json={"agents_yaml": AGENTS_YAML, "tasks_yaml": TASKS_YAML})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["valid"], found["errors"], found["inputs"]) == (True, [], ["topic", "words"])
    assert [(one["key"], one["role"], one["model"]) for one in found["agents"]] == [
        ("research_agent", "Senior Researcher", None),
        ("writer", "Writer", "smollm2"),
    ]
    assert [(one["key"], one["agent"], one["context"], one["output_file"]) for one in found["tasks"]] == [
        ("research", "research_agent", [], None),
        ("write", "writer", ["research"], "article.md"),
    ]
    assert [(one["id"], one["agent"], one["depends_on"]) for one in found["steps"]] == [
        ("research", "research_agent", []),
        ("write", "writer", ["research"]),
    ]
    assert [(one["field"], one["line"]) for one in found["warnings"]] == [("agents_yaml.research_agent", 1)]
    led = {"process": "hierarchical", "planning": True, "model": "smollm2", "manager_agent": "writer"}
    debugged = await acme.http.post("/crews/debug", json={"agents_yaml": AGENTS_YAML, "tasks_yaml": LED, **led})
    steps = debugged.json()["steps"]
    assert [(one["id"], one["agent"], one["depends_on"]) for one in steps] == [
        ("planning", "planner", []),
        ("research", "writer", ["planning"]),
    ]


LED = "research:\n  description: Look into {topic}\n  expected_output: A list\n"

WRONG_AGENTS = """\
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
WRONG_TASKS = """\
research:
  description: Look into it
  agent: researcher
  context: [write]
write:
  description: Write it down
  expected_output: A report
  agent: nobody
  context: [research, gossip]
  tools: [http_request, no_tool]
  output_file: /etc/passwd
  human_input: true
proofread:
  expected_output: A report without mistakes
  agent: writer
  context: [publish]
publish:
  description: Put it up
  expected_output: A link
"""


async def test_debug_finds_every_mistake_at_once(acme: TenantClient) -> None:
    body = {
        "agents_yaml": WRONG_AGENTS,
        "tasks_yaml": WRONG_TASKS,
        "model": "nor-this-one",
        "manager_agent": "writer",
        "planning_model": "smollm2",
        "agents": ["nobody at all"],
        "tasks": ["no task"],
    }
    answer = await acme.http.post("/crews/debug", json=body)
    assert answer.status_code == 200
    found = answer.json()
    assert found["valid"] is False
    assert found["steps"] == []
    told = {one["field"]: (one["line"], one["message"]) for one in found["errors"]}
    assert {field: line for field, (line, _) in told.items()} == {
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
        "tasks_yaml.write.human_input": 12,
        "tasks_yaml.proofread.description": 13,
        "tasks_yaml.proofread.context[0]": 16,
        "tasks_yaml.publish.agent": 17,
        "model": None,
        "manager_agent": None,
        "planning_model": None,
        "agents[0]": None,
        "tasks[0]": None,
    }
    assert "research → write → research" in told["tasks_yaml.research.context[0]"][1]
    assert "comes later" in told["tasks_yaml.proofread.context[0]"][1]
    assert "let a step require an approval" in told["tasks_yaml.write.human_input"][1]
    warned = {one["field"]: one["line"] for one in found["warnings"]}
    assert warned == {"agents_yaml.idle": 10, "tasks_yaml.research.expected_output": 1}


async def test_documents_that_cannot_be_read_are_told_of_both(acme: TenantClient) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for broken in (bomb, "a: !!python/object/apply:os.system [ls]\n", "a:\n\tb: c\n", "a: {\n", "a: 1\n---\nb: 2\n"):
        answer = await acme.http.post("/crews/debug", json={"agents_yaml": broken, "tasks_yaml": broken})
        assert answer.status_code == 200, answer.text
        told = answer.json()["errors"]
        assert {one["field"].split(".")[0] for one in told} == {"agents_yaml", "tasks_yaml"}, broken
        assert all(one["line"] for one in told), told
        refused = await acme.http.post("/crews", json={"name": "x", "agents_yaml": broken, "tasks_yaml": broken})
        assert all(" (line " in field for field in fields(refused))


async def test_a_crew_with_mistakes_is_not_let_in(acme: TenantClient) -> None:
    web = acme.http
    wrong = TASKS_YAML.replace("agent: writer", "agent: nobody").replace("[research]", "[gossip]")
    refused = await web.post("/crews", json={**CREW, "tasks_yaml": wrong})
    assert fields(refused) == ["tasks_yaml.write.agent (line 9)", "tasks_yaml.write.context[0] (line 10)"]
    crew = await made(acme, "/crews", **CREW)
    for path in (f"/crews/{crew['id']}", "/crews/Research Team"):
        assert fields(await web.patch(path, json={"tasks_yaml": wrong})) == fields(refused)
        assert fields(await web.put(path, json={"manager_model": "gpt-4"})) == ["manager_model"]
    assert (await web.get(f"/crews/{crew['id']}")).json() == crew
    outside = TASKS_YAML.replace("article.md", "../about-{topic}.md")
    for body, field in (
        ({**CREW, "name": "x", "tasks_yaml": outside}, "tasks_yaml.write.output_file (line 11)"),
        ({"name": "debug"}, "name"),
        ({"name": "x", "agents_yaml": AGENTS_YAML}, "tasks_yaml"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({**CREW, "name": "x", "max_rpm": 0}, "max_rpm"),
        ({**CREW, "name": "x", "process": "parallel"}, "process"),
        ({"name": "x", "process": "hierarchical", "tasks_yaml": LED}, "agents_yaml"),
        (
            {**CREW, "name": "x", "process": "hierarchical", "manager_agent": "writer"},
            "tasks_yaml.write.agent (line 9)",
        ),
        (
            {**CREW, "name": "x", "planning": True, "tasks_yaml": TASKS_YAML.replace("write:", "planning:")},
            "tasks_yaml.planning (line 6)",
        ),
    ):
        assert fields(await web.post("/crews", json=body)) == [field], body


async def test_a_crew_does_not_name_tools_without_end(acme: TenantClient) -> None:
    agents = "".join(
        f"a{n}: {{role: R, goal: G, llm: smollm2, tools: [{', '.join(f't{n}_{m}' for m in range(60))}]}}\n"
        for n in range(17)
    )
    body = {"agents_yaml": agents, "tasks_yaml": "t: {description: D, expected_output: E, agent: a0}\n"}
    found = (await acme.http.post("/crews/debug", json=body)).json()
    assert [one["message"].split(";")[0] for one in found["errors"]] == ["the crew names 1020 tools"]


async def test_crews_of_what_is_in_the_catalogue(acme: TenantClient) -> None:
    web = acme.http
    await search_tool(acme)
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
    research = await made(acme, "/tasks", name="Research Task", description="Look", agent="research_agent")
    more = {"context": ["Research Task"], "markdown": True, "output_file": "a.md", "async_execution": True}
    report = await made(
        acme, "/tasks", name="Report", description="Write of {length}", agent=searcher["id"], tools=["python"], **more
    )
    crew = await made(acme, "/crews", name="found", agents=["Research Agent"], tasks=["research_task", report["id"]])
    assert (crew["agents"], crew["tasks"]) == ([searcher["id"]], [research["id"], report["id"]])
    kept = await web.delete("/tasks/Research Task")
    assert (kept.status_code, kept.json()["error"]) == (409, "conflict")

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
    again = await made(acme, "/crews", name="again", **written)
    assert (await web.get(f"/crews/{again['id']}/yaml")).json() == written
    shown, of_yaml = [
        (await web.post("/crews/debug", json=body)).json()
        for body in ({"agents": crew["agents"], "tasks": crew["tasks"]}, written)
    ]
    for one in ("tasks", "inputs", "steps"):
        assert shown[one] == of_yaml[one]
    # A key of the document comes before an agent of the tenant; tasks of the catalogue come last.
    both = {"agents_yaml": "research_agent: {role: Other, goal: G}\n", "tasks": ["research_task"]}
    mixed = await web.post(
        "/crews/debug", json={**both, "tasks_yaml": "first: {description: D, agent: Research Agent}\n"}
    )
    assert [(one["key"], one["agent"]) for one in mixed.json()["tasks"]] == [
        ("first", "research_agent_2"),
        ("research_task", "research_agent"),
    ]


async def test_crews_of_what_is_in_the_catalogue_that_do_not_hold_together(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="worker")
    await made(acme, "/tasks", name="lonely", description="D")
    first = await made(acme, "/tasks", name="first", description="D", agent="worker")
    second = await made(acme, "/tasks", name="second", description="D", agent="worker", context=["first"])
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
        assert fields(await acme.http.post("/crews", json={"name": "x", **body})) == expected, body
    assert (await acme.http.patch("/agents/worker", json={"status": "archived"})).status_code == 200
    assert fields(await acme.http.post("/crews", json={"name": "x", "tasks": ["first"]})) == ["tasks[0].agent"]


async def test_lists_of_crews_leave_out_long_texts(acme: TenantClient) -> None:
    long = AGENTS_YAML + "#" * 17_000
    crew = await made(acme, "/crews", **{**CREW, "agents_yaml": long})
    (listed,) = (await acme.http.get("/crews")).json()["items"]
    assert (listed["agents_yaml"], listed["tasks_yaml"]) == (None, TASKS_YAML)
    assert (await acme.http.get(f"/crews/{crew['id']}")).json()["agents_yaml"] == long


async def test_a_crew_is_created_once_for_a_key(acme: TenantClient) -> None:
    name = generate_name("crew")
    headers = {"Idempotency-Key": name}
    first = await acme.http.post("/crews", json={**CREW, "name": name}, headers=headers)
    second = await acme.http.post("/crews", json={**CREW, "name": name}, headers=headers)
    assert (first.json(), second.headers["Idempotency-Replayed"]) == (second.json(), "true")
    task = {"name": name, "description": "D"}
    assert [
        (await acme.http.post("/tasks", json=task, headers={"Idempotency-Key": f"t{name}"})).status_code for _ in "ab"
    ] == [201, 201]
