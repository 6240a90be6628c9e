"""Workflows at the door: what is refused and where the mistake is said to be, YAML and JSON, names, lists, budgets."""

import asyncio
import json
from typing import Any

import pytest

from domain.plans.schema import MAX_MAP_ITEMS, MAX_PLAN_DEPTH, MAX_PLAN_STEPS
from tests.support.clients import TenantClient, pack_archive
from tests.support.model_agents import create_model_agent, generate_name

YAML = {"Content-Type": "application/yaml"}
LIST = {"id": "list", "tool": "filesystem_list"}


def step(step_id: str, *after: str, **more: Any) -> dict[str, Any]:
    return {**LIST, "id": step_id, "depends_on": list(after), **more}


async def made(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def wrong(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> dict[str, str]:
    """What is said of each field at fault."""
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "invalid_field"
    return {one["field"]: one["message"] for one in answer.json()["errors"]}


MISTAKES: list[tuple[list[Any], str, str]] = [
    ([step("a", "b")], "steps[0].depends_on[0]", "no step 'b'"),
    ([step("a", "a")], "steps[0].depends_on[0]", "itself"),
    ([step("a"), step("b"), step("a")], "steps[2].id", "'a'"),
    ([{"id": "a"}], "steps[0]", "must name one of agent, crew, tool, workflow"),
    ([step("a", agent="x")], "steps[0]", "not agent and tool"),
    ([{"id": "a", "agent": "nobody", "prompt": "x"}], "steps[0].agent", "no agent 'nobody'"),
    ([{"id": "a", "agent": "agent_01k00000000000000000000000", "prompt": "x"}], "steps[0].agent", "no agent"),
    ([{"id": "a", "tool": "hammer"}], "steps[0].tool", "no tool 'hammer'"),
    ([{"id": "a", "tool": "filesystem_list/x"}], "steps[0].tool", "no tool"),
    ([{"id": "a", "crew": "nobody"}], "steps[0].crew", "no crew 'nobody'"),
    ([{"id": "a", "workflow": "nothing"}], "steps[0].workflow", "no workflow 'nothing'"),
    ([step("a", prompt="Hello")], "steps[0].prompt", "tool"),
    ([step("a", max_parallel=2)], "steps[0].max_parallel", "is for a step with map"),
    ([step("a", timeout=3601)], "steps[0].timeout", "3600"),
    ([step("a", output_file="x")], "steps[0].output_file", "model agent"),
    ([step("a", when="inputs.x ==")], "steps[0].when", ""),
    ([step("a", when="steps.b.outputs == 1"), step("b")], "steps[0].when", "'b'"),
    ([step("a", when="steps.c.outputs == 1")], "steps[0].when", "'c'"),
    ([step("a", when="item == 1")], "steps[0].when", "item"),
    ([step("a", when="item == 1", map="inputs.x")], "steps[0].when", "item"),
    ([step("a", map="steps.b.outputs"), step("b")], "steps[0].map", "'b'"),
    ([step("a", map=list(range(MAX_MAP_ITEMS + 1)))], "steps[0].map", str(MAX_MAP_ITEMS)),
    ([step("a", map=["{{ nothing.x }}"])], "steps[0].map[0]", "nothing"),
    ([step("a", inputs={"x": {"y": ["ok", "{{ item }}"]}})], "steps[0].inputs", "item"),
    ([step("a", inputs={"x": {"y": ["ok", "{{ steps.z.outputs }}"]}})], "steps[0].inputs", "'z'"),
    ([step("a", inputs={"x": {"y": ["ok", "{{ 1 + }}"]}})], "steps[0].inputs.x.y[1]", ""),
    ([step("a", inputs={"x": "{{ inputs.x.__class__ }}"})], "steps[0].inputs.x", "__class__"),
    ([step("a", inputs={"x": "{{ open('f') }}"})], "steps[0].inputs.x", "open"),
    ([step("a", inputs={"x": "{{ unclosed"})], "steps[0].inputs.x", ""),
]


async def test_each_mistake_names_its_place(acme: TenantClient) -> None:
    for steps, place, message in MISTAKES:
        told = await wrong(acme, *steps)
        assert list(told) == [place], (steps, told)
        assert message in told[place], (steps, told)


async def test_circles_are_named(acme: TenantClient) -> None:
    told = await wrong(acme, step("start"), step("a", "c", "start"), step("b", "a"), step("c", "b"), step("end", "c"))
    ((place, message),) = told.items()
    assert place.startswith("steps[")
    assert place.endswith("].depends_on")
    # It may begin anywhere; each waits for the next.
    ways = ("a → c → b → a", "c → b → a → c", "b → a → c → b")
    assert any(way in message for way in ways), message


async def test_all_mistakes_of_a_workflow_are_told_at_once(acme: TenantClient) -> None:
    asked = {"id": "ask", "agent": "nobody", "prompt": "{{ steps.late.outputs }}"}
    told = await wrong(
        acme, asked, step("late", "nowhere", when="1 +"), {"id": "x"}, outputs={"all": "{{ steps.gone.status }}"}
    )
    assert {
        "steps[0].agent",
        "steps[0].prompt",
        "steps[1].depends_on[0]",
        "steps[1].when",
        "steps[2]",
        "outputs",
    } >= set(told), told
    assert {"steps[0].agent", "steps[1].depends_on[0]", "steps[1].when", "steps[2]", "outputs"} <= set(told), told
    answer = await acme.http.post("/workflows", json={"steps": [{**asked, "id": "a[1]"}], "colour": 1})
    assert {one["field"] for one in answer.json()["errors"]} == {"name", "colour", "steps[0].id"}


async def test_mistakes_in_yaml_name_place_and_line(acme: TenantClient) -> None:
    text = "name: flow\nsteps:\n- id: a\n  agent: nobody\n  prompt: x\n- id: b\n  tool: python\n  depends_on:\n  - a\n  - c\n"
    expected = {"steps[0].agent (line 4)", "steps[1].depends_on[1] (line 10)"}
    by_field = await acme.http.post("/workflows", json={"yaml": text})
    for answer in (
        await acme.http.post("/workflows", content=text, headers=YAML),
        await acme.http.post("/workflows", content=text, headers={"Content-Type": "text/yaml; charset=utf-8"}),
        by_field,
    ):
        assert answer.status_code == 422
        assert {one["field"] for one in answer.json()["errors"]} == expected
    there = await made(acme, LIST)
    again = await acme.http.patch(f"/workflows/{there['id']}", content="steps:\n- id: a\n", headers=YAML)
    assert [one["field"] for one in again.json()["errors"]] == ["steps[0] (line 2)"]


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "a: &a x\nname: *a\n",
        "name: !!python/object/apply:os.system ['true']\n",
        "name: a\nname: b\n",
        "name: a\n---\nname: b\n",
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
        "[" * 5000,
    ],
)
async def test_yaml_that_does_more_than_say(acme: TenantClient, text: str) -> None:
    answer = await acme.http.post("/workflows", content=text, headers=YAML)
    assert answer.status_code == 422, answer.text
    assert "body" in answer.json()["errors"][0]["field"] or "line" in answer.json()["errors"][0]["field"]


