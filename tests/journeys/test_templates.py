"""Test templates with the body that seeds/kasal.md shows, and the agents and tasks that use them."""

import asyncio
from typing import Any

from domain.shared.ids import generate_id
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    wait_for_status,
)

KASAL_TEMPLATE = {
    "name": "Research Agent Template",
    "template": "You are a research agent. Your task is to {task_description}. Please provide {expected_output}.",
    "variables": ["task_description", "expected_output"],
}


async def create_template(acme: TenantClient, text: str, name: str | None = None) -> dict[str, Any]:
    answer = await acme.http.post("/templates", json={"name": name or generate_name("template"), "template": text})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def list_refused_fields(answer: Any) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [error["field"] for error in answer.json()["errors"]]


async def test_templates_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    answer = await web.post("/templates", json=KASAL_TEMPLATE)
    assert answer.status_code == 201, answer.text
    created = answer.json()
    assert created["id"].startswith("tpl_")
    assert {name: created[name] for name in KASAL_TEMPLATE} == KASAL_TEMPLATE
    assert (created["description"], created["tenant_id"]) == (None, acme.tenant_id)
    assert (await web.get("/templates")).json() == {
        "items": [created],
        "total": 1,
        "limit": 100,
        "offset": 0,
        "has_more": False,
    }
    for reference in (created["id"], created["name"]):
        assert (await web.get(f"/templates/{reference}")).json() == created
        filled = await web.post(
            f"/templates/{reference}/render",
            json={"variables": {"task_description": "count {bees}", "expected_output": {"a": [1, None]}}},
        )
        assert filled.status_code == 200
        assert filled.json() == {
            "template_id": created["id"],
            "name": created["name"],
            "rendered": 'You are a research agent. Your task is to count {bees}. Please provide {"a":[1,null]}.',
        }
    duplicate = await web.post("/templates", json=KASAL_TEMPLATE)
    assert (duplicate.status_code, duplicate.json()["error"]) == (409, "conflict")
    assert list_refused_fields(
        await web.post("/templates", json={**KASAL_TEMPLATE, "name": "x", "engine": "jinja"})
    ) == ["engine"]
    assert list_refused_fields(await web.post("/templates", json={**KASAL_TEMPLATE, "name": "a/b"})) == ["name"]
    assert (await web.delete(f"/templates/{created['id']}")).status_code == 204
    assert (await web.get(f"/templates/{created['name']}")).status_code == 404
    assert (await web.post(f"/templates/{created['id']}/render", json={})).status_code == 404


async def test_variables_follow_the_text(acme: TenantClient) -> None:
    web = acme.http
    created = await create_template(acme, "{b} and {a}", "pair")
    assert created["variables"] == ["b", "a"]
    refused = await web.post(
        "/templates", json={**KASAL_TEMPLATE, "name": "x", "variables": ["expected_output", "tone"]}
    )
    assert list_refused_fields(refused) == ["variables", "variables"]
    assert "'tone'" in refused.text
    assert "'task_description'" in refused.text
    assert list_refused_fields(await web.post("/templates/pair/render", json={"variables": {"a": "1", "c": "2"}})) == [
        "variables.b",
        "variables.c",
    ]
    # A new text has its own variables, unless other variables are sent.
    changed = await web.patch("/templates/pair", json={"template": "{c}", "description": "one"})
    assert (changed.json()["variables"], changed.json()["description"]) == (["c"], "one")
    assert (
        list_refused_fields(await web.put("/templates/pair", json={"template": "{d}", "variables": ["c"]}))[0]
        == "variables"
    )
    assert list_refused_fields(await web.put("/templates/pair", json={"variables": ["a"]}))[0] == "variables"
    assert (await web.get("/templates/pair")).json()["template"] == "{c}"
    await create_template(acme, "none", "taken")
    assert (await web.patch("/templates/pair", json={"name": "taken"})).status_code == 409
    renamed = (await web.put("/templates/pair", json={"name": "single", "variables": ["c"]})).json()
    assert (renamed["name"], renamed["variables"], renamed["id"]) == ("single", ["c"], created["id"])


