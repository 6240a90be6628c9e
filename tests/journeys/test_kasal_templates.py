"""The Templates part of seeds/kasal.md, with the body it shows, as api.md settles it; and agents that use one."""

import asyncio
from typing import Any

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

BODY = {
    "name": "Research Agent Template",
    "template": "You are a research agent. Your task is to {task_description}. Please provide {expected_output}.",
    "variables": ["task_description", "expected_output"],
}


async def made(acme: TenantClient, text: str, name: str | None = None) -> dict[str, Any]:
    answer = await acme.http.post("/templates", json={"name": name or generate_name("template"), "template": text})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def fields_of(answer: Any) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [one["field"] for one in answer.json()["errors"]]


async def test_templates_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    answer = await web.post("/templates", json=BODY)
    assert answer.status_code == 201, answer.text
    one = answer.json()
    assert one["id"].startswith("tpl_")
    assert {name: one[name] for name in BODY} == BODY
    assert (one["description"], one["tenant_id"]) == (None, acme.tenant_id)
    assert (await web.get("/templates")).json() == {
        "items": [one],
        "total": 1,
        "limit": 100,
        "offset": 0,
        "has_more": False,
    }
    for reference in (one["id"], one["name"]):
        assert (await web.get(f"/templates/{reference}")).json() == one
        filled = await web.post(
            f"/templates/{reference}/render",
            json={"variables": {"task_description": "count {bees}", "expected_output": {"a": [1, None]}}},
        )
        assert filled.status_code == 200
        assert filled.json() == {
            "template_id": one["id"],
            "name": one["name"],
            "rendered": 'You are a research agent. Your task is to count {bees}. Please provide {"a":[1,null]}.',
        }
    again = await web.post("/templates", json=BODY)
    assert (again.status_code, again.json()["error"]) == (409, "conflict")
    assert fields_of(await web.post("/templates", json={**BODY, "name": "x", "engine": "jinja"})) == ["engine"]
    assert fields_of(await web.post("/templates", json={**BODY, "name": "a/b"})) == ["name"]
    assert (await web.delete(f"/templates/{one['id']}")).status_code == 204
    assert (await web.get(f"/templates/{one['name']}")).status_code == 404
    assert (await web.post(f"/templates/{one['id']}/render", json={})).status_code == 404


async def test_variables_are_those_of_the_text(acme: TenantClient) -> None:
    web = acme.http
    one = await made(acme, "{b} and {a}", "pair")
    assert one["variables"] == ["b", "a"]
    wrong = await web.post("/templates", json={**BODY, "name": "x", "variables": ["expected_output", "tone"]})
    assert fields_of(wrong) == ["variables", "variables"]
    assert "'tone'" in wrong.text
    assert "'task_description'" in wrong.text
    assert fields_of(await web.post("/templates/pair/render", json={"variables": {"a": "1", "c": "2"}})) == [
        "variables.b",
        "variables.c",
    ]
    # A change of the text finds its variables anew, unless they are sent and are others.
    changed = await web.patch("/templates/pair", json={"template": "{c}", "description": "one"})
    assert (changed.json()["variables"], changed.json()["description"]) == (["c"], "one")
    assert fields_of(await web.put("/templates/pair", json={"template": "{d}", "variables": ["c"]}))[0] == "variables"
    assert fields_of(await web.put("/templates/pair", json={"variables": ["a"]}))[0] == "variables"
    assert (await web.get("/templates/pair")).json()["template"] == "{c}"
    await made(acme, "none", "taken")
    assert (await web.patch("/templates/pair", json={"name": "taken"})).status_code == 409
    renamed = (await web.put("/templates/pair", json={"name": "single", "variables": ["c"]})).json()
    assert (renamed["name"], renamed["variables"], renamed["id"]) == ("single", ["c"], one["id"])


async def test_what_is_rendered_is_bounded(acme: TenantClient) -> None:
    one = await made(acme, "{a}" * 30_000)
    path = f"/templates/{one['id']}/render"
    assert fields_of(await acme.http.post(path, json={"variables": {"a": "x" * 200}})) == ["variables"]
    filled = await acme.http.post(path, json={"variables": {"a": "x" * 100}})
    assert len(filled.json()["rendered"]) == 3_000_000
    assert fields_of(await acme.http.post("/templates", json={"name": "x", "template": "x" * 100_001})) == ["template"]


