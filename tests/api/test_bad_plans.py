"""Every crew, task, template, workflow, schedule and start that is wrong is refused at its place, and leaves nothing."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient, register_tenant

CATALOGUE = ("workflows", "crews", "tasks", "templates", "scheduler/schedules", "executions")
WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES = (f"/{one}" for one in CATALOGUE[:5])
CREW_AGENTS = "ann: {role: r, goal: g, llm: smollm2}\n"
CREW_TASKS = "one: {description: d, agent: ann, expected_output: e}\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
TAG = "a: !!python/object/apply:os.system ['true']\n"
DEEP: Any = json.loads("[" * 200 + "]" * 200)


@pytest.fixture(scope="module")
async def owner(system: System) -> AsyncIterator[TenantClient]:
    """One tenant for all that is refused: nothing may be left in it but what is here from the start."""
    async with register_tenant(system.url) as made:
        for path, body in (
            ("/agents", {"name": "clerk", "role": "r", "goal": "g", "model": "smollm2"}),
            (TASKS, {"name": "Read it", "description": "read {book}", "agent": "clerk"}),
            (TEMPLATES, {"name": "greeting", "template": "Hello {name}"}),
            (CREWS, {"name": "office", "tasks": ["read_it"]}),
            (WORKFLOWS, {"name": "flow", "steps": [step()]}),
            (WORKFLOWS, {"name": "outer", "steps": [{"id": "a", "workflow": "flow"}]}),
            (SCHEDULES, {"name": "nightly", "cron_expression": "0 9 * * *", "workflow_id": "flow"}),
        ):
            answer = await made.http.post(path, json=body)
            assert answer.status_code == 201, answer.text
        yield made


def step(step_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": step_id, "tool": "filesystem_list", **more}


def flow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": f"flow-{secrets.token_hex(4)}", "steps": list(steps) or [step()], **more}


def crew(**more: Any) -> dict[str, Any]:
    both = {"agents_yaml": CREW_AGENTS, "tasks_yaml": CREW_TASKS}
    return {"name": f"crew-{secrets.token_hex(4)}", **both, **more}


def task(**more: Any) -> dict[str, Any]:
    return {"name": f"task-{secrets.token_hex(4)}", "description": "d", **more}


def template(**more: Any) -> dict[str, Any]:
    return {"name": f"template-{secrets.token_hex(4)}", "template": "Hi {name}", **more}


def schedule(**more: Any) -> dict[str, Any]:
    given = {"cron_expression": "0 9 * * *", "workflow_id": "flow", **more}
    return {"name": f"schedule-{secrets.token_hex(4)}", **given}


async def stored(owner: TenantClient) -> dict[str, Any]:
    """Everything that there is, as it is."""
    return {one: (await owner.http.get(f"/{one}")).json() for one in CATALOGUE}


async def refused(owner: TenantClient, method: str, path: str, **sent: Any) -> dict[str, str]:
    """Send what is to be refused with 422, and see that nothing came of it. What is said of each field."""
    before = await stored(owner)
    answer = await owner.http.request(method, path, **sent)
    assert answer.status_code == 422, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 20_000
    assert await stored(owner) == before
    return {one["field"]: one["message"] for one in answer.json()["errors"]}


WRONG: list[tuple[str, str, dict[str, Any], str, str]] = [
    # Circles, unknown names, two of one id.
    ("POST", WORKFLOWS, flow(step("a", depends_on=["b"]), step("b", depends_on=["a"])), "steps[0].depends_on", "cycle"),
    ("PATCH", f"{WORKFLOWS}/flow", {"steps": [{"id": "a", "workflow": "outer"}]}, "steps[0].workflow", "contains its"),
    ("POST", WORKFLOWS, flow(step("a"), step("a")), "steps[1].id", "'a'"),
    ("POST", WORKFLOWS, flow(step(depends_on=["z"])), "steps[0].depends_on[0]", "'z'"),
    ("POST", WORKFLOWS, flow(step(depends_on=["z" * 100_000])), "steps[0].depends_on[0]", "64"),
    ("POST", WORKFLOWS, flow({"id": "a", "tool": "clerk"}), "steps[0].tool", "'clerk'"),
    ("POST", WORKFLOWS, flow({"id": "a", "crew": "flow"}), "steps[0].crew", "'flow'"),
    ("POST", WORKFLOWS, flow(step(inputs={"path": "{{ inputs.flie }}"}), inputs={"file": {}}), "steps[0].inputs", "file"),
    ("POST", WORKFLOWS, flow(step(when="inputs['flie'] == 1"), inputs={"file": {}}), "steps[0].when", "'flie'"),
    ("POST", WORKFLOWS, flow(step(map="inputs.all"), inputs={}), "steps[0].map", "declares no inputs"),
    ("POST", WORKFLOWS, flow({"id": "a", "agent": "clerk", "prompt": "{{ inputs.x }}"}, inputs={}), "steps[0].prompt", "'x'"),
    ("POST", WORKFLOWS, flow(inputs={"file": {}}, outputs=["{{ has(inputs.flie.x) }}"]), "outputs", "'flie'"),
    ("PATCH", f"{WORKFLOWS}/flow", {"inputs": {}, "outputs": "{{ inputs.x }}"}, "outputs", "'x'"),
    ("POST", CREWS, crew(tasks_yaml="a: {description: d, agent: ann, context: [a]}\n"), "tasks_yaml.a.context[0] (line 1)", "cycle"),
    ("POST", CREWS, crew(tasks_yaml=CREW_TASKS * 2), "tasks_yaml (line 2)", "duplicate key"),
    ("POST", CREWS, {"name": "c", "tasks": ["nothing"]}, "tasks[0]", "'nothing'"),
    ("POST", CREWS, crew(model="local/"), "model", "'local/'"),
    ("POST", TASKS, task(agent="office"), "agent", "'office'"),
    ("POST", TASKS, task(context=["nothing"]), "context[0]", "'nothing'"),
    ("POST", SCHEDULES, schedule(workflow_id="office"), "workflow_id", "'office'"),
    # Templates that reach attributes, or never end.
    ("POST", WORKFLOWS, flow(step(inputs={"path": "{{ inputs.x.__class__ }}"})), "steps[0].inputs.path", "__class__"),
    ("POST", WORKFLOWS, flow(step(inputs={"path": "{{ inputs['__class__'] }}"})), "steps[0].inputs.path", "__class__"),
    ("POST", WORKFLOWS, flow(step(inputs={"path": "{% for x in y %}{% endfor %}"})), "steps[0].inputs.path", "Statements"),
    ("POST", WORKFLOWS, flow(step(when="[1].all(x, [1].all(y, true))")), "steps[0].when", "nested"),
    ("POST", WORKFLOWS, flow(step(when="inputs.x.matches('(a{99}){99}')")), "steps[0].when", "pattern"),
    # Conditions and lists that are none.
    ("POST", WORKFLOWS, flow(step(when="1")), "steps[0].when", "a number"),
    ("POST", WORKFLOWS, flow(step(when="{{ 'yes' }}")), "steps[0].when", "text"),
    ("POST", WORKFLOWS, flow(step(when="1 / 0 == 1")), "steps[0].when", "zero"),
    ("POST", WORKFLOWS, flow(step(map="'abc'")), "steps[0].map", "list"),
    ("POST", WORKFLOWS, flow(step(map="1 / 0")), "steps[0].map", "zero"),
    ("POST", WORKFLOWS, flow(step(map={"a": 1})), "steps[0].map", "object"),
    ("POST", WORKFLOWS, flow(step(map=list(range(100_000)))), "steps[0].map", "100000"),
    # What no text can hold, and what is nested beyond reason.
    ("POST", WORKFLOWS, flow(step(inputs={"path": ["\0"]})), "steps[0].inputs", "U+0000"),
    ("POST", WORKFLOWS, flow(step(map=["\0"])), "steps[0].map", "U+0000"),
    ("POST", WORKFLOWS, flow(outputs={"a\0": 1}), "outputs", "U+0000"),
    ("POST", WORKFLOWS, flow(inputs={"a\0": {}}), "inputs", "U+0000"),
    ("POST", WORKFLOWS, flow(inputs={"a": {"default": "\0"}}), "inputs.a.default", "U+0000"),
    ("POST", WORKFLOWS, flow(inputs={"a": {"default": DEEP}}), "inputs.a.default", "deeper"),
    ("POST", WORKFLOWS, flow(step(inputs={"a": DEEP})), "steps[0].inputs", "deeper"),
    ("POST", TASKS, task(output_file="../x"), "output_file", ".."),
    ("POST", TEMPLATES, template(variables=["x"]), "variables", "'"),
    ("POST", f"{TEMPLATES}/greeting/render", {"variables": {"name": "x", "y": 1}}, "variables.y", "is not a variable"),
    # YAML that becomes more than it is.
    ("POST", WORKFLOWS, {"yaml": BOMB}, "yaml", "line 1"),
    ("POST", WORKFLOWS, {"yaml": TAG}, "yaml", "line 1"),
    ("POST", CREWS, crew(agents_yaml=BOMB), "agents_yaml (line 1)", "anchors"),
    ("POST", CREWS, crew(tasks_yaml=TAG), "tasks_yaml (line 1)", "tags"),
    # Cron lines that never fire, and what a schedule cannot start.
    *(
        ("POST", SCHEDULES, schedule(cron_expression=line), "cron_expression", "")
        for line in ("0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "* * * *", "*/0 * * * *", "@reboot", "0 9 * * 8", "0 9 * * *\0")
    ),
    ("POST", SCHEDULES, schedule(timezone="../../etc/passwd"), "timezone", "time zone"),
    ("POST", SCHEDULES, schedule(inputs={"a": "x" * 70_000}), "inputs", "65536"),
    ("PATCH", f"{SCHEDULES}/nightly", {"inputs": {"a": "x" * 70_000}}, "inputs", "65536"),
    ("PATCH", f"{SCHEDULES}/nightly", {"crew_id": "office"}, "inputs.book", "required"),
    # Starts.
    ("POST", "/executions", {}, "agent_id", "one of"),
    ("POST", "/executions", {"crew_id": "office", "workflow_id": "flow"}, "workflow_id", "one of"),
    ("POST", "/executions", {"crew_id": "office"}, "inputs.book", "required"),
    ("POST", "/executions", {"workflow_id": "flow", "cost_limit": 1}, "cost_limit", ""),
    ("POST", "/executions", {"workflow_id": "flow", "model": "smollm2"}, "model", ""),
    ("POST", "/executions/generate-name", {"description": " "}, "description", "required"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "field", "told"), WRONG)
async def test_each_is_refused_at_its_place(
    owner: TenantClient, method: str, path: str, body: dict[str, Any], field: str, told: str
) -> None:
    # Not by httpx, which has no words for halves of pairs.
    found = await refused(owner, method, path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert field in found, found
    assert told in found[field], found


@pytest.mark.parametrize("path", [WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES, "/executions", "/crews/debug"])
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff", b'{"name":"\\ud800"}', b"[" * 100_000])
async def test_what_is_no_object_is_refused_everywhere(owner: TenantClient, path: str, body: bytes) -> None:
    answer = await owner.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("one", [WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES])
async def test_names_and_unknown_references(owner: TenantClient, other_tenant: TenantClient, one: str) -> None:
    """Names that cannot stand in a path are refused; whatever is no name of ours is not found, however long."""
    make = {WORKFLOWS: flow, CREWS: crew, TASKS: task, TEMPLATES: template, SCHEDULES: schedule}[one]
    for name in ("", " a", "a/b", "a:b", "..", "a\nb", "x" * 129):
        assert list(await refused(owner, "POST", one, json={**make(), "name": name})) == ["name"]
    theirs = (await other_tenant.http.post(WORKFLOWS, json=flow())).json()["id"]
    for reference in ("nothing", "%00", "%ff", "x" * 5_000, theirs):
        for method in ("GET", "PATCH", "DELETE"):
            answer = await owner.http.request(method, f"{one}/{reference}", json={} if method == "PATCH" else None)
            assert answer.status_code == 404, answer.text
            assert len(answer.json()["detail"]) < 300


async def test_all_that_is_wrong_with_a_task_is_told_at_once(owner: TenantClient) -> None:
    body = {"name": "a/b", "agent": "x", "tools": ["y"], "context": ["z"], "output_file": ".."}
    found = await refused(owner, "POST", TASKS, json=body)
    assert set(found) == {"name", "description", "agent", "tools[0]", "context[0]", "output_file"}


async def test_an_unknown_task_of_a_crew_is_told_alone(owner: TenantClient) -> None:
    """Whoever named a task need not hear that a crew needs one."""
    answer = await owner.http.post("/crews/debug", json={"tasks": ["nothing"]})
    assert [one["field"] for one in answer.json()["errors"]] == ["tasks[0]"]
    answer = await owner.http.post("/crews/debug", json={})
    assert [one["field"] for one in answer.json()["errors"]] == ["tasks_yaml"]


async def test_declared_inputs_may_be_asked_for_in_any_way(owner: TenantClient) -> None:
    steps = [step(inputs={"path": "{{ inputs.a }}{{ inputs['b c'] }}"}, when="has(inputs.a) && size(inputs) > 1")]
    answer = await owner.http.post(WORKFLOWS, json=flow(*steps, inputs={"a": {}, "b c": {}}))
    assert answer.status_code == 201, answer.text
    assert (await owner.http.delete(f"{WORKFLOWS}/{answer.json()['id']}")).status_code == 204


async def test_a_wrong_parameter_is_called_what_it_is_called(owner: TenantClient) -> None:
    found = await refused(owner, "POST", "/executions/exec_0/retry?from=middle")
    assert list(found) == ["from"]


async def test_tasks_that_begin_to_need_each_other_at_once(acme: TenantClient) -> None:
    """One of them does; the other hears of the circle, and nobody of a database that did not answer."""
    names = [f"task-{number}" for number in range(4)]
    for name in names:
        assert (await acme.http.post(TASKS, json={"name": name, "description": "d"})).status_code == 201
    for _ in range(5):
        for name in names:
            await acme.http.patch(f"{TASKS}/{name}", json={"context": []})
        around = zip(names, names[1:] + names[:1], strict=True)
        answers = await asyncio.gather(
            *(acme.http.patch(f"{TASKS}/{name}", json={"context": [other]}) for name, other in around)
        )
        assert sorted(one.status_code for one in answers) == [200, 200, 200, 422]


async def test_workflows_that_are_long_in_the_making_keep_nobody_else_waiting(
    acme: TenantClient, other_tenant: TenantClient, resources: Resources, system: System
) -> None:
    """However many of one tenant's wait for each other, there are connections for the others."""
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        await tx.workflows.lock_writes()
        many = range(3 * system.settings.database_pool)
        waiting = [asyncio.create_task(acme.http.post(WORKFLOWS, json=flow())) for _ in many]
        for _ in many:
            assert (await other_tenant.http.get(WORKFLOWS)).status_code == 200
        assert not any(one.done() for one in waiting)
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {201}
