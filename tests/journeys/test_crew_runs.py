"""Test runs of crews on scripted models: which model is called, in which order, and with which prompt and tools."""

import asyncio
import json
from typing import Any

from domain import crews
from domain.shared.access import ALL_SCOPES, Caller
from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call, split_tokens
from tests.support.model_agents import create_model, create_model_agent, generate_name


async def create_models(acme: TenantClient, provider: FakeProvider, *names: str) -> list[str]:
    """Register models that no other test calls, one for each agent."""
    return [await create_model(acme, provider, generate_name(name)) for name in names]


async def start_crew(acme: TenantClient, crew: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/crews/{crew}/execute", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def run_crew(acme: TenantClient, crew: str, **body: Any) -> dict[str, Any]:
    ended = await acme.wait_for_end((await start_crew(acme, crew, **body))["id"])
    assert ended["status"] == "completed", ended
    return ended


def list_requests(provider: FakeProvider, name: str) -> list[ProviderRequest]:
    return [request for request in provider.requests if request.model == name]


def build_agents_yaml(**members: str) -> str:
    """Return agents as YAML, each with its model."""
    return "".join(f"{key}: {{role: The {key}, goal: Be a {key}, llm: {name}}}\n" for key, name in members.items())


async def test_crew_execution_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    web = acme.http
    (name,) = await create_models(acme, provider, "gpt")
    agents = (
        "researcher:\n  role: >\n    {topic} researcher\n  goal: Find out\nwriter:\n  role: Writer\n  goal: Write\n"
    )
    tasks = (
        "research:\n  description: Look into {topic}\n  expected_output: Facts\n  agent: researcher\n"
        "write:\n  description: Write it\n  expected_output: A report\n  agent: writer\n  output_file: report.md\n"
    )
    crew = await create_object(acme, "/crews", name="Research Team", agents_yaml=agents, tasks_yaml=tasks, verbose=True)
    missing = await web.post("/executions", json={"crew_id": crew["id"], "model": name})
    assert list_refused_fields(missing) == ["inputs.topic"]
    body = {"crew_id": crew["id"], "inputs": {"topic": "AI developments in 2024"}, "model": name}
    provider.queue_text("Fact one.", to=name)
    provider.queue_text("Detailed research report...", to=name)
    answer = await web.post("/executions", json=body)
    assert answer.status_code == 201, answer.text
    started = answer.json()
    assert started["status"] == "pending"
    assert started["message"]
    assert started["run_name"].startswith("Research Team-")
    assert started["crew_id"] == crew["id"]
    ended = await acme.wait_for_end(started["execution_id"])
    assert (ended["status"], ended["result"]) == ("completed", "Detailed research report..."), ended
    assert ended["completed_at"] >= ended["created_at"]
    assert ended["results"] == {
        "research": {"content": "Fact one."},
        "write": {"content": "Detailed research report..."},
    }
    assert (ended["steps_completed"], ended["steps_total"], ended["kind"]) == (2, 2, "crew")
    first, second = list_requests(provider, name)
    assert first.get_last_text("system").startswith("You are AI developments in 2024 researcher.")
    assert "Look into AI developments in 2024" in first.get_last_text()
    assert "What is expected of you: Facts" in first.get_last_text()
    assert second.get_last_text("system").startswith("You are Writer.")
    assert "Fact one." in second.get_last_text()
    listed = (await web.get(f"/executions?crew_id={crew['id']}")).json()
    assert [execution["id"] for execution in listed["items"]] == [ended["id"]]
    children = (await web.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    assert {child["step"]: child["run_name"].rsplit("-", 1)[0] for child in children} == {
        "research": "researcher",
        "write": "writer",
    }
    logs = (await web.get(f"/execution-logs/{children[0]['id']}")).json()["items"]
    assert any("Fact one." in entry["message"] for entry in logs), "verbose"
    report = await web.get(f"/executions/{ended['id']}/files/report.md")
    assert (report.status_code, report.text) == (200, "Detailed research report...")


async def test_unknown_crew_and_crew_without_a_model_are_refused(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    web = acme.http
    agents, tasks = "a: {role: R, goal: G}\n", "t: {description: D, expected_output: E, agent: a}\n"
    crew = await create_object(acme, "/crews", name="bare", agents_yaml=agents, tasks_yaml=tasks)
    for tenant, reference in ((acme, "missing"), (other_tenant, crew["id"]), (other_tenant, "bare")):
        assert (await tenant.http.post(f"/crews/{reference}/execute", json={})).status_code == 404
        assert (await tenant.http.post("/executions", json={"crew_id": reference})).status_code == 404
    refused = await web.post("/crews/bare/execute", json={})
    assert (refused.status_code, "'a' has no model" in refused.json()["detail"]) == (409, True)
    assert list_refused_fields(await web.post("/crews/bare/execute", json={"model": "no-such-model"})) == ["model"]
    # An agent of the crew may have been deleted since.
    await create_model_agent(acme, "smollm2", name="temp")
    await create_object(acme, "/crews", name="later", tasks_yaml=tasks.replace("agent: a", "agent: temp"))
    assert (await web.delete("/agents/temp")).status_code == 204
    assert list_refused_fields(await web.post("/crews/later/execute", json={})) == ["tasks_yaml.t.agent (line 1)"]


async def test_asynchronous_tasks_run_in_parallel_with_their_context(
    acme: TenantClient, provider: FakeProvider
) -> None:
    first_model, second_model, third_model, fourth_model = await create_models(
        acme, provider, "one", "two", "three", "four"
    )
    tasks = (
        "first: {description: Begin, expected_output: E, agent: one}\n"
        "left: {description: Left, expected_output: E, agent: two, async_execution: true}\n"
        "right: {description: Right, expected_output: E, agent: three, async_execution: true, context: []}\n"
        "last: {name: The last, description: End, expected_output: E, agent: four, context: [left], markdown: true}\n"
    )
    agents = build_agents_yaml(one=first_model, two=second_model, three=third_model, four=fourth_model)
    await create_object(acme, "/crews", name="beside", agents_yaml=agents, tasks_yaml=tasks)
    provider.queue_text("FIRST", to=first_model)
    provider.queue_text("LEFT", to=second_model, wait=1.0)
    provider.queue_text("RIGHT", to=third_model, wait=1.0)
    provider.queue_text("LAST", to=fourth_model)
    ended = await run_crew(acme, "beside")
    assert ended["result"] == "LAST"
    (first,), (left,), (right,), (last,) = (
        list_requests(provider, name) for name in (first_model, second_model, third_model, fourth_model)
    )
    assert left.answered_at is not None
    assert right.answered_at is not None
    assert first.answered_at is not None
    assert left.received_at < right.answered_at, "both run in parallel"
    assert right.received_at < left.answered_at, "both run in parallel"
    assert (
        last.received_at
        > max(left.answered_at, right.answered_at)
        > min(left.received_at, right.received_at)
        > first.answered_at
    )
    assert "FIRST" in left.get_last_text(), "the previous result is the default context"
    assert "FIRST" not in right.get_last_text(), "an empty context receives nothing"
    assert "LEFT" in last.get_last_text()
    assert "FIRST" not in last.get_last_text()
    assert "RIGHT" not in last.get_last_text(), "only named context is passed"
    assert "Markdown" in last.get_last_text()


async def test_every_field_of_an_agent_has_an_effect(acme: TenantClient, provider: FakeProvider) -> None:
    first_model, fallback = await create_models(acme, provider, "one", "second")
    agents = (
        f"a:\n  role: Reader of {{topic}}\n  goal: Read {{topic}}\n  backstory: Born in {{town}}\n  llm: {first_model}\n"
        f"  instructions: Mind {{topic}}\n  fallback_model: {fallback}\n  tools: [filesystem_read]\n  verbose: true\n"
        "  max_iter: 2\n  max_execution_time: 77\n  temperature: 0.25\n  max_tokens: 99\n"
    )
    tasks = "t: {name: The reading, description: Read, expected_output: E, agent: a}\n"
    await create_object(acme, "/crews", name="full", agents_yaml=agents, tasks_yaml=tasks)
    provider.queue_failure(400, to=first_model)
    provider.queue_text("", calls=[build_call("filesystem_read", {"path": "x"})], to=fallback)
    provider.queue_text("", calls=[build_call("filesystem_read", {"path": "y"})], to=first_model)
    ended = await acme.wait_for_end((await start_crew(acme, "full", inputs={"topic": "owls", "town": "Rome"}))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "too_many_steps"), "max_iter"
    assert "'The reading'" in ended["error_message"]
    first_request, second_request = list_requests(provider, first_model)
    assert len(list_requests(provider, fallback)) == 1, "fallback_model"
    assert (
        first_request.get_last_text("system")
        == "You are Reader of owls.\n\nBorn in Rome\n\nYour goal: Read owls\n\nMind owls"
    )
    assert (
        first_request.body["temperature"],
        first_request.body.get("max_completion_tokens") or first_request.body["max_tokens"],
    ) == (
        0.25,
        99,
    )
    assert [tool["function"]["name"] for tool in second_request.body["tools"]] == ["filesystem_read"]
    (child,) = (await acme.http.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    assert child["timeout"] == 77
    logs = (await acme.http.get(f"/execution-logs/{child['id']}")).json()["items"]
    assert any("Reader of owls" in entry["message"] for entry in logs), "verbose"


async def test_compiled_crew_plan_names_provider_and_model(acme: TenantClient, resources) -> None:
    agents = "a: {role: R, goal: G, llm: openai/gpt-4o}\nb: {role: R, goal: G, verbose: false}\n"
    tasks = "t: {description: D, expected_output: E, agent: a}\nu: {description: D, expected_output: E, agent: b}\n"
    crew = await create_object(
        acme,
        "/crews",
        name="x",
        agents_yaml=agents,
        tasks_yaml=tasks,
        model="ollama/llama3:8b",
        verbose=True,
        max_rpm=7,
    )
    caller = Caller(tenant_id=acme.tenant_id, user_id=acme.account["id"], role="admin", scopes=ALL_SCOPES)
    async with resources.store.transaction(caller) as tx:
        stored = await crews.get_crew(tx, crew["id"])
        plan = await crews.compile_crew(tx, caller, stored)
        overridden = await crews.compile_crew(tx, caller, stored, "deepseek/deepseek-chat")
    specs = [step.work.spec for step in plan.steps]
    assert [(spec.provider, spec.model, spec.verbose) for spec in specs] == [
        ("openai", "gpt-4o", True),
        ("ollama", "llama3:8b", False),
    ]
    assert {(step.work.spec.provider, step.work.spec.model) for step in overridden.steps} == {
        ("deepseek", "deepseek-chat")
    }
    assert (plan.kind, plan.crew_id, plan.max_rpm, plan.name) == ("crew", crew["id"], 7, "x")


async def test_crew_over_the_plan_size_limit_is_refused(acme: TenantClient) -> None:
    """Refuse a plan over its size limit: each task contains its agent and all agents it may delegate to."""
    agents = "".join(f"a{n}: {{role: R, goal: G, llm: smollm2, backstory: {'x' * 4000}}}\n" for n in range(50))
    tasks = "".join(f"t{n}: {{description: D, expected_output: E, agent: a{n}}}\n" for n in range(50))
    manager_fields = {"process": "hierarchical", "model": "smollm2"}
    await create_object(acme, "/crews", name="vast", agents_yaml=agents, tasks_yaml=tasks, **manager_fields)
    refused = await acme.http.post("/crews/vast/execute", json={})
    assert list_refused_fields(refused) == ["tasks_yaml"]
    assert "bytes" in refused.json()["detail"]


async def test_failed_task_ends_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    first_model, second_model = await create_models(acme, provider, "one", "two")
    tasks = (
        "first: {description: D, expected_output: E, agent: one}\n"
        "last: {description: D, expected_output: E, agent: two}\n"
    )
    await create_object(
        acme, "/crews", name="sad", agents_yaml=build_agents_yaml(one=first_model, two=second_model), tasks_yaml=tasks
    )
    provider.queue_failure(401, to=first_model)
    ended = await acme.wait_for_end((await start_crew(acme, "sad"))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "unauthorized")
    assert "'first'" in ended["error_message"]
    assert list_requests(provider, second_model) == []


async def test_manager_delegates_to_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    manager_model, first_model, second_model = await create_models(acme, provider, "boss", "one", "two")
    tasks = (
        "find: {description: 'Find {thing}', expected_output: E, agent: one, tools: [filesystem_read]}\n"
        "tell: {description: Tell, expected_output: E}\n"
    )
    agents = build_agents_yaml(one=first_model, two=second_model)
    await create_object(
        acme,
        "/crews",
        name="led",
        agents_yaml=agents,
        tasks_yaml=tasks,
        process="hierarchical",
        manager_model=manager_model,
    )
    provider.queue_text(
        "", calls=[build_call("delegate", {"agent": "one", "task": "Look under the bed"})], to=manager_model
    )
    provider.queue_text("It was under the bed.", to=manager_model)
    provider.queue_text("", calls=[build_call("delegate", {"agent": "two", "task": "Put it nicely"})], to=manager_model)
    provider.queue_text("Found at last.", to=manager_model)
    provider.queue_text("Under the bed", to=first_model)
    provider.queue_text("Nicely put", to=second_model)
    ended = await run_crew(acme, "led", inputs={"thing": "the key"})
    assert ended["result"] == "Found at last."
    assert ended["results"]["find"] == {"content": "It was under the bed."}
    manager_requests = list_requests(provider, manager_model)
    assert len(manager_requests) == 4
    assert "Find the key" in manager_requests[0].get_last_text()
    assert "'one' is suggested" in manager_requests[0].get_last_text("system")
    assert "suggested" not in manager_requests[2].get_last_text("system")
    assert manager_requests[0].body["tool_choice"] == "required", "a manager must delegate"
    assert manager_requests[1].body.get("tool_choice") != "required"
    (delegate,) = [tool["function"] for tool in manager_requests[0].body["tools"]]
    assert delegate["parameters"]["properties"]["agent"]["enum"] == ["one", "two"]
    (first,), (second,) = list_requests(provider, first_model), list_requests(provider, second_model)
    assert "Look under the bed" in first.get_last_text()
    assert [tool["function"]["name"] for tool in first.body["tools"]] == ["filesystem_read"], "the task's tool"
    assert not second.body.get("tools")
    assert "It was under the bed." in manager_requests[2].get_last_text(), "the previous result"


async def test_manager_agent_without_an_end_fails_after_max_steps(acme: TenantClient, provider: FakeProvider) -> None:
    manager_model, member_model = await create_models(acme, provider, "boss", "one")
    await create_model_agent(acme, manager_model, name="the boss", role="Boss of {company}", max_steps=3)
    tasks = "find: {description: D, expected_output: E}\n"
    await create_object(
        acme,
        "/crews",
        name="led",
        agents_yaml=build_agents_yaml(one=member_model),
        tasks_yaml=tasks,
        process="hierarchical",
        manager_agent="the_boss",
    )
    assert list_refused_fields(await acme.http.post("/crews/led/execute", json={})) == ["inputs.company"]
    provider.add_rule(
        lambda request: (
            ScriptedAnswer(calls=[build_call("delegate", {"agent": "one", "task": "More"})])
            if request.model == manager_model
            else None
        )
    )
    ended = await acme.wait_for_end((await start_crew(acme, "led", inputs={"company": "Acme"}))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "too_many_steps")
    assert len(list_requests(provider, manager_model)) == 3
    assert list_requests(provider, manager_model)[0].get_last_text("system").startswith("You are Boss of Acme.")


async def test_agents_delegate_within_their_crew(acme: TenantClient, provider: FakeProvider) -> None:
    first_model, second_model, outside_model = await create_models(acme, provider, "one", "two", "outsider")
    await create_model_agent(acme, outside_model, name="outsider")
    agents = build_agents_yaml(one=first_model, two=second_model).replace(
        "goal: Be a one", "goal: G, allow_delegation: true"
    )
    agents = agents.replace("role: The two", "role: 'Expert on {topic}'")
    tasks = "only: {description: D, expected_output: E, agent: one}\n"
    await create_object(acme, "/crews", name="mates", agents_yaml=agents, tasks_yaml=tasks)
    for mate in ("outsider", "two"):
        provider.queue_text("", calls=[build_call("delegate", {"agent": mate, "task": "Help"})], to=first_model)
    provider.queue_text("Done", to=first_model)
    provider.queue_text("Helped", to=second_model)
    assert (await run_crew(acme, "mates", inputs={"topic": "tea"}))["result"] == "Done"
    assert list_requests(provider, outside_model) == [], "not a member of the crew"
    (helped,) = list_requests(provider, second_model)
    assert helped.get_last_text("system").startswith("You are Expert on tea.")


async def test_agents_cannot_delegate_outside_their_crew(acme: TenantClient, provider: FakeProvider) -> None:
    member_model, outside_model = await create_models(acme, provider, "one", "outsider")
    await create_model_agent(acme, outside_model, name="outsider")
    agents_yaml = build_agents_yaml(one=member_model).replace("goal: Be a one", "goal: G, allow_delegation: true")
    tasks = "only: {description: D, expected_output: E, agent: one}\n"
    await create_object(acme, "/crews", name="alone", agents_yaml=agents_yaml, tasks_yaml=tasks)
    provider.queue_text("By myself", to=member_model)
    assert (await run_crew(acme, "alone"))["result"] == "By myself"
    assert not list_requests(provider, member_model)[-1].body.get("tools")


async def test_planning_adds_a_plan_to_each_task(acme: TenantClient, provider: FakeProvider) -> None:
    planner, member_model = await create_models(acme, provider, "planner", "one")
    tasks = (
        "find: {description: 'Find {thing}', expected_output: Keys, agent: one}\n"
        "tell: {description: Tell, expected_output: E, agent: one}\n"
    )
    await create_object(
        acme,
        "/crews",
        name="planned",
        agents_yaml=build_agents_yaml(one=member_model),
        tasks_yaml=tasks,
        planning=True,
        planning_model=planner,
    )
    plans = [{"task": "tell", "plan": "Speak slowly."}, {"task": "find", "plan": "Look down first."}]
    provider.queue_text(json.dumps({"plans": plans}), to=planner)
    provider.queue_text("FOUND", to=member_model)
    provider.queue_text("TOLD", to=member_model)
    ended = await run_crew(acme, "planned", inputs={"thing": "keys"})
    assert (ended["result"], ended["steps_total"]) == ("TOLD", 3)
    assert ended["results"]["planning"] == {"plans": plans}
    (planned,) = list_requests(provider, planner)
    assert "Find keys" in planned.get_last_text()
    assert "The one" in planned.get_last_text()
    assert planned.body["response_format"]["type"] == "json_schema"
    first, second = list_requests(provider, member_model)
    assert "Look down first." in first.get_last_text()
    assert "Speak slowly." not in first.get_last_text()
    assert "Speak slowly." in second.get_last_text()


async def test_max_rpm_limits_model_calls(acme: TenantClient, provider: FakeProvider) -> None:
    (member_model,) = await create_models(acme, provider, "one")
    tasks = "".join(f"t{number}: {{description: D, expected_output: E, agent: one}}\n" for number in range(3))
    await create_object(
        acme, "/crews", name="slow", agents_yaml=build_agents_yaml(one=member_model), tasks_yaml=tasks, max_rpm=2
    )
    started = await start_crew(acme, "slow")

    async def list_running_third_task() -> list[dict[str, Any]]:
        children = (await acme.http.get(f"/executions?parent_id={started['id']}")).json()["items"]
        return [child for child in children if child["step"] == "t2" and child["status"] == "running"]

    for _ in range(300):
        if await list_running_third_task():
            break
        await asyncio.sleep(0.05)
    assert await list_running_third_task(), "the third task has started"
    await asyncio.sleep(1.5)
    assert len(list_requests(provider, member_model)) == 2, "its call waits for the rate limit"
    assert (await acme.http.post(f"/executions/{started['id']}/cancel")).status_code == 200


async def test_catalog_crew_runs_on_its_models_or_an_override(acme: TenantClient, provider: FakeProvider) -> None:
    own_model, crew_model, override_model = await create_models(acme, provider, "one", "common", "other")
    await create_model_agent(acme, own_model, name="First Agent", role="The {kind} one", tools=["filesystem_read"])
    await create_model_agent(acme, None, name="second", role="The other")
    await create_object(
        acme, "/tasks", name="Task one", description="Do {what}", agent="first_agent", tools=["http_request"]
    )
    await create_object(acme, "/tasks", name="Task two", description="Do more", agent="second")
    await create_object(
        acme, "/crews", name="found", agents=["First Agent"], tasks=["Task one", "task_two"], model=crew_model
    )
    inputs = {"kind": "first", "what": "this"}
    assert list_refused_fields(await acme.http.post("/crews/found/execute", json={})) == ["inputs.what", "inputs.kind"]
    provider.add_rule(
        lambda request: (
            ScriptedAnswer(tokens=split_tokens(f"by {request.model}"))
            if request.model in (own_model, crew_model, override_model)
            else None
        )
    )
    ended = await run_crew(acme, "found", inputs=inputs)
    assert ended["results"] == {"task_one": {"content": f"by {own_model}"}, "task_two": {"content": f"by {crew_model}"}}
    (first,), (second,) = list_requests(provider, own_model), list_requests(provider, crew_model)
    assert first.get_last_text("system").startswith("You are The first one.")
    assert "Do this" in first.get_last_text()
    assert {tool["function"]["name"] for tool in first.body["tools"]} == {"filesystem_read", "http_request"}
    assert not second.body.get("tools")
    assert f"by {own_model}" in second.get_last_text()
    overridden = await run_crew(acme, "found", inputs=inputs, model=override_model)
    assert {result["content"] for result in overridden["results"].values()} == {f"by {override_model}"}
    assert overridden["model"] == override_model


async def test_uploaded_agent_executes_a_task(acme: TenantClient, provider: FakeProvider) -> None:
    (member_model,) = await create_models(acme, provider, "one")
    source = "def handle(payload):\n    return {'heard': payload['task']}\n"
    code = await acme.deploy_agent(source)
    name = (await acme.http.get(f"/agents/{code}")).json()["name"]
    tasks = (
        "ask: {description: Ask, expected_output: E, agent: one}\n"
        f"work: {{description: 'Work on {{thing}}', expected_output: E, agent: {name}}}\n"
    )
    invalid_tasks = tasks.replace("}\n", ", tools: [python], output_file: x}\n")
    refused = await acme.http.post(
        "/crews", json={"name": "x", "agents_yaml": build_agents_yaml(one=member_model), "tasks_yaml": invalid_tasks}
    )
    assert list_refused_fields(refused) == ["tasks_yaml.work.tools (line 2)", "tasks_yaml.work.output_file (line 2)"]
    managed_crew = {"process": "hierarchical", "agents_yaml": build_agents_yaml(one=member_model), "tasks_yaml": tasks}
    assert list_refused_fields(await acme.http.post("/crews", json={"name": "x", **managed_crew})) == [
        "tasks_yaml.work.agent (line 2)"
    ]
    await create_object(acme, "/crews", name="mixed", agents_yaml=build_agents_yaml(one=member_model), tasks_yaml=tasks)
    provider.queue_text("ASKED", to=member_model)
    ended = await run_crew(acme, "mixed", inputs={"thing": "it"})
    task_text = ended["result"]["heard"]
    assert "Work on it" in task_text
    assert "ASKED" in task_text
