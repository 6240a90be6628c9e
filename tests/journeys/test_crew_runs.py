"""Crews at work, on models that say what they are told to: who is asked what, in which order, and with what."""

import asyncio
import json
from typing import Any

from domain import crews
from domain.shared.access import ALL_SCOPES, Caller
from tests.journeys.test_kasal_crews import fields, made
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call, split_tokens
from tests.support.model_agents import create_model, create_model_agent, generate_name


async def models(acme: TenantClient, provider: FakeProvider, *names: str) -> list[str]:
    """Models that nobody else asks, one for each agent."""
    return [await create_model(acme, provider, generate_name(name)) for name in names]


async def start(acme: TenantClient, crew: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/crews/{crew}/execute", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def run(acme: TenantClient, crew: str, **body: Any) -> dict[str, Any]:
    ended = await acme.wait_for_end((await start(acme, crew, **body))["id"])
    assert ended["status"] == "completed", ended
    return ended


def asked(provider: FakeProvider, name: str) -> list[ProviderRequest]:
    return [one for one in provider.requests if one.model == name]


def crew_of(**members: str) -> str:
    """Agents as YAML, each with its model."""
    return "".join(f"{key}: {{role: The {key}, goal: Be a {key}, llm: {name}}}\n" for key, name in members.items())


async def test_an_execution_of_a_crew_as_kasal_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    web = acme.http
    (name,) = await models(acme, provider, "gpt")
    agents = (
        "researcher:\n  role: >\n    {topic} researcher\n  goal: Find out\nwriter:\n  role: Writer\n  goal: Write\n"
    )
    tasks = (
        "research:\n  description: Look into {topic}\n  expected_output: Facts\n  agent: researcher\n"
        "write:\n  description: Write it\n  expected_output: A report\n  agent: writer\n  output_file: report.md\n"
    )
    crew = await made(acme, "/crews", name="Research Team", agents_yaml=agents, tasks_yaml=tasks, verbose=True)
    missing = await web.post("/executions", json={"crew_id": crew["id"], "model": name})
    assert fields(missing) == ["inputs.topic"]
    body = {"crew_id": crew["id"], "inputs": {"topic": "AI developments in 2024"}, "model": name}
    provider.queue_text("Fact one.", to=name)
    provider.queue_text("Detailed research report...", to=name)
    answer = await web.post("/executions", json=body)
    assert answer.status_code == 201, answer.text
    begun = answer.json()
    assert begun["status"] == "pending"
    assert begun["message"]
    assert begun["run_name"].startswith("Research Team-")
    assert begun["crew_id"] == crew["id"]
    ended = await acme.wait_for_end(begun["execution_id"])
    assert (ended["status"], ended["result"]) == ("completed", "Detailed research report..."), ended
    assert ended["completed_at"] >= ended["created_at"]
    assert ended["results"] == {
        "research": {"content": "Fact one."},
        "write": {"content": "Detailed research report..."},
    }
    assert (ended["steps_completed"], ended["steps_total"], ended["kind"]) == (2, 2, "crew")
    first, second = asked(provider, name)
    assert first.get_last_text("system").startswith("You are AI developments in 2024 researcher.")
    assert "Look into AI developments in 2024" in first.get_last_text()
    assert "What is expected of you: Facts" in first.get_last_text()
    assert second.get_last_text("system").startswith("You are Writer.")
    assert "Fact one." in second.get_last_text()
    listed = (await web.get(f"/executions?crew_id={crew['id']}")).json()
    assert [one["id"] for one in listed["items"]] == [ended["id"]]
    children = (await web.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    assert {one["step"]: one["run_name"].rsplit("-", 1)[0] for one in children} == {
        "research": "researcher",
        "write": "writer",
    }
    logs = (await web.get(f"/execution-logs/{children[0]['id']}")).json()["items"]
    assert any("Fact one." in one["message"] for one in logs), "verbose"
    report = await web.get(f"/executions/{ended['id']}/files/report.md")
    assert (report.status_code, report.text) == (200, "Detailed research report...")


async def test_a_crew_that_is_not_there_or_has_no_model(acme: TenantClient, other_tenant: TenantClient) -> None:
    web = acme.http
    agents, tasks = "a: {role: R, goal: G}\n", "t: {description: D, expected_output: E, agent: a}\n"
    crew = await made(acme, "/crews", name="bare", agents_yaml=agents, tasks_yaml=tasks)
    for tenant, reference in ((acme, "nobody"), (other_tenant, crew["id"]), (other_tenant, "bare")):
        assert (await tenant.http.post(f"/crews/{reference}/execute", json={})).status_code == 404
        assert (await tenant.http.post("/executions", json={"crew_id": reference})).status_code == 404
    refused = await web.post("/crews/bare/execute", json={})
    assert (refused.status_code, "'a' has no model" in refused.json()["detail"]) == (409, True)
    assert fields(await web.post("/crews/bare/execute", json={"model": "no-such-model"})) == ["model"]
    # What was there when the crew was made need not be there any more.
    await create_model_agent(acme, "smollm2", name="temp")
    await made(acme, "/crews", name="later", tasks_yaml=tasks.replace("agent: a", "agent: temp"))
    assert (await web.delete("/agents/temp")).status_code == 204
    assert fields(await web.post("/crews/later/execute", json={})) == ["tasks_yaml.t.agent (line 1)"]


async def test_tasks_beside_one_another_and_what_comes_with_them(acme: TenantClient, provider: FakeProvider) -> None:
    one, two, three, four = await models(acme, provider, "one", "two", "three", "four")
    tasks = (
        "first: {description: Begin, expected_output: E, agent: one}\n"
        "left: {description: Left, expected_output: E, agent: two, async_execution: true}\n"
        "right: {description: Right, expected_output: E, agent: three, async_execution: true, context: []}\n"
        "last: {name: The last, description: End, expected_output: E, agent: four, context: [left], markdown: true}\n"
    )
    agents = crew_of(one=one, two=two, three=three, four=four)
    await made(acme, "/crews", name="beside", agents_yaml=agents, tasks_yaml=tasks)
    provider.queue_text("FIRST", to=one)
    provider.queue_text("LEFT", to=two, wait=1.0)
    provider.queue_text("RIGHT", to=three, wait=1.0)
    provider.queue_text("LAST", to=four)
    ended = await run(acme, "beside")
    assert ended["result"] == "LAST"
    (first,), (left,), (right,), (last,) = (asked(provider, name) for name in (one, two, three, four))
    assert left.answered_at is not None
    assert right.answered_at is not None
    assert first.answered_at is not None
    assert left.received_at < right.answered_at, "beside one another"
    assert right.received_at < left.answered_at, "beside one another"
    assert (
        last.received_at
        > max(left.answered_at, right.answered_at)
        > min(left.received_at, right.received_at)
        > first.answered_at
    )
    assert "FIRST" in left.get_last_text(), "what came before comes along"
    assert "FIRST" not in right.get_last_text(), "unless nothing is to"
    assert "LEFT" in last.get_last_text()
    assert "FIRST" not in last.get_last_text()
    assert "RIGHT" not in last.get_last_text(), "it was not named"
    assert "Markdown" in last.get_last_text()


async def test_every_field_of_an_agent_does_something(acme: TenantClient, provider: FakeProvider) -> None:
    one, second = await models(acme, provider, "one", "second")
    agents = (
        f"a:\n  role: Reader of {{topic}}\n  goal: Read {{topic}}\n  backstory: Born in {{town}}\n  llm: {one}\n"
        f"  instructions: Mind {{topic}}\n  fallback_model: {second}\n  tools: [filesystem_read]\n  verbose: true\n"
        "  max_iter: 2\n  max_execution_time: 77\n  temperature: 0.25\n  max_tokens: 99\n"
    )
    tasks = "t: {name: The reading, description: Read, expected_output: E, agent: a}\n"
    await made(acme, "/crews", name="full", agents_yaml=agents, tasks_yaml=tasks)
    provider.queue_failure(400, to=one)
    provider.queue_text("", calls=[build_call("filesystem_read", {"path": "x"})], to=second)
    provider.queue_text("", calls=[build_call("filesystem_read", {"path": "y"})], to=one)
    ended = await acme.wait_for_end((await start(acme, "full", inputs={"topic": "owls", "town": "Rome"}))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "too_many_steps"), "max_iter"
    assert "'The reading'" in ended["error_message"]
    first, again = asked(provider, one)
    assert len(asked(provider, second)) == 1, "fallback_model"
    assert (
        first.get_last_text("system") == "You are Reader of owls.\n\nBorn in Rome\n\nYour goal: Read owls\n\nMind owls"
    )
    assert (first.body["temperature"], first.body.get("max_completion_tokens") or first.body["max_tokens"]) == (
        0.25,
        99,
    )
    assert [tool["function"]["name"] for tool in again.body["tools"]] == ["filesystem_read"]
    (child,) = (await acme.http.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    assert child["timeout"] == 77
    logs = (await acme.http.get(f"/execution-logs/{child['id']}")).json()["items"]
    assert any("Reader of owls" in one["message"] for one in logs), "verbose"


async def test_a_plan_of_a_crew_names_models_of_providers(acme: TenantClient, resources) -> None:
    agents = "a: {role: R, goal: G, llm: openai/gpt-4o}\nb: {role: R, goal: G, verbose: false}\n"
    tasks = "t: {description: D, expected_output: E, agent: a}\nu: {description: D, expected_output: E, agent: b}\n"
    crew = await made(
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
        kept = await crews.get_crew(tx, crew["id"])
        plan = await crews.compile_crew(tx, caller, kept)
        moved = await crews.compile_crew(tx, caller, kept, "deepseek/deepseek-chat")
    specs = [step.work.spec for step in plan.steps]
    assert [(one.provider, one.model, one.verbose) for one in specs] == [
        ("openai", "gpt-4o", True),
        ("ollama", "llama3:8b", False),
    ]
    assert {(step.work.spec.provider, step.work.spec.model) for step in moved.steps} == {("deepseek", "deepseek-chat")}
    assert (plan.kind, plan.crew_id, plan.max_rpm, plan.name) == ("crew", crew["id"], 7, "x")


async def test_a_crew_that_comes_to_too_much_is_not_run(acme: TenantClient) -> None:
    """Each task holds its agent and all whom that may ask."""
    agents = "".join(f"a{n}: {{role: R, goal: G, llm: smollm2, backstory: {'x' * 4000}}}\n" for n in range(50))
    tasks = "".join(f"t{n}: {{description: D, expected_output: E, agent: a{n}}}\n" for n in range(50))
    led = {"process": "hierarchical", "model": "smollm2"}
    await made(acme, "/crews", name="vast", agents_yaml=agents, tasks_yaml=tasks, **led)
    refused = await acme.http.post("/crews/vast/execute", json={})
    assert fields(refused) == ["tasks_yaml"]
    assert "bytes" in refused.json()["detail"]


async def test_a_task_that_fails_ends_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    one, two = await models(acme, provider, "one", "two")
    tasks = (
        "first: {description: D, expected_output: E, agent: one}\n"
        "last: {description: D, expected_output: E, agent: two}\n"
    )
    await made(acme, "/crews", name="sad", agents_yaml=crew_of(one=one, two=two), tasks_yaml=tasks)
    provider.queue_failure(401, to=one)
    ended = await acme.wait_for_end((await start(acme, "sad"))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "unauthorized")
    assert "'first'" in ended["error_message"]
    assert asked(provider, two) == []


async def test_a_manager_has_the_crew_do_the_work(acme: TenantClient, provider: FakeProvider) -> None:
    boss, one, two = await models(acme, provider, "boss", "one", "two")
    tasks = (
        "find: {description: 'Find {thing}', expected_output: E, agent: one, tools: [filesystem_read]}\n"
        "tell: {description: Tell, expected_output: E}\n"
    )
    agents = crew_of(one=one, two=two)
    await made(
        acme,
        "/crews",
        name="led",
        agents_yaml=agents,
        tasks_yaml=tasks,
        process="hierarchical",
        manager_model=boss,
    )
    provider.queue_text("", calls=[build_call("delegate", {"agent": "one", "task": "Look under the bed"})], to=boss)
    provider.queue_text("It was under the bed.", to=boss)
    provider.queue_text("", calls=[build_call("delegate", {"agent": "two", "task": "Put it nicely"})], to=boss)
    provider.queue_text("Found at last.", to=boss)
    provider.queue_text("Under the bed", to=one)
    provider.queue_text("Nicely put", to=two)
    ended = await run(acme, "led", inputs={"thing": "the key"})
    assert ended["result"] == "Found at last."
    assert ended["results"]["find"] == {"content": "It was under the bed."}
    managed = asked(provider, boss)
    assert len(managed) == 4
    assert "Find the key" in managed[0].get_last_text()
    assert "'one' is suggested" in managed[0].get_last_text("system")
    assert "suggested" not in managed[2].get_last_text("system")
    assert managed[0].body["tool_choice"] == "required", "a manager does not do it alone"
    assert managed[1].body.get("tool_choice") != "required"
    (delegate,) = [tool["function"] for tool in managed[0].body["tools"]]
    assert delegate["parameters"]["properties"]["agent"]["enum"] == ["one", "two"]
    (first,), (second,) = asked(provider, one), asked(provider, two)
    assert "Look under the bed" in first.get_last_text()
    assert [tool["function"]["name"] for tool in first.body["tools"]] == ["filesystem_read"], "the task's tool"
    assert not second.body.get("tools")
    assert "It was under the bed." in managed[2].get_last_text(), "what came before"


async def test_a_manager_of_one_s_own_who_does_not_come_to_an_end(acme: TenantClient, provider: FakeProvider) -> None:
    boss, one = await models(acme, provider, "boss", "one")
    await create_model_agent(acme, boss, name="the boss", role="Boss of {company}", max_steps=3)
    tasks = "find: {description: D, expected_output: E}\n"
    await made(
        acme,
        "/crews",
        name="led",
        agents_yaml=crew_of(one=one),
        tasks_yaml=tasks,
        process="hierarchical",
        manager_agent="the_boss",
    )
    assert fields(await acme.http.post("/crews/led/execute", json={})) == ["inputs.company"]
    provider.add_rule(
        lambda it: (
            ScriptedAnswer(calls=[build_call("delegate", {"agent": "one", "task": "More"})])
            if it.model == boss
            else None
        )
    )
    ended = await acme.wait_for_end((await start(acme, "led", inputs={"company": "Acme"}))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "too_many_steps")
    assert len(asked(provider, boss)) == 3
    assert asked(provider, boss)[0].get_last_text("system").startswith("You are Boss of Acme.")


async def test_agents_that_may_delegate_ask_the_others_of_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    one, two, stranger = await models(acme, provider, "one", "two", "stranger")
    await create_model_agent(acme, stranger, name="stranger")
    agents = crew_of(one=one, two=two).replace("goal: Be a one", "goal: G, allow_delegation: true")
    agents = agents.replace("role: The two", "role: 'Expert on {topic}'")
    tasks = "only: {description: D, expected_output: E, agent: one}\n"
    await made(acme, "/crews", name="mates", agents_yaml=agents, tasks_yaml=tasks)
    for mate in ("stranger", "two"):
        provider.queue_text("", calls=[build_call("delegate", {"agent": mate, "task": "Help"})], to=one)
    provider.queue_text("Done", to=one)
    provider.queue_text("Helped", to=two)
    assert (await run(acme, "mates", inputs={"topic": "tea"}))["result"] == "Done"
    assert asked(provider, stranger) == [], "no member of the crew"
    (helped,) = asked(provider, two)
    assert helped.get_last_text("system").startswith("You are Expert on tea.")


async def test_an_agent_that_may_delegate_asks_nobody_outside_of_the_crew(
    acme: TenantClient, provider: FakeProvider
) -> None:
    one, stranger = await models(acme, provider, "one", "stranger")
    await create_model_agent(acme, stranger, name="stranger")
    alone = crew_of(one=one).replace("goal: Be a one", "goal: G, allow_delegation: true")
    tasks = "only: {description: D, expected_output: E, agent: one}\n"
    await made(acme, "/crews", name="alone", agents_yaml=alone, tasks_yaml=tasks)
    provider.queue_text("By myself", to=one)
    assert (await run(acme, "alone"))["result"] == "By myself"
    assert not asked(provider, one)[-1].body.get("tools")


async def test_planning_tells_each_task_how_to_go_about_it(acme: TenantClient, provider: FakeProvider) -> None:
    planner, one = await models(acme, provider, "planner", "one")
    tasks = (
        "find: {description: 'Find {thing}', expected_output: Keys, agent: one}\n"
        "tell: {description: Tell, expected_output: E, agent: one}\n"
    )
    await made(
        acme,
        "/crews",
        name="planned",
        agents_yaml=crew_of(one=one),
        tasks_yaml=tasks,
        planning=True,
        planning_model=planner,
    )
    plans = [{"task": "tell", "plan": "Speak slowly."}, {"task": "find", "plan": "Look down first."}]
    provider.queue_text(json.dumps({"plans": plans}), to=planner)
    provider.queue_text("FOUND", to=one)
    provider.queue_text("TOLD", to=one)
    ended = await run(acme, "planned", inputs={"thing": "keys"})
    assert (ended["result"], ended["steps_total"]) == ("TOLD", 3)
    assert ended["results"]["planning"] == {"plans": plans}
    (planned,) = asked(provider, planner)
    assert "Find keys" in planned.get_last_text()
    assert "The one" in planned.get_last_text()
    assert planned.body["response_format"]["type"] == "json_schema"
    first, second = asked(provider, one)
    assert "Look down first." in first.get_last_text()
    assert "Speak slowly." not in first.get_last_text()
    assert "Speak slowly." in second.get_last_text()


async def test_the_calls_of_models_in_a_minute_are_bounded(acme: TenantClient, provider: FakeProvider) -> None:
    (one,) = await models(acme, provider, "one")
    tasks = "".join(f"t{number}: {{description: D, expected_output: E, agent: one}}\n" for number in range(3))
    await made(acme, "/crews", name="slow", agents_yaml=crew_of(one=one), tasks_yaml=tasks, max_rpm=2)
    begun = await start(acme, "slow")

    async def third() -> list[dict[str, Any]]:
        found = (await acme.http.get(f"/executions?parent_id={begun['id']}")).json()["items"]
        return [found_one for found_one in found if found_one["step"] == "t2" and found_one["status"] == "running"]

    for _ in range(300):
        if await third():
            break
        await asyncio.sleep(0.05)
    assert await third(), "it has begun"
    await asyncio.sleep(1.5)
    assert len(asked(provider, one)) == 2, "and waits for its turn"
    assert (await acme.http.post(f"/executions/{begun['id']}/cancel")).status_code == 200


async def test_a_crew_of_the_catalogue_on_its_models_and_on_another(acme: TenantClient, provider: FakeProvider) -> None:
    one, common, other = await models(acme, provider, "one", "common", "other")
    await create_model_agent(acme, one, name="First Agent", role="The {kind} one", tools=["filesystem_read"])
    await create_model_agent(acme, None, name="second", role="The other")
    await made(acme, "/tasks", name="Task one", description="Do {what}", agent="first_agent", tools=["http_request"])
    await made(acme, "/tasks", name="Task two", description="Do more", agent="second")
    await made(acme, "/crews", name="found", agents=["First Agent"], tasks=["Task one", "task_two"], model=common)
    inputs = {"kind": "first", "what": "this"}
    assert fields(await acme.http.post("/crews/found/execute", json={})) == ["inputs.what", "inputs.kind"]
    provider.add_rule(
        lambda it: ScriptedAnswer(tokens=split_tokens(f"by {it.model}")) if it.model in (one, common, other) else None
    )
    ended = await run(acme, "found", inputs=inputs)
    assert ended["results"] == {"task_one": {"content": f"by {one}"}, "task_two": {"content": f"by {common}"}}
    (first,), (second,) = asked(provider, one), asked(provider, common)
    assert first.get_last_text("system").startswith("You are The first one.")
    assert "Do this" in first.get_last_text()
    assert {tool["function"]["name"] for tool in first.body["tools"]} == {"filesystem_read", "http_request"}
    assert not second.body.get("tools")
    assert f"by {one}" in second.get_last_text()
    moved = await run(acme, "found", inputs=inputs, model=other)
    assert {one["content"] for one in moved["results"].values()} == {f"by {other}"}
    assert moved["model"] == other


async def test_uploaded_agents_do_tasks_too(acme: TenantClient, provider: FakeProvider) -> None:
    (one,) = await models(acme, provider, "one")
    source = "def handle(payload):\n    return {'heard': payload['task']}\n"
    code = await acme.deploy_agent(source)
    name = (await acme.http.get(f"/agents/{code}")).json()["name"]
    tasks = (
        "ask: {description: Ask, expected_output: E, agent: one}\n"
        f"work: {{description: 'Work on {{thing}}', expected_output: E, agent: {name}}}\n"
    )
    wrong = tasks.replace("}\n", ", tools: [python], output_file: x}\n")
    refused = await acme.http.post("/crews", json={"name": "x", "agents_yaml": crew_of(one=one), "tasks_yaml": wrong})
    assert fields(refused) == ["tasks_yaml.work.tools (line 2)", "tasks_yaml.work.output_file (line 2)"]
    led = {"process": "hierarchical", "agents_yaml": crew_of(one=one), "tasks_yaml": tasks}
    assert fields(await acme.http.post("/crews", json={"name": "x", **led})) == ["tasks_yaml.work.agent (line 2)"]
    await made(acme, "/crews", name="mixed", agents_yaml=crew_of(one=one), tasks_yaml=tasks)
    provider.queue_text("ASKED", to=one)
    ended = await run(acme, "mixed", inputs={"thing": "it"})
    heard = ended["result"]["heard"]
    assert "Work on it" in heard
    assert "ASKED" in heard
