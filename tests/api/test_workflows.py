"""Test the workflow routes: invalid fields and their places, YAML and JSON, names, lists, nesting and budgets."""

import asyncio
import json
from typing import Any

import pytest

from domain.plans.schema import MAX_MAP_ITEMS, MAX_PLAN_DEPTH, MAX_PLAN_STEPS
from tests.support.clients import TenantClient, pack_archive
from tests.support.model_agents import create_model_agent, generate_name

YAML_HEADERS = {"Content-Type": "application/yaml"}
LIST_STEP = {"id": "list", "tool": "filesystem_list"}


def build_step(step_id: str, *after: str, **more: Any) -> dict[str, Any]:
    return {**LIST_STEP, "id": step_id, "depends_on": list(after), **more}


async def create_workflow(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def refuse_workflow(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> dict[str, str]:
    """Send an invalid workflow; return the message by field."""
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "invalid_field"
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


INVALID_STEPS: list[tuple[list[Any], str, str]] = [
    ([build_step("a", "b")], "steps[0].depends_on[0]", "no step 'b'"),
    ([build_step("a", "a")], "steps[0].depends_on[0]", "itself"),
    ([build_step("a"), build_step("b"), build_step("a")], "steps[2].id", "'a'"),
    ([{"id": "a"}], "steps[0]", "must name one of agent, crew, tool, workflow"),
    ([build_step("a", agent="x")], "steps[0]", "not agent and tool"),
    ([{"id": "a", "agent": "missing", "prompt": "x"}], "steps[0].agent", "no agent 'missing'"),
    ([{"id": "a", "agent": "agent_01k00000000000000000000000", "prompt": "x"}], "steps[0].agent", "no agent"),
    ([{"id": "a", "tool": "hammer"}], "steps[0].tool", "no tool 'hammer'"),
    ([{"id": "a", "tool": "filesystem_list/x"}], "steps[0].tool", "no tool"),
    ([{"id": "a", "crew": "missing"}], "steps[0].crew", "no crew 'missing'"),
    ([{"id": "a", "workflow": "nothing"}], "steps[0].workflow", "no workflow 'nothing'"),
    ([build_step("a", prompt="Hello")], "steps[0].prompt", "tool"),
    ([build_step("a", max_parallel=2)], "steps[0].max_parallel", "is for a step with map"),
    ([build_step("a", timeout=3601)], "steps[0].timeout", "3600"),
    ([build_step("a", output_file="x")], "steps[0].output_file", "model agent"),
    ([build_step("a", when="inputs.x ==")], "steps[0].when", ""),
    ([build_step("a", when="steps.b.outputs == 1"), build_step("b")], "steps[0].when", "'b'"),
    ([build_step("a", when="steps.c.outputs == 1")], "steps[0].when", "'c'"),
    ([build_step("a", when="item == 1")], "steps[0].when", "item"),
    ([build_step("a", when="item == 1", map="inputs.x")], "steps[0].when", "item"),
    ([build_step("a", map="steps.b.outputs"), build_step("b")], "steps[0].map", "'b'"),
    ([build_step("a", map=list(range(MAX_MAP_ITEMS + 1)))], "steps[0].map", str(MAX_MAP_ITEMS)),
    ([build_step("a", map=["{{ nothing.x }}"])], "steps[0].map[0]", "nothing"),
    ([build_step("a", inputs={"x": {"y": ["ok", "{{ item }}"]}})], "steps[0].inputs", "item"),
    ([build_step("a", inputs={"x": {"y": ["ok", "{{ steps.z.outputs }}"]}})], "steps[0].inputs", "'z'"),
    ([build_step("a", inputs={"x": {"y": ["ok", "{{ 1 + }}"]}})], "steps[0].inputs.x.y[1]", ""),
    ([build_step("a", inputs={"x": "{{ inputs.x.__class__ }}"})], "steps[0].inputs.x", "__class__"),
    ([build_step("a", inputs={"x": "{{ open('f') }}"})], "steps[0].inputs.x", "open"),
    ([build_step("a", inputs={"x": "{{ unclosed"})], "steps[0].inputs.x", ""),
]


async def test_invalid_steps_are_refused_by_field(acme: TenantClient) -> None:
    for steps, place, message in INVALID_STEPS:
        messages = await refuse_workflow(acme, *steps)
        assert list(messages) == [place], (steps, messages)
        assert message in messages[place], (steps, messages)


async def test_cycle_of_steps_is_named(acme: TenantClient) -> None:
    messages = await refuse_workflow(
        acme,
        build_step("start"),
        build_step("a", "c", "start"),
        build_step("b", "a"),
        build_step("c", "b"),
        build_step("end", "c"),
    )
    ((place, message),) = messages.items()
    assert place.startswith("steps[")
    assert place.endswith("].depends_on")
    # The cycle may begin anywhere; each step waits for the next.
    cycles = ("a → c → b → a", "c → b → a → c", "b → a → c → b")
    assert any(cycle in message for cycle in cycles), message


async def test_all_invalid_fields_are_reported_together(acme: TenantClient) -> None:
    ask_step = {"id": "ask", "agent": "missing", "prompt": "{{ steps.late.outputs }}"}
    messages = await refuse_workflow(
        acme,
        ask_step,
        build_step("late", "nowhere", when="1 +"),
        {"id": "x"},
        outputs={"all": "{{ steps.gone.status }}"},
    )
    assert {
        "steps[0].agent",
        "steps[0].prompt",
        "steps[1].depends_on[0]",
        "steps[1].when",
        "steps[2]",
        "outputs",
    } >= set(messages), messages
    assert {"steps[0].agent", "steps[1].depends_on[0]", "steps[1].when", "steps[2]", "outputs"} <= set(messages), (
        messages
    )
    answer = await acme.http.post("/workflows", json={"steps": [{**ask_step, "id": "a[1]"}], "colour": 1})
    assert {error["field"] for error in answer.json()["errors"]} == {"name", "colour", "steps[0].id"}


async def test_errors_in_yaml_name_field_and_line(acme: TenantClient) -> None:
    text = "name: flow\nsteps:\n- id: a\n  agent: missing\n  prompt: x\n- id: b\n  tool: python\n  depends_on:\n  - a\n  - c\n"
    expected = {"steps[0].agent (line 4)", "steps[1].depends_on[1] (line 10)"}
    by_field = await acme.http.post("/workflows", json={"yaml": text})
    for answer in (
        await acme.http.post("/workflows", content=text, headers=YAML_HEADERS),
        await acme.http.post("/workflows", content=text, headers={"Content-Type": "text/yaml; charset=utf-8"}),
        by_field,
    ):
        assert answer.status_code == 422
        assert {error["field"] for error in answer.json()["errors"]} == expected
    workflow = await create_workflow(acme, LIST_STEP)
    patched = await acme.http.patch(f"/workflows/{workflow['id']}", content="steps:\n- id: a\n", headers=YAML_HEADERS)
    assert [error["field"] for error in patched.json()["errors"]] == ["steps[0] (line 2)"]


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
async def test_yaml_with_aliases_tags_or_duplicates_is_refused(acme: TenantClient, text: str) -> None:
    answer = await acme.http.post("/workflows", content=text, headers=YAML_HEADERS)
    assert answer.status_code == 422, answer.text
    assert "body" in answer.json()["errors"][0]["field"] or "line" in answer.json()["errors"][0]["field"]


async def test_yaml_round_trips_between_tenants(acme: TenantClient, other_tenant: TenantClient) -> None:
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
    mine = await acme.http.post("/workflows", content=text, headers=YAML_HEADERS)
    assert mine.status_code == 201, mine.text
    written = await acme.http.get("/workflows/code-review", headers={"Accept": "application/yaml"})
    assert written.headers["content-type"].startswith("application/yaml")
    assert "description: |" in written.text
    assert "max_delay" not in written.text, "defaults are not written"
    theirs = await other_tenant.http.post("/workflows", content=written.content, headers=YAML_HEADERS)
    assert theirs.status_code == 201, theirs.text
    assert (await other_tenant.http.get("/workflows/code-review", headers={"Accept": "text/yaml"})).text == written.text
    for field in ("name", "description", "inputs", "steps", "outputs", "steps_total", "status"):
        assert theirs.json()[field] == mine.json()[field], field
    put = await acme.http.put("/workflows/code-review", content=written.content, headers=YAML_HEADERS)
    assert put.status_code == 200, put.text
    assert put.json()["steps"] == mine.json()["steps"]
    as_json = (await acme.http.get("/workflows/code-review", headers={"Accept": "text/html, */*;q=0.8"})).json()
    assert as_json == put.json()


async def test_invalid_duplicate_and_unknown_names(acme: TenantClient) -> None:
    first = await create_workflow(acme, LIST_STEP, name="one")
    await create_workflow(acme, LIST_STEP, name="two")
    for name in ("a/b", " a", "executions", "..", first["id"], "a:b", "a\nb"):
        answer = await acme.http.post("/workflows", json={"name": name, "steps": [LIST_STEP]})
        assert answer.status_code == 422, name
        assert [error["field"] for error in answer.json()["errors"]] == ["name"]
    for answer in (
        await acme.http.post("/workflows", json={"name": "two", "steps": [LIST_STEP]}),
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
        await acme.http.get(f"/workflows/{first['id']}"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_list_shows_the_number_of_steps(acme: TenantClient) -> None:
    first = await create_workflow(acme, LIST_STEP, build_step("b"))
    second = await create_workflow(acme, LIST_STEP, status="archived", description="Old.")
    listing = (await acme.http.get("/workflows")).json()
    assert [(workflow["id"], workflow["steps"]) for workflow in listing["items"]] == [
        (second["id"], 1),
        (first["id"], 2),
    ]
    assert listing["total"] == 2
    assert listing["items"][0] == {**{name: second[name] for name in listing["items"][0]}, "steps": 1}
    assert [workflow["id"] for workflow in (await acme.http.get("/workflows?status=archived")).json()["items"]] == [
        second["id"]
    ]
    assert (await acme.http.get("/workflows?limit=1")).json()["has_more"] is True


async def test_patch_changes_only_the_sent_fields(acme: TenantClient) -> None:
    before = await create_workflow(
        acme, LIST_STEP, inputs={"x": {"type": "string"}}, outputs="{{ inputs.x }}", description="Old."
    )
    path = f"/workflows/{before['id']}"
    unchanged_fields = {"id", "name", "user_id", "tenant_id", "created_at"}
    for method in ("PATCH", "PUT"):
        answer = await acme.http.request(method, path, json={"description": method})
        assert answer.json() == {**before, "description": method, "updated_at": answer.json()["updated_at"]}
    more = {"steps": [LIST_STEP, build_step("b", "list")], "inputs": None, "outputs": None, "description": None}
    after = (await acme.http.patch(path, json=more)).json()
    assert (len(after["steps"]), after["steps_total"]) == (2, 2)
    assert (after["inputs"], after["outputs"], after["description"]) == (None, None, None)
    assert {name: after[name] for name in unchanged_fields} == {name: before[name] for name in unchanged_fields}
    refused = await acme.http.patch(path, json={"steps": [build_step("a", "b")]})
    assert refused.status_code == 422
    assert (await acme.http.get(path)).json() == after
    # A workflow whose agent was deleted can still be archived.
    writer = await create_model_agent(acme, "smollm2")
    stale_workflow = await create_workflow(acme, {"id": "a", "agent": writer["name"], "prompt": "x"})
    assert (await acme.http.delete(f"/agents/{writer['id']}")).status_code == 204
    assert (await acme.http.patch(f"/workflows/{stale_workflow['id']}", json={"outputs": 1})).status_code == 422
    assert (await acme.http.patch(f"/workflows/{stale_workflow['id']}", json={"status": "archived"})).status_code == 200


async def test_workflow_cannot_contain_itself(acme: TenantClient) -> None:
    a, b, c = [await create_workflow(acme, LIST_STEP, name=name) for name in "abc"]
    inner = {"id": "inner", "workflow": "a"}
    for outer, other in ((b, a), (c, b)):
        answer = await acme.http.patch(
            f"/workflows/{outer['id']}", json={"steps": [{**inner, "workflow": other["name"]}]}
        )
        assert answer.status_code == 200, answer.text
    for sent, cycle in (
        ({"steps": [LIST_STEP, {**inner, "workflow": a["id"]}]}, "a → a"),
        ({"steps": [LIST_STEP, {**inner, "workflow": c["id"]}]}, "a → c → b → a"),
    ):
        answer = await acme.http.patch("/workflows/a", json=sent)
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["field"]) == (422, "steps[1].workflow")
        assert cycle in error["message"]
    # A rename can also close a cycle.
    free = await create_workflow(acme, LIST_STEP, name="free")
    await acme.http.patch("/workflows/a", json={"steps": [{**inner, "workflow": "free"}]})
    await acme.http.delete(f"/workflows/{free['id']}")
    renamed = await acme.http.patch("/workflows/c", json={"name": "free"})
    assert (renamed.status_code, "free → b → a → free" in renamed.text) == (422, True), renamed.text


async def test_concurrent_patches_cannot_create_a_cycle(acme: TenantClient) -> None:
    for _ in range(5):
        first, second = [await create_workflow(acme, LIST_STEP) for _ in range(2)]
        answers = await asyncio.gather(
            *(
                acme.http.patch(f"/workflows/{outer['id']}", json={"steps": [{"id": "in", "workflow": inner["id"]}]})
                for outer, inner in ((first, second), (second, first))
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_nesting_depth_of_workflows_is_limited(acme: TenantClient) -> None:
    last = await create_workflow(acme, LIST_STEP)
    for _ in range(MAX_PLAN_DEPTH - 1):
        last = await create_workflow(acme, {"id": "in", "workflow": last["name"]})
    messages = await refuse_workflow(acme, {"id": "in", "workflow": last["name"]})
    assert list(messages) == ["steps[0].workflow"]
    assert f"deeper than {MAX_PLAN_DEPTH}" in messages["steps[0].workflow"]


async def test_step_limit_includes_nested_workflows(acme: TenantClient) -> None:
    messages = await refuse_workflow(acme, *(build_step(f"s{number}") for number in range(MAX_PLAN_STEPS + 1)))
    assert list(messages) == ["steps"]
    inner = await create_workflow(acme, *(build_step(f"s{number}") for number in range(100)))
    fitting_steps = [{"id": f"w{number}", "workflow": inner["id"]} for number in range(MAX_PLAN_STEPS // 101)]
    outer = await create_workflow(acme, *fitting_steps)
    assert outer["steps_total"] == len(fitting_steps), "counts its own steps only"
    messages = await refuse_workflow(acme, *fitting_steps, {"id": "one_more", "workflow": inner["id"]})
    assert str(MAX_PLAN_STEPS) in messages["steps"]


async def test_agent_without_a_version_cannot_be_started(acme: TenantClient) -> None:
    coder = await acme.create_agent()
    flow = await create_workflow(acme, {"id": "a", "agent": coder["name"], "prompt": "x"})
    started = await acme.http.post(f"/workflows/{flow['id']}/execute", json={})
    assert (started.status_code, started.json()["error"]) == (409, "version_not_ready")
    assert started.json()["errors"][0]["field"] == "steps[0].agent"
    outer = await create_workflow(acme, LIST_STEP, {"id": "in", "workflow": flow["id"]})
    started = await acme.http.post(f"/workflows/{outer['id']}/execute", json={})
    assert (started.status_code, started.json()["error"]) == (409, "version_not_ready")
    assert started.json()["errors"][0]["field"] == "steps[1].workflow"


async def test_invalid_start_is_refused_by_field(acme: TenantClient) -> None:
    writer = await create_model_agent(acme, "smollm2")
    flow = await create_workflow(
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
        assert [error["field"] for error in answer.json()["errors"]] == [place], body
    listing = await create_workflow(
        acme, LIST_STEP, {"id": "in", "workflow": (await create_workflow(acme, LIST_STEP))["id"]}
    )
    unasked = await acme.http.post(f"/workflows/{listing['id']}/execute", json={"model": "smollm2"})
    assert (unasked.status_code, unasked.json()["errors"][0]["field"]) == (422, "model")
    await acme.http.patch(f"/workflows/{flow['id']}", json={"status": "archived"})
    archived = await acme.http.post(path, json={"inputs": {"x": "a"}})
    assert (archived.status_code, archived.json()["error"]) == (409, "conflict")
    await acme.http.patch(f"/workflows/{flow['id']}", json={"status": "active"})
    await acme.http.delete(f"/agents/{writer['id']}")
    without_agent = await acme.http.post(path, json={"inputs": {"x": "a"}})
    assert (without_agent.status_code, without_agent.json()["errors"][0]["field"]) == (422, "steps[0].agent")
    assert (await acme.http.get("/executions")).json()["total"] == 0


async def test_model_agent_step_requires_a_prompt(acme: TenantClient) -> None:
    writer = await create_model_agent(acme, "smollm2")
    assert list(await refuse_workflow(acme, {"id": "a", "agent": writer["name"]})) == ["steps[0].prompt"]
    messages = await refuse_workflow(acme, {"id": "a", "agent": writer["name"], "prompt": "x", "inputs": {"task": "y"}})
    assert list(messages) == ["steps[0].prompt"]
    await create_workflow(acme, {"id": "a", "agent": writer["name"], "inputs": {"task": "y"}})
    agent_step = {"id": "a", "agent": writer["name"], "prompt": "x"}
    for path in ("../x", "/etc/passwd", "a//../../b", "."):
        messages = await refuse_workflow(acme, {**agent_step, "output_file": path})
        assert list(messages) == ["steps[0].output_file"], path
        assert "workspace" in messages["steps[0].output_file"]
    flow = await create_workflow(acme, {**agent_step, "output_file": "a/b.md"})
    await acme.http.delete(f"/agents/{writer['id']}")
    coder = await acme.create_agent(writer["name"])
    await acme.build_version(coder["id"], pack_archive({"agent.py": "def handle(p): return p\n"}))
    other = await acme.http.post(f"/workflows/{flow['id']}/execute", json={})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "steps[0].output_file")


async def test_inputs_of_a_nested_workflow_are_validated(acme: TenantClient) -> None:
    declared_inputs = {"x": {"type": "string", "required": True}, "n": {"type": "integer", "default": 3}}
    inner = await create_workflow(acme, build_step("a", inputs={"path": "{{ inputs.x }}"}), inputs=declared_inputs)
    messages = await refuse_workflow(acme, {"id": "in", "workflow": inner["name"], "inputs": {"n": "many", "z": 1}})
    assert set(messages) == {"steps[0].inputs.x", "steps[0].inputs.n", "steps[0].inputs.z"}
    await create_workflow(
        acme, {"id": "in", "workflow": inner["name"], "inputs": {"x": "{{ inputs.y }}", "n": "{{ 1 + 1 }}"}}
    )
    messages = await refuse_workflow(
        acme, LIST_STEP, inputs={"x": {"type": "integer", "default": "a"}, "y": {"required": True, "default": 1}}
    )
    assert set(messages) == {"inputs.x.default", "inputs.y.default"}


async def test_repeated_creation_with_one_key_creates_one_workflow(acme: TenantClient) -> None:
    headers = {"Idempotency-Key": generate_name("key"), **YAML_HEADERS}
    text = f"name: {generate_name('flow')}\nsteps:\n- id: a\n  tool: filesystem_list\n"
    first, repeated = [await acme.http.post("/workflows", content=text, headers=headers) for _ in range(2)]
    assert (repeated.status_code, repeated.json()) == (201, first.json())
    assert repeated.headers["Idempotency-Replayed"] == "true"
    assert (await acme.http.get("/workflows")).json()["total"] == 1
    other = await acme.http.post("/workflows", content=text + "description: x\n", headers=headers)
    assert other.status_code == 409


async def test_body_size_and_depth_are_limited(acme: TenantClient) -> None:
    big = {"name": "big", "steps": [build_step("a", inputs={"path": "x" * 1024 * 1024})]}
    assert (await acme.http.post("/workflows", json=big)).status_code == 413
    fits = {"name": "fits", "steps": [build_step("a", inputs={"path": "x" * 1000 * 1000})]}
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


async def test_budget_may_refer_to_a_workflow(acme: TenantClient, other_tenant: TenantClient) -> None:
    flow = await create_workflow(acme, LIST_STEP)
    body = {"scope": "workflow", "limit_usd": 1, "period": "day"}
    for reference in (flow["id"], flow["name"]):
        budget = await acme.http.post("/budgets", json={**body, "subject": reference})
        assert (budget.status_code, budget.json()["subject"]) == (201, flow["id"]), budget.text
        assert (await other_tenant.http.post("/budgets", json={**body, "subject": reference})).status_code == 422
    assert (await acme.http.post("/budgets", json={**body, "subject": "nothing"})).status_code == 422
    assert (await acme.http.post("/budgets", json=body)).json()["errors"][0]["field"] == "subject"


async def test_scheduled_workflow_cannot_be_deleted(acme: TenantClient) -> None:
    flow = await create_workflow(acme, LIST_STEP)
    body = {"name": "nightly", "cron_expression": "0 3 * * *", "workflow_id": flow["name"]}
    schedule = await acme.http.post("/scheduler/schedules", json=body)
    assert schedule.status_code == 201, schedule.text
    refused = await acme.http.delete(f"/workflows/{flow['id']}")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert "'nightly'" in refused.json()["detail"]
    assert (await acme.http.delete(f"/scheduler/schedules/{schedule.json()['id']}")).status_code == 204
    assert (await acme.http.delete(f"/workflows/{flow['id']}")).status_code == 204


async def test_openapi_document_describes_json_and_yaml(system, acme: TenantClient) -> None:
    document = (await acme.http.get(f"{system.url}/openapi.json")).json()
    post = document["paths"]["/api/v1/workflows"]["post"]["requestBody"]
    patch = document["paths"]["/api/v1/workflows/{workflow_id}"]["patch"]["requestBody"]
    for body, schema in ((post, "NewWorkflow"), (patch, "PatchWorkflow")):
        forms = [form["$ref"].rsplit("/", 1)[-1] for form in body["content"]["application/json"]["schema"]["oneOf"]]
        assert forms == [schema, "WorkflowYaml"]
        # YAML is no separate content type: client generators omit routes with types they do not know.
        assert "application/yaml" in body["description"]
        assert set(forms) <= set(document["components"]["schemas"])
    content = document["paths"]["/api/v1/workflows/{workflow_id}"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/yaml"}
    steps_schema = document["components"]["schemas"]["NewWorkflow"]["properties"]["steps"]
    assert steps_schema["items"]["$ref"].endswith("/WorkflowStep")


async def test_crew_step_requires_all_inputs_of_its_texts(acme: TenantClient) -> None:
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
    assert [(error["field"], "'topic'" in error["message"]) for error in answer.json()["errors"]] == [
        ("steps[0].inputs", True)
    ]
    step["inputs"]["topic"] = "{{ inputs.topic }}"
    answer = await acme.http.post("/workflows", json={"name": "complete", "steps": [step]})
    assert answer.status_code == 201, answer.text