async def test_an_agent_says_what_its_template_says_when_it_starts(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    one = await made(acme, "Write about {topic}.")
    writer = await create_model_agent(acme, name, role="a writer", template=one["id"], instructions="Be brief.")
    assert (writer["template"], writer["template_id"], writer["template_text"]) == (one["name"], one["id"], None)
    shown = (await acme.http.get(f"/agents/{writer['id']}?resolved=true")).json()
    assert shown["template_text"] == "Write about {topic}."

    async def told(**body: Any) -> str:
        provider.queue_text("ok", to=name)
        assert (await run_execution(acme, body.pop("agent", writer["id"]), task="Go", **body))["status"] == "completed"
        return str(provider.requests[-1].body["messages"][0]["content"])

    assert await told(inputs={"topic": "bees"}) == "You are a writer.\n\nWrite about bees.\n\nBe brief."
    # A child takes it over, until it has one of its own or its parent has none any more.
    child = await create_model_agent(acme, None, parent=writer["id"], instructions="Be long.")
    assert await told(agent=child["id"]) == "You are a writer.\n\nWrite about {topic}.\n\nBe long."
    other = await made(acme, "Sing of {topic}.")
    changed = (await acme.http.patch(f"/agents/{child['id']}", json={"template": other["name"]})).json()
    assert (changed["template"], changed["template_id"]) == (other["name"], other["id"])
    assert "Sing of {topic}." in await told(agent=child["id"])
    listed = {one["id"]: one["template"] for one in (await acme.http.get("/agents")).json()["items"]}
    assert listed == {writer["id"]: one["name"], child["id"]: other["name"]}
    gone = await acme.http.patch(f"/agents/{child['id']}", json={"template": None})
    assert gone.json()["template"] is None
    assert "Write about" in await told(agent=child["id"])
    for body in ({"name": "x", "model": name, "template": "no such"}, {"name": "x", "template": one["id"][:-1] + "z"}):
        refused = await acme.http.post("/agents", json=body)
        assert fields_of(refused) == ["template"]


async def test_a_run_keeps_the_text_it_was_started_with(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    one = await made(acme, "The first text.")
    writer = await create_model_agent(acme, name, template=one["id"], tools=["filesystem_write"])
    provider.queue_tool_call("filesystem_write", {"path": "a", "content": "1"}, to=name)
    provider.queue_text("Done.", to=name)
    execution_id = await start_execution(acme, writer["id"], task="Write")
    await wait_for_status(acme, execution_id, "waiting")
    changed = await acme.http.patch(f"/templates/{one['id']}", json={"template": "The second text."})
    assert changed.status_code == 200
    await acme.http.post(f"/executions/{execution_id}/approve")
    await wait_for_status(acme, execution_id, "completed")
    assert provider.requests[-1].body["messages"][0]["content"] == "The first text."
    provider.queue_text("Again.", to=name)
    again = (await acme.http.post(f"/executions/{execution_id}/retry", headers={"Prefer": "wait=30"})).json()
    assert again["status"] == "completed"
    assert provider.requests[-1].body["messages"][0]["content"] == "The first text."
    provider.queue_text("Anew.", to=name)
    await run_execution(acme, writer["id"], task="Write")
    assert provider.requests[-1].body["messages"][0]["content"] == "The second text."


async def test_a_template_that_is_used_stays(acme: TenantClient) -> None:
    one = await made(acme, "Text.")
    users = [await create_model_agent(acme, "smollm2", template=one["id"]) for _ in range(6)]
    refused = await acme.http.delete(f"/templates/{one['id']}")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    named = [user["name"] for user in users if f"agent {user['name']}" in refused.json()["detail"]]
    assert len(named) == 5
    assert "and 1 more" in refused.json()["detail"]
    for user in users[1:]:
        await acme.http.delete(f"/agents/{user['id']}")
    assert (await acme.http.delete(f"/templates/{one['id']}")).status_code == 409
    await acme.http.patch(f"/agents/{users[0]['id']}", json={"template": None})
    assert (await acme.http.delete(f"/templates/{one['id']}")).status_code == 204


async def test_a_task_says_what_its_template_says(acme: TenantClient) -> None:
    web = acme.http
    one = await made(acme, "Research {topic} for {reader}.", "research")
    body = {"name": "Bees", "template": "research", "variables": {"topic": "bees", "reader": "{reader}"}}
    answer = await web.post("/tasks", json=body)
    assert answer.status_code == 201, answer.text
    task = answer.json()
    assert task["description"] == "Research bees for {reader}."
    assert (task["template"], task["template_id"], task["variables"]) == ("research", one["id"], body["variables"])
    path = f"/tasks/{task['id']}"
    assert (await web.get(path)).json() == task
    assert (await web.get("/tasks")).json()["items"] == [task]
    # Its values, its template and the template's text can change.
    changed = await web.patch(path, json={"variables": {"topic": "ants", "reader": "me"}})
    assert changed.json()["description"] == "Research ants for me."
    await web.patch(f"/templates/{one['id']}", json={"template": "Study {topic}, {depth}!", "name": "study"})
    followed = (await web.get(path)).json()
    assert (followed["description"], followed["template"]) == ("Study ants, {depth}!", "study")
    other = await made(acme, "Sing.", "song")
    assert fields_of(await web.patch(path, json={"template": "song"})) == ["variables.topic", "variables.reader"]
    sung = (await web.put(path, json={"template": other["id"], "variables": {}})).json()
    assert (sung["description"], sung["template"]) == ("Sing.", "song")
    # What it does not follow any more, it keeps; what is said outright takes its place.
    kept = (await web.patch(path, json={"template": None})).json()
    assert (kept["description"], kept["template"], kept["template_id"], kept["variables"]) == (
        "Sing.",
        None,
        None,
        None,
    )
    await web.patch(path, json={"template": "song", "variables": {}})
    said = (await web.patch(path, json={"description": "Hum."})).json()
    assert (said["description"], said["template"], said["variables"]) == ("Hum.", None, None)
    full = await web.put(f"{path}/full", json={"name": "Bees", "template": "song"})
    assert (full.json()["description"], full.json()["template"]) == ("Sing.", "song")
    refused = await web.delete("/templates/song")
    assert refused.status_code == 409
    assert "task Bees" in refused.json()["detail"]
    assert (await web.delete(path)).status_code == 204
    assert (await web.delete("/templates/song")).status_code == 204


async def test_tasks_whose_template_is_no_good(acme: TenantClient) -> None:
    one = await made(acme, "{a}", "one")
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
        # All that is wrong, at once.
        ({"template": "one", "tools": ["none such"]}, ["variables.a", "tools[0]"]),
    ):
        assert fields_of(await acme.http.post("/tasks", json={"name": "t", **body})) == fields
    used = await acme.http.post("/tasks", json={"name": "t", "template": "one", "variables": {"a": "x" * 99_999}})
    assert used.status_code == 201
    long = await acme.http.patch(f"/templates/{one['id']}", json={"template": "{a}{a}"})
    assert fields_of(long) == ["template"]
    assert (await acme.http.get("/templates/one")).json()["template"] == "{a}"


async def test_a_crew_s_tasks_and_agents_are_told_what_their_templates_say(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    await made(acme, "Write of {topic}. Be {tone}.", "house style")
    voice = await made(acme, "You know all of {topic}.")
    writer = await create_model_agent(acme, name, role="Writer", goal="Write", template=voice["id"])
    variables = {"topic": "{topic}", "tone": "kind"}
    task = {"name": "Write", "template": "house style", "variables": variables, "agent": writer["id"]}
    assert (await acme.http.post("/tasks", json=task)).status_code == 201
    crew = await acme.http.post("/crews", json={"name": "c", "tasks": ["Write"], "agents": [writer["id"]]})
    assert crew.status_code == 201, crew.text
    provider.queue_text("Done.", to=name)
    path = f"/crews/{crew.json()['id']}/execute"
    ran = await acme.http.post(path, json={"inputs": {"topic": "bees"}}, headers={"Prefer": "wait=30"})
    assert ran.json()["status"] == "completed", ran.text
    told, *_, asked = provider.requests[-1].body["messages"]
    assert "You know all of bees." in told["content"]
    assert "Write of bees. Be kind." in asked["content"]


async def test_changes_of_a_template_and_of_its_task_end_alike(acme: TenantClient) -> None:
    """However they meet, the task says what the template says last, and neither waits for the other for ever."""
    one = await made(acme, "0 {a}")
    task = await acme.http.post("/tasks", json={"name": "t", "template": one["id"], "variables": {"a": "0"}})
    for number in range(1, 9):
        answers = await asyncio.gather(
            acme.http.patch(f"/templates/{one['id']}", json={"template": f"{number} {{a}}"}),
            acme.http.patch(f"/tasks/{task.json()['id']}", json={"variables": {"a": str(number)}}),
            acme.http.patch(f"/tasks/{task.json()['id']}", json={"template": one["id"]}),
            acme.http.post("/tasks", json={"name": f"t{number}", "template": one["id"], "variables": {"a": "x"}}),
        )
        assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
        known = {one["name"]: one["description"] for one in (await acme.http.get("/tasks")).json()["items"]}
        assert known == {"t": f"{number} {number}", **{f"t{n}": f"{number} x" for n in range(1, number + 1)}}


async def test_whoever_uses_a_template_and_whoever_deletes_it_take_turns(acme: TenantClient) -> None:
    for _ in range(8):
        one = await made(acme, "Text.")
        body = {"name": generate_name("agent"), "model": "smollm2", "template": one["id"]}
        used, gone = await asyncio.gather(
            acme.http.post("/agents", json=body), acme.http.delete(f"/templates/{one['id']}")
        )
        assert (used.status_code, gone.status_code) in ((201, 409), (422, 204)), (used.text, gone.text)


async def test_templates_of_others_are_none(acme: TenantClient, other_tenant: TenantClient) -> None:
    one = await made(acme, "Text.", "mine")
    for reference in (one["id"], "mine"):
        refused = await other_tenant.http.post("/agents", json={"name": "x", "model": "smollm2", "template": reference})
        assert fields_of(refused) == ["template"]
    theirs = await made(other_tenant, "Theirs.", "mine")
    assert theirs["id"] != one["id"]