async def test_rendered_length_is_limited(acme: TenantClient) -> None:
    created = await create_template(acme, "{a}" * 30_000)
    path = f"/templates/{created['id']}/render"
    assert list_refused_fields(await acme.http.post(path, json={"variables": {"a": "x" * 200}})) == ["variables"]
    filled = await acme.http.post(path, json={"variables": {"a": "x" * 100}})
    assert len(filled.json()["rendered"]) == 3_000_000
    assert list_refused_fields(await acme.http.post("/templates", json={"name": "x", "template": "x" * 100_001})) == [
        "template"
    ]


async def test_agent_prompt_contains_its_template(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    template = await create_template(acme, "Write about {topic}.")
    writer = await create_model_agent(acme, name, role="a writer", template=template["id"], instructions="Be brief.")
    assert (writer["template"], writer["template_id"], writer["template_text"]) == (
        template["name"],
        template["id"],
        None,
    )
    resolved = (await acme.http.get(f"/agents/{writer['id']}?resolved=true")).json()
    assert resolved["template_text"] == "Write about {topic}."

    async def run_and_read_prompt(**body: Any) -> str:
        provider.queue_text("ok", to=name)
        assert (await run_execution(acme, body.pop("agent", writer["id"]), task="Go", **body))["status"] == "completed"
        return str(provider.requests[-1].body["messages"][0]["content"])

    assert await run_and_read_prompt(inputs={"topic": "bees"}) == "You are a writer.\n\nWrite about bees.\n\nBe brief."
    # A child inherits the template until it has its own.
    child = await create_model_agent(acme, None, parent=writer["id"], instructions="Be long.")
    assert await run_and_read_prompt(agent=child["id"]) == "You are a writer.\n\nWrite about {topic}.\n\nBe long."
    other_template = await create_template(acme, "Sing of {topic}.")
    changed = (await acme.http.patch(f"/agents/{child['id']}", json={"template": other_template["name"]})).json()
    assert (changed["template"], changed["template_id"]) == (other_template["name"], other_template["id"])
    assert "Sing of {topic}." in await run_and_read_prompt(agent=child["id"])
    listed = {agent["id"]: agent["template"] for agent in (await acme.http.get("/agents")).json()["items"]}
    assert listed == {writer["id"]: template["name"], child["id"]: other_template["name"]}
    without_template = await acme.http.patch(f"/agents/{child['id']}", json={"template": None})
    assert without_template.json()["template"] is None
    assert "Write about" in await run_and_read_prompt(agent=child["id"])
    for body in (
        {"name": "x", "model": name, "template": "no such"},
        {"name": "x", "template": generate_id("tpl")},
    ):
        refused = await acme.http.post("/agents", json=body)
        assert list_refused_fields(refused) == ["template"]


async def test_execution_keeps_the_template_text_of_its_start(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    template = await create_template(acme, "The first text.")
    writer = await create_model_agent(acme, name, template=template["id"], tools=["filesystem_write"])
    provider.queue_tool_call("filesystem_write", {"path": "a", "content": "1"}, to=name)
    provider.queue_text("Done.", to=name)
    execution_id = await start_execution(acme, writer["id"], task="Write")
    await wait_for_status(acme, execution_id, "waiting")
    changed = await acme.http.patch(f"/templates/{template['id']}", json={"template": "The second text."})
    assert changed.status_code == 200
    await acme.http.post(f"/executions/{execution_id}/approve")
    await wait_for_status(acme, execution_id, "completed")
    assert provider.requests[-1].body["messages"][0]["content"] == "The first text."
    provider.queue_text("Again.", to=name)
    retried = (await acme.http.post(f"/executions/{execution_id}/retry", headers={"Prefer": "wait=30"})).json()
    assert retried["status"] == "completed"
    assert provider.requests[-1].body["messages"][0]["content"] == "The first text."
    provider.queue_text("Anew.", to=name)
    await run_execution(acme, writer["id"], task="Write")
    assert provider.requests[-1].body["messages"][0]["content"] == "The second text."


async def test_used_template_cannot_be_deleted(acme: TenantClient) -> None:
    template = await create_template(acme, "Text.")
    users = [await create_model_agent(acme, "smollm2", template=template["id"]) for _ in range(6)]
    refused = await acme.http.delete(f"/templates/{template['id']}")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    named = [user["name"] for user in users if f"agent {user['name']}" in refused.json()["detail"]]
    assert len(named) == 5
    assert "and 1 more" in refused.json()["detail"]
    for user in users[1:]:
        await acme.http.delete(f"/agents/{user['id']}")
    assert (await acme.http.delete(f"/templates/{template['id']}")).status_code == 409
    await acme.http.patch(f"/agents/{users[0]['id']}", json={"template": None})
    assert (await acme.http.delete(f"/templates/{template['id']}")).status_code == 204


async def test_task_description_follows_its_template(acme: TenantClient) -> None:
    web = acme.http
    template = await create_template(acme, "Research {topic} for {reader}.", "research")
    body = {"name": "Bees", "template": "research", "variables": {"topic": "bees", "reader": "{reader}"}}
    answer = await web.post("/tasks", json=body)
    assert answer.status_code == 201, answer.text
    task = answer.json()
    assert task["description"] == "Research bees for {reader}."
    assert (task["template"], task["template_id"], task["variables"]) == ("research", template["id"], body["variables"])
    path = f"/tasks/{task['id']}"
    assert (await web.get(path)).json() == task
    assert (await web.get("/tasks")).json()["items"] == [task]
    # The values, the template and the template's text can change.
    changed = await web.patch(path, json={"variables": {"topic": "ants", "reader": "me"}})
    assert changed.json()["description"] == "Research ants for me."
    await web.patch(f"/templates/{template['id']}", json={"template": "Study {topic}, {depth}!", "name": "study"})
    followed = (await web.get(path)).json()
    assert (followed["description"], followed["template"]) == ("Study ants, {depth}!", "study")
    other = await create_template(acme, "Sing.", "song")
    assert list_refused_fields(await web.patch(path, json={"template": "song"})) == [
        "variables.topic",
        "variables.reader",
    ]
    updated = (await web.put(path, json={"template": other["id"], "variables": {}})).json()
    assert (updated["description"], updated["template"]) == ("Sing.", "song")
    # Without the template the task keeps its text; a sent description replaces it.
    detached = (await web.patch(path, json={"template": None})).json()
    assert (detached["description"], detached["template"], detached["template_id"], detached["variables"]) == (
        "Sing.",
        None,
        None,
        None,
    )
    await web.patch(path, json={"template": "song", "variables": {}})
    described = (await web.patch(path, json={"description": "Hum."})).json()
    assert (described["description"], described["template"], described["variables"]) == ("Hum.", None, None)
    full = await web.put(f"{path}/full", json={"name": "Bees", "template": "song"})
    assert (full.json()["description"], full.json()["template"]) == ("Sing.", "song")
    refused = await web.delete("/templates/song")
    assert refused.status_code == 409
    assert "task Bees" in refused.json()["detail"]
    assert (await web.delete(path)).status_code == 204
    assert (await web.delete("/templates/song")).status_code == 204


async def test_task_with_invalid_template_use_is_refused(acme: TenantClient) -> None:
    template = await create_template(acme, "{a}", "one")
    for body, fields in (
        ({"template": "none such"}, ["template"]),
        ({"template": "one", "description": "And that.", "variables": {"a": "1"}}, ["template"]),
        ({"template": "one"}, ["variables.a"]),
        ({"template": "one", "variables": {"a": "1", "b": "2"}}, ["variables.b"]),
        ({"template": "one", "variables": {"a": ""}}, ["variables"]),
        ({"template": "one", "variables": {"a": "\0"}}, ["variables"]),
        ({"template": "one", "variables": {"a": "x" * 100_001}}, ["variables"]),
        ({"description": "That.", "variables": {"a": "1"}}, ["variables"]),
        ({}, ["description"]),
        # Several errors together.
        ({"template": "one", "tools": ["none such"]}, ["variables.a", "tools[0]"]),
    ):
        assert list_refused_fields(await acme.http.post("/tasks", json={"name": "t", **body})) == fields
    used = await acme.http.post("/tasks", json={"name": "t", "template": "one", "variables": {"a": "x" * 99_999}})
    assert used.status_code == 201
    long = await acme.http.patch(f"/templates/{template['id']}", json={"template": "{a}{a}"})
    assert list_refused_fields(long) == ["template"]
    assert (await acme.http.get("/templates/one")).json()["template"] == "{a}"


async def test_crew_prompts_contain_the_templates_of_tasks_and_agents(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_template(acme, "Write of {topic}. Be {tone}.", "house style")
    agent_template = await create_template(acme, "You know all of {topic}.")
    writer = await create_model_agent(acme, name, role="Writer", goal="Write", template=agent_template["id"])
    variables = {"topic": "{topic}", "tone": "kind"}
    task = {"name": "Write", "template": "house style", "variables": variables, "agent": writer["id"]}
    assert (await acme.http.post("/tasks", json=task)).status_code == 201
    crew = await acme.http.post("/crews", json={"name": "c", "tasks": ["Write"], "agents": [writer["id"]]})
    assert crew.status_code == 201, crew.text
    provider.queue_text("Done.", to=name)
    path = f"/crews/{crew.json()['id']}/execute"
    started = await acme.http.post(path, json={"inputs": {"topic": "bees"}}, headers={"Prefer": "wait=30"})
    assert started.json()["status"] == "completed", started.text
    system_message, *_, user_message = provider.requests[-1].body["messages"]
    assert "You know all of bees." in system_message["content"]
    assert "Write of bees. Be kind." in user_message["content"]


async def test_concurrent_changes_of_template_and_task_are_consistent(acme: TenantClient) -> None:
    """Apply concurrent changes without a deadlock; the task ends with the template's last text."""
    template = await create_template(acme, "0 {a}")
    task = await acme.http.post("/tasks", json={"name": "t", "template": template["id"], "variables": {"a": "0"}})
    for number in range(1, 9):
        answers = await asyncio.gather(
            acme.http.patch(f"/templates/{template['id']}", json={"template": f"{number} {{a}}"}),
            acme.http.patch(f"/tasks/{task.json()['id']}", json={"variables": {"a": str(number)}}),
            acme.http.patch(f"/tasks/{task.json()['id']}", json={"template": template["id"]}),
            acme.http.post("/tasks", json={"name": f"t{number}", "template": template["id"], "variables": {"a": "x"}}),
        )
        assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
        descriptions = {
            task_item["name"]: task_item["description"] for task_item in (await acme.http.get("/tasks")).json()["items"]
        }
        assert descriptions == {"t": f"{number} {number}", **{f"t{n}": f"{number} x" for n in range(1, number + 1)}}


async def test_concurrent_use_and_deletion_of_a_template_are_serialized(acme: TenantClient) -> None:
    for _ in range(8):
        template = await create_template(acme, "Text.")
        body = {"name": generate_name("agent"), "model": "smollm2", "template": template["id"]}
        used, deleted = await asyncio.gather(
            acme.http.post("/agents", json=body), acme.http.delete(f"/templates/{template['id']}")
        )
        assert (used.status_code, deleted.status_code) in ((201, 409), (422, 204)), (used.text, deleted.text)


async def test_templates_of_other_tenants_are_not_found(acme: TenantClient, other_tenant: TenantClient) -> None:
    template = await create_template(acme, "Text.", "mine")
    for reference in (template["id"], "mine"):
        refused = await other_tenant.http.post("/agents", json={"name": "x", "model": "smollm2", "template": reference})
        assert list_refused_fields(refused) == ["template"]
    foreign_template = await create_template(other_tenant, "Theirs.", "mine")
    assert foreign_template["id"] != template["id"]