async def test_yaml_comes_back_as_it_went_in(acme: TenantClient, other_tenant: TenantClient) -> None:
    text = """\
name: code-review
description: |
  Reads code.
  Says what it thinks.
inputs:
  file:
    type: string
    required: true
  depth:
    type: integer
    default: 2
steps:
- id: read
  tool: filesystem_read
  inputs:
    path: "{{ inputs.file }}"
  retry:
    attempts: 2
    delay: 0.5
- id: each
  tool: filesystem_write
  depends_on: [read]
  map: ["a", "b"]
  max_parallel: 2
  inputs: {path: "{{ item }}", content: "{{ steps.read.outputs.content }}"}
  when: steps.read.status == "completed" && inputs.depth > 1
outputs:
  read: "{{ steps.read.outputs }}"
"""
    mine = await acme.http.post("/workflows", content=text, headers=YAML)
    assert mine.status_code == 201, mine.text
    written = await acme.http.get("/workflows/code-review", headers={"Accept": "application/yaml"})
    assert written.headers["content-type"].startswith("application/yaml")
    assert "description: |" in written.text
    assert "max_delay" not in written.text, "nobody said so"
    theirs = await other_tenant.http.post("/workflows", content=written.content, headers=YAML)
    assert theirs.status_code == 201, theirs.text
    assert (await other_tenant.http.get("/workflows/code-review", headers={"Accept": "text/yaml"})).text == written.text
    for field in ("name", "description", "inputs", "steps", "outputs", "steps_total", "status"):
        assert theirs.json()[field] == mine.json()[field], field
    put = await acme.http.put("/workflows/code-review", content=written.content, headers=YAML)
    assert put.status_code == 200, put.text
    assert put.json()["steps"] == mine.json()["steps"]
    shown = (await acme.http.get("/workflows/code-review", headers={"Accept": "text/html, */*;q=0.8"})).json()
    assert shown == put.json()


async def test_names(acme: TenantClient) -> None:
    one = await made(acme, LIST, name="one")
    await made(acme, LIST, name="two")
    for bad in ("a/b", " a", "executions", "..", one["id"], "a:b", "a\nb"):
        answer = await acme.http.post("/workflows", json={"name": bad, "steps": [LIST]})
        assert answer.status_code == 422, bad
        assert [error["field"] for error in answer.json()["errors"]] == ["name"]
    for answer in (
        await acme.http.post("/workflows", json={"name": "two", "steps": [LIST]}),
        await acme.http.patch("/workflows/one", json={"name": "two"}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert (await acme.http.patch("/workflows/one", json={"name": "uno"})).json()["name"] == "uno"
    assert (await acme.http.get("/workflows/one")).status_code == 404
    assert (await acme.http.delete("/workflows/uno")).status_code == 204
    for answer in (
        await acme.http.delete("/workflows/uno"),
        await acme.http.patch("/workflows/uno", json={"status": "archived"}),
        await acme.http.post("/workflows/uno/execute", json={}),
        await acme.http.get(f"/workflows/{one['id']}"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_lists_count_steps(acme: TenantClient) -> None:
    first = await made(acme, LIST, step("b"))
    second = await made(acme, LIST, status="archived", description="Old.")
    found = (await acme.http.get("/workflows")).json()
    assert [(one["id"], one["steps"]) for one in found["items"]] == [(second["id"], 1), (first["id"], 2)]
    assert found["total"] == 2
    assert found["items"][0] == {**{name: second[name] for name in found["items"][0]}, "steps": 1}
    assert [one["id"] for one in (await acme.http.get("/workflows?status=archived")).json()["items"]] == [second["id"]]
    assert (await acme.http.get("/workflows?limit=1")).json()["has_more"] is True


async def test_patching_changes_what_is_sent(acme: TenantClient) -> None:
    before = await made(acme, LIST, inputs={"x": {"type": "string"}}, outputs="{{ inputs.x }}", description="Old.")
    path = f"/workflows/{before['id']}"
    kept = {"id", "name", "user_id", "tenant_id", "created_at"}
    for method in ("PATCH", "PUT"):
        answer = await acme.http.request(method, path, json={"description": method})
        assert answer.json() == {**before, "description": method, "updated_at": answer.json()["updated_at"]}
    more = {"steps": [LIST, step("b", "list")], "inputs": None, "outputs": None, "description": None}
    after = (await acme.http.patch(path, json=more)).json()
    assert (len(after["steps"]), after["steps_total"]) == (2, 2)
    assert (after["inputs"], after["outputs"], after["description"]) == (None, None, None)
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    refused = await acme.http.patch(path, json={"steps": [step("a", "b")]})
    assert refused.status_code == 422
    assert (await acme.http.get(path)).json() == after
    # What it names may have gone; it can be put away all the same.
    writer = await create_model_agent(acme, "smollm2")
    named = await made(acme, {"id": "a", "agent": writer["name"], "prompt": "x"})
    assert (await acme.http.delete(f"/agents/{writer['id']}")).status_code == 204
    assert (await acme.http.patch(f"/workflows/{named['id']}", json={"outputs": 1})).status_code == 422
    assert (await acme.http.patch(f"/workflows/{named['id']}", json={"status": "archived"})).status_code == 200


async def test_a_workflow_cannot_contain_itself(acme: TenantClient) -> None:
    a, b, c = [await made(acme, LIST, name=name) for name in "abc"]
    inner = {"id": "inner", "workflow": "a"}
    for one, other in ((b, a), (c, b)):
        answer = await acme.http.patch(
            f"/workflows/{one['id']}", json={"steps": [{**inner, "workflow": other["name"]}]}
        )
        assert answer.status_code == 200, answer.text
    for sent, circle in (
        ({"steps": [LIST, {**inner, "workflow": a["id"]}]}, "a → a"),
        ({"steps": [LIST, {**inner, "workflow": c["id"]}]}, "a → c → b → a"),
    ):
        answer = await acme.http.patch("/workflows/a", json=sent)
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["field"]) == (422, "steps[1].workflow")
        assert circle in error["message"]
    # A name that leads back to it.
    free = await made(acme, LIST, name="free")
    await acme.http.patch("/workflows/a", json={"steps": [{**inner, "workflow": "free"}]})
    await acme.http.delete(f"/workflows/{free['id']}")
    taken = await acme.http.patch("/workflows/c", json={"name": "free"})
    assert (taken.status_code, "free → b → a → free" in taken.text) == (422, True), taken.text


async def test_two_at_once_cannot_contain_each_other(acme: TenantClient) -> None:
    for _ in range(5):
        one, other = [await made(acme, LIST) for _ in range(2)]
        answers = await asyncio.gather(
            *(
                acme.http.patch(f"/workflows/{outer['id']}", json={"steps": [{"id": "in", "workflow": inner["id"]}]})
                for outer, inner in ((one, other), (other, one))
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_workflows_nest_so_deep_and_no_deeper(acme: TenantClient) -> None:
    last = await made(acme, LIST)
    for _ in range(MAX_PLAN_DEPTH - 1):
        last = await made(acme, {"id": "in", "workflow": last["name"]})
    told = await wrong(acme, {"id": "in", "workflow": last["name"]})
    assert list(told) == ["steps[0].workflow"]
    assert f"deeper than {MAX_PLAN_DEPTH}" in told["steps[0].workflow"]


async def test_steps_are_counted_with_those_within(acme: TenantClient) -> None:
    told = await wrong(acme, *(step(f"s{number}") for number in range(MAX_PLAN_STEPS + 1)))
    assert list(told) == ["steps"]
    hundred = await made(acme, *(step(f"s{number}") for number in range(100)))
    fit = [{"id": f"w{number}", "workflow": hundred["id"]} for number in range(MAX_PLAN_STEPS // 101)]
    wide = await made(acme, *fit)
    assert wide["steps_total"] == len(fit), "of its own"
    told = await wrong(acme, *fit, {"id": "one_more", "workflow": hundred["id"]})
    assert str(MAX_PLAN_STEPS) in told["steps"]


async def test_an_agent_may_have_nothing_to_run_yet(acme: TenantClient) -> None:
    coder = await acme.create_agent()
    flow = await made(acme, {"id": "a", "agent": coder["name"], "prompt": "x"})
    started = await acme.http.post(f"/workflows/{flow['id']}/execute", json={})
    assert (started.status_code, started.json()["error"]) == (409, "version_not_ready")
    assert started.json()["errors"][0]["field"] == "steps[0].agent"
    outer = await made(acme, LIST, {"id": "in", "workflow": flow["id"]})
    started = await acme.http.post(f"/workflows/{outer['id']}/execute", json={})
    assert (started.status_code, started.json()["error"]) == (409, "version_not_ready")
    assert started.json()["errors"][0]["field"] == "steps[1].workflow"


async def test_what_cannot_be_started(acme: TenantClient) -> None:
    writer = await create_model_agent(acme, "smollm2")
    flow = await made(
        acme,
        {"id": "a", "agent": writer["id"], "prompt": "{{ inputs.x }}"},
        inputs={"x": {"type": "string", "required": True}},
    )
    path = f"/workflows/{flow['id']}/execute"
    for body, place in (
        ({}, "inputs.x"),
        ({"inputs": {"x": 5}}, "inputs.x"),
        ({"inputs": {"x": "a", "y": "b"}}, "inputs.y"),
        ({"inputs": {"x": "a"}, "task": "b"}, "inputs.task"),
        ({"inputs": {"x": "a"}, "payload": {"x": "b"}}, "inputs"),
        ({"inputs": {"x": "a"}, "agent_version_id": "ver_x"}, "agent_version_id"),
        ({"inputs": {"x": "a"}, "max_attempts": 2}, "max_attempts"),
        ({"inputs": {"x": "a"}, "model": "no-such-model-here"}, "model"),
        ({"inputs": {"x": "a"}, "colour": "red"}, "colour"),
    ):
        answer = await acme.http.post(path, json=body)
        assert answer.status_code == 422, (body, answer.text)
        assert [one["field"] for one in answer.json()["errors"]] == [place], body
    listing = await made(acme, LIST, {"id": "in", "workflow": (await made(acme, LIST))["id"]})
    unasked = await acme.http.post(f"/workflows/{listing['id']}/execute", json={"model": "smollm2"})
    assert (unasked.status_code, unasked.json()["errors"][0]["field"]) == (422, "model")
    await acme.http.patch(f"/workflows/{flow['id']}", json={"status": "archived"})
    archived = await acme.http.post(path, json={"inputs": {"x": "a"}})
    assert (archived.status_code, archived.json()["error"]) == (409, "conflict")
    await acme.http.patch(f"/workflows/{flow['id']}", json={"status": "active"})
    await acme.http.delete(f"/agents/{writer['id']}")
    gone = await acme.http.post(path, json={"inputs": {"x": "a"}})
    assert (gone.status_code, gone.json()["errors"][0]["field"]) == (422, "steps[0].agent")
    assert (await acme.http.get("/executions")).json()["total"] == 0


async def test_a_model_agent_is_asked_something(acme: TenantClient) -> None:
    writer = await create_model_agent(acme, "smollm2")
    assert list(await wrong(acme, {"id": "a", "agent": writer["name"]})) == ["steps[0].prompt"]
    told = await wrong(acme, {"id": "a", "agent": writer["name"], "prompt": "x", "inputs": {"task": "y"}})
    assert list(told) == ["steps[0].prompt"]
    await made(acme, {"id": "a", "agent": writer["name"], "inputs": {"task": "y"}})
    asked = {"id": "a", "agent": writer["name"], "prompt": "x"}
    for path in ("../x", "/etc/passwd", "a//../../b", "."):
        told = await wrong(acme, {**asked, "output_file": path})
        assert list(told) == ["steps[0].output_file"], path
        assert "workspace" in told["steps[0].output_file"]
    flow = await made(acme, {**asked, "output_file": "a/b.md"})
    await acme.http.delete(f"/agents/{writer['id']}")
    coder = await acme.create_agent(writer["name"])
    await acme.build_version(coder["id"], pack_archive({"agent.py": "def handle(p): return p\n"}))
    other = await acme.http.post(f"/workflows/{flow['id']}/execute", json={})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "steps[0].output_file")


async def test_what_a_workflow_within_takes(acme: TenantClient) -> None:
    takes = {"x": {"type": "string", "required": True}, "n": {"type": "integer", "default": 3}}
    inner = await made(acme, step("a", inputs={"path": "{{ inputs.x }}"}), inputs=takes)
    told = await wrong(acme, {"id": "in", "workflow": inner["name"], "inputs": {"n": "many", "z": 1}})
    assert set(told) == {"steps[0].inputs.x", "steps[0].inputs.n", "steps[0].inputs.z"}
    await made(acme, {"id": "in", "workflow": inner["name"], "inputs": {"x": "{{ inputs.y }}", "n": "{{ 1 + 1 }}"}})
    told = await wrong(
        acme, LIST, inputs={"x": {"type": "integer", "default": "a"}, "y": {"required": True, "default": 1}}
    )
    assert set(told) == {"inputs.x.default", "inputs.y.default"}


async def test_a_repeated_creation_is_one(acme: TenantClient) -> None:
    headers = {"Idempotency-Key": generate_name("key"), **YAML}
    text = f"name: {generate_name('flow')}\nsteps:\n- id: a\n  tool: filesystem_list\n"
    first, again = [await acme.http.post("/workflows", content=text, headers=headers) for _ in range(2)]
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await acme.http.get("/workflows")).json()["total"] == 1
    other = await acme.http.post("/workflows", content=text + "description: x\n", headers=headers)
    assert other.status_code == 409


async def test_a_body_has_a_limit(acme: TenantClient) -> None:
    big = {"name": "big", "steps": [step("a", inputs={"path": "x" * 1024 * 1024})]}
    assert (await acme.http.post("/workflows", json=big)).status_code == 413
    fits = {"name": "fits", "steps": [step("a", inputs={"path": "x" * 1000 * 1000})]}
    assert (await acme.http.post("/workflows", json=fits)).status_code == 201
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    assert (await acme.http.post("/workflows", json={**fits, "name": "d", "outputs": deep})).status_code == 422
    text = json.dumps({**fits, "name": "e", "outputs": 0}).replace(
        '"outputs": 0', f'"outputs": {"[" * 9000}{"]" * 9000}'
    )
    answer = await acme.http.post("/workflows", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


async def test_budgets_name_workflows(acme: TenantClient, other_tenant: TenantClient) -> None:
    flow = await made(acme, LIST)
    body = {"scope": "workflow", "limit_usd": 1, "period": "day"}
    for reference in (flow["id"], flow["name"]):
        budget = await acme.http.post("/budgets", json={**body, "subject": reference})
        assert (budget.status_code, budget.json()["subject"]) == (201, flow["id"]), budget.text
        assert (await other_tenant.http.post("/budgets", json={**body, "subject": reference})).status_code == 422
    assert (await acme.http.post("/budgets", json={**body, "subject": "nothing"})).status_code == 422
    assert (await acme.http.post("/budgets", json=body)).json()["errors"][0]["field"] == "subject"


async def test_a_workflow_stays_while_a_schedule_starts_it(acme: TenantClient) -> None:
    flow = await made(acme, LIST)
    body = {"name": "nightly", "cron_expression": "0 3 * * *", "workflow_id": flow["name"]}
    schedule = await acme.http.post("/scheduler/schedules", json=body)
    assert schedule.status_code == 201, schedule.text
    refused = await acme.http.delete(f"/workflows/{flow['id']}")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert "'nightly'" in refused.json()["detail"]
    assert (await acme.http.delete(f"/scheduler/schedules/{schedule.json()['id']}")).status_code == 204
    assert (await acme.http.delete(f"/workflows/{flow['id']}")).status_code == 204


async def test_the_document_tells_of_both_forms(system, acme: TenantClient) -> None:
    document = (await acme.http.get(f"{system.url}/openapi.json")).json()
    post = document["paths"]["/api/v1/workflows"]["post"]["requestBody"]
    patch = document["paths"]["/api/v1/workflows/{workflow_id}"]["patch"]["requestBody"]
    for body, schema in ((post, "NewWorkflow"), (patch, "PatchWorkflow")):
        forms = [one["$ref"].rsplit("/", 1)[-1] for one in body["content"]["application/json"]["schema"]["oneOf"]]
        assert forms == [schema, "WorkflowYaml"]
        # Not as a type of its own: generators of clients leave out routes that take a type they do not know.
        assert "application/yaml" in body["description"]
        assert set(forms) <= set(document["components"]["schemas"])
    shown = document["paths"]["/api/v1/workflows/{workflow_id}"]["get"]["responses"]["200"]["content"]
    assert set(shown) == {"application/json", "text/yaml"}
    takes = document["components"]["schemas"]["NewWorkflow"]["properties"]["steps"]
    assert takes["items"]["$ref"].endswith("/WorkflowStep")


async def test_a_crew_within_has_to_be_given_what_its_texts_name(acme: TenantClient) -> None:
    crew = {
        "name": "writers",
        "model": "smollm2",
        "agents_yaml": "writer:\n  role: a writer of {style} texts\n",
        "tasks_yaml": "write:\n  description: Write about {topic}.\n  expected_output: A text.\n  agent: writer\n",
    }
    assert (await acme.http.post("/crews", json=crew)).status_code == 201
    step: dict[str, Any] = {"id": "a", "crew": "writers", "inputs": {"style": "short"}}
    answer = await acme.http.post("/workflows", json={"name": "lacking", "steps": [step]})
    assert answer.status_code == 422
    assert [(one["field"], "'topic'" in one["message"]) for one in answer.json()["errors"]] == [
        ("steps[0].inputs", True)
    ]
    step["inputs"]["topic"] = "{{ inputs.topic }}"
    answer = await acme.http.post("/workflows", json={"name": "given", "steps": [step]})
    assert answer.status_code == 201, answer.text
