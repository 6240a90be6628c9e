"""Test that every invalid crew, task, template, workflow, schedule and start is refused by field and stores nothing."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient, register_tenant

LISTED_PATHS = ("workflows", "crews", "tasks", "templates", "scheduler/schedules", "executions")
WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES = (f"/{path}" for path in LISTED_PATHS[:5])
CREW_AGENTS = "ann: {role: r, goal: g, llm: smollm2}\n"
CREW_TASKS = "one: {description: d, agent: ann, expected_output: e}\n"
YAML_ALIAS_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
YAML_PYTHON_TAG = "a: !!python/object/apply:os.system ['true']\n"
DEEP_LIST: Any = json.loads("[" * 200 + "]" * 200)


@pytest.fixture(scope="module")
async def owner(system: System) -> AsyncIterator[TenantClient]:
    """Yield one tenant for all refused requests: they may store nothing beside what is created here."""
    async with register_tenant(system.url) as owner_tenant:
        for path, body in (
            ("/agents", {"name": "clerk", "role": "r", "goal": "g", "model": "smollm2"}),
            (TASKS, {"name": "Read it", "description": "read {book}", "agent": "clerk"}),
            (TEMPLATES, {"name": "greeting", "template": "Hello {name}"}),
            (CREWS, {"name": "office", "tasks": ["read_it"]}),
            (WORKFLOWS, {"name": "flow", "steps": [build_step()]}),
            (WORKFLOWS, {"name": "outer", "steps": [{"id": "a", "workflow": "flow"}]}),
            (SCHEDULES, {"name": "nightly", "cron_expression": "0 9 * * *", "workflow_id": "flow"}),
        ):
            answer = await owner_tenant.http.post(path, json=body)
            assert answer.status_code == 201, answer.text
        yield owner_tenant


def build_step(step_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": step_id, "tool": "filesystem_list", **more}


def build_workflow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": f"flow-{secrets.token_hex(4)}", "steps": list(steps) or [build_step()], **more}


def build_crew(**more: Any) -> dict[str, Any]:
    documents = {"agents_yaml": CREW_AGENTS, "tasks_yaml": CREW_TASKS}
    return {"name": f"crew-{secrets.token_hex(4)}", **documents, **more}


def build_task(**more: Any) -> dict[str, Any]:
    return {"name": f"task-{secrets.token_hex(4)}", "description": "d", **more}


def build_template(**more: Any) -> dict[str, Any]:
    return {"name": f"template-{secrets.token_hex(4)}", "template": "Hi {name}", **more}


def build_schedule(**more: Any) -> dict[str, Any]:
    fields = {"cron_expression": "0 9 * * *", "workflow_id": "flow", **more}
    return {"name": f"schedule-{secrets.token_hex(4)}", **fields}


async def read_stored(owner: TenantClient) -> dict[str, Any]:
    """Return all lists of the tenant."""
    return {path: (await owner.http.get(f"/{path}")).json() for path in LISTED_PATHS}


async def send_invalid(owner: TenantClient, method: str, path: str, **request: Any) -> dict[str, str]:
    """Send a request that must be refused with 422 and store nothing; return the message by field."""
    before = await read_stored(owner)
    answer = await owner.http.request(method, path, **request)
    assert answer.status_code == 422, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 20_000
    assert await read_stored(owner) == before
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


INVALID_REQUESTS: list[tuple[str, str, dict[str, Any], str, str]] = [
    # Cycles, unknown names, duplicate ids.
    ("POST", WORKFLOWS, build_workflow(build_step("a", depends_on=["b"]), build_step("b", depends_on=["a"])), "steps[0].depends_on", "cycle"),
    ("PATCH", f"{WORKFLOWS}/flow", {"steps": [{"id": "a", "workflow": "outer"}]}, "steps[0].workflow", "contains its"),
    ("POST", WORKFLOWS, build_workflow(build_step("a"), build_step("a")), "steps[1].id", "'a'"),
    ("POST", WORKFLOWS, build_workflow(build_step(depends_on=["z"])), "steps[0].depends_on[0]", "'z'"),
    ("POST", WORKFLOWS, build_workflow(build_step(depends_on=["z" * 100_000])), "steps[0].depends_on[0]", "64"),
    ("POST", WORKFLOWS, build_workflow({"id": "a", "tool": "clerk"}), "steps[0].tool", "'clerk'"),
    ("POST", WORKFLOWS, build_workflow({"id": "a", "crew": "flow"}), "steps[0].crew", "'flow'"),
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"path": "{{ inputs.flie }}"}), inputs={"file": {}}), "steps[0].inputs", "file"),
    ("POST", WORKFLOWS, build_workflow(build_step(when="inputs['flie'] == 1"), inputs={"file": {}}), "steps[0].when", "'flie'"),
    ("POST", WORKFLOWS, build_workflow(build_step(map="inputs.all"), inputs={}), "steps[0].map", "declares no inputs"),
    ("POST", WORKFLOWS, build_workflow({"id": "a", "agent": "clerk", "prompt": "{{ inputs.x }}"}, inputs={}), "steps[0].prompt", "'x'"),
    ("POST", WORKFLOWS, build_workflow(inputs={"file": {}}, outputs=["{{ has(inputs.flie.x) }}"]), "outputs", "'flie'"),
    ("PATCH", f"{WORKFLOWS}/flow", {"inputs": {}, "outputs": "{{ inputs.x }}"}, "outputs", "'x'"),
    ("POST", CREWS, build_crew(tasks_yaml="a: {description: d, agent: ann, context: [a]}\n"), "tasks_yaml.a.context[0] (line 1)", "cycle"),
    ("POST", CREWS, build_crew(tasks_yaml=CREW_TASKS * 2), "tasks_yaml (line 2)", "duplicate key"),
    ("POST", CREWS, {"name": "c", "tasks": ["nothing"]}, "tasks[0]", "'nothing'"),
    ("POST", CREWS, build_crew(model="local/"), "model", "'local/'"),
    ("POST", TASKS, build_task(agent="office"), "agent", "'office'"),
    ("POST", TASKS, build_task(context=["nothing"]), "context[0]", "'nothing'"),
    ("POST", SCHEDULES, build_schedule(workflow_id="office"), "workflow_id", "'office'"),
    # Templates that reach attributes or do not end.
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"path": "{{ inputs.x.__class__ }}"})), "steps[0].inputs.path", "__class__"),
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"path": "{{ inputs['__class__'] }}"})), "steps[0].inputs.path", "__class__"),
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"path": "{% for x in y %}{% endfor %}"})), "steps[0].inputs.path", "Statements"),
    ("POST", WORKFLOWS, build_workflow(build_step(when="[1].all(x, [1].all(y, true))")), "steps[0].when", "nested"),
    ("POST", WORKFLOWS, build_workflow(build_step(when="inputs.x.matches('(a{99}){99}')")), "steps[0].when", "pattern"),
    # Conditions that are not booleans and lists that are not lists.
    ("POST", WORKFLOWS, build_workflow(build_step(when="1")), "steps[0].when", "a number"),
    ("POST", WORKFLOWS, build_workflow(build_step(when="{{ 'yes' }}")), "steps[0].when", "text"),
    ("POST", WORKFLOWS, build_workflow(build_step(when="1 / 0 == 1")), "steps[0].when", "zero"),
    ("POST", WORKFLOWS, build_workflow(build_step(map="'abc'")), "steps[0].map", "list"),
    ("POST", WORKFLOWS, build_workflow(build_step(map="1 / 0")), "steps[0].map", "zero"),
    ("POST", WORKFLOWS, build_workflow(build_step(map={"a": 1})), "steps[0].map", "object"),
    ("POST", WORKFLOWS, build_workflow(build_step(map=list(range(100_000)))), "steps[0].map", "100000"),
    # Characters that text cannot hold, and values that are nested too deep.
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"path": ["\0"]})), "steps[0].inputs", "U+0000"),
    ("POST", WORKFLOWS, build_workflow(build_step(map=["\0"])), "steps[0].map", "U+0000"),
    ("POST", WORKFLOWS, build_workflow(outputs={"a\0": 1}), "outputs", "U+0000"),
    ("POST", WORKFLOWS, build_workflow(inputs={"a\0": {}}), "inputs", "U+0000"),
    ("POST", WORKFLOWS, build_workflow(inputs={"a": {"default": "\0"}}), "inputs.a.default", "U+0000"),
    ("POST", WORKFLOWS, build_workflow(inputs={"a": {"default": DEEP_LIST}}), "inputs.a.default", "deeper"),
    ("POST", WORKFLOWS, build_workflow(build_step(inputs={"a": DEEP_LIST})), "steps[0].inputs", "deeper"),
    ("POST", TASKS, build_task(output_file="../x"), "output_file", ".."),
    ("POST", TEMPLATES, build_template(variables=["x"]), "variables", "'"),
    ("POST", f"{TEMPLATES}/greeting/render", {"variables": {"name": "x", "y": 1}}, "variables.y", "is not a variable"),
    # YAML that expands.
    ("POST", WORKFLOWS, {"yaml": YAML_ALIAS_BOMB}, "yaml", "line 1"),
    ("POST", WORKFLOWS, {"yaml": YAML_PYTHON_TAG}, "yaml", "line 1"),
    ("POST", CREWS, build_crew(agents_yaml=YAML_ALIAS_BOMB), "agents_yaml (line 1)", "anchors"),
    ("POST", CREWS, build_crew(tasks_yaml=YAML_PYTHON_TAG), "tasks_yaml (line 1)", "tags"),
    # Cron lines that are never due, and targets that a schedule cannot start.
    *(
        ("POST", SCHEDULES, build_schedule(cron_expression=line), "cron_expression", "")
        for line in ("0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "* * * *", "*/0 * * * *", "@reboot", "0 9 * * 8", "0 9 * * *\0")
    ),
    ("POST", SCHEDULES, build_schedule(timezone="../../etc/passwd"), "timezone", "time zone"),
    ("POST", SCHEDULES, build_schedule(inputs={"a": "x" * 70_000}), "inputs", "65536"),
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


@pytest.mark.parametrize(("method", "path", "body", "field", "message"), INVALID_REQUESTS)
async def test_invalid_request_is_refused_by_field(
    owner: TenantClient, method: str, path: str, body: dict[str, Any], field: str, message: str
) -> None:
    # httpx cannot encode halves of surrogate pairs.
    messages = await send_invalid(
        owner, method, path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert field in messages, messages
    assert message in messages[field], messages


@pytest.mark.parametrize("path", [WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES, "/executions", "/crews/debug"])
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff", b'{"name":"\\ud800"}', b"[" * 100_000])
async def test_body_that_is_no_object_is_refused(owner: TenantClient, path: str, body: bytes) -> None:
    answer = await owner.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [WORKFLOWS, CREWS, TASKS, TEMPLATES, SCHEDULES])
async def test_invalid_names_are_refused_and_unknown_references_not_found(
    owner: TenantClient, other_tenant: TenantClient, path: str
) -> None:
    """Refuse names that cannot stand in a path, and answer 404 for unknown references of any length."""
    build = {
        WORKFLOWS: build_workflow,
        CREWS: build_crew,
        TASKS: build_task,
        TEMPLATES: build_template,
        SCHEDULES: build_schedule,
    }[path]
    for name in ("", " a", "a/b", "a:b", "..", "a\nb", "x" * 129):
        assert list(await send_invalid(owner, "POST", path, json={**build(), "name": name})) == ["name"]
    rival_id = (await other_tenant.http.post(WORKFLOWS, json=build_workflow())).json()["id"]
    for reference in ("nothing", "%00", "%ff", "x" * 5_000, rival_id):
        for method in ("GET", "PATCH", "DELETE"):
            answer = await owner.http.request(method, f"{path}/{reference}", json={} if method == "PATCH" else None)
            assert answer.status_code == 404, answer.text
            assert len(answer.json()["detail"]) < 300


async def test_all_invalid_fields_of_a_task_are_reported_together(owner: TenantClient) -> None:
    body = {"name": "a/b", "agent": "x", "tools": ["y"], "context": ["z"], "output_file": ".."}
    messages = await send_invalid(owner, "POST", TASKS, json=body)
    assert set(messages) == {"name", "description", "agent", "tools[0]", "context[0]", "output_file"}


async def test_unknown_task_of_a_crew_is_the_only_error(owner: TenantClient) -> None:
    """Report the unknown task without the error for a crew that has no tasks."""
    answer = await owner.http.post("/crews/debug", json={"tasks": ["nothing"]})
    assert [error["field"] for error in answer.json()["errors"]] == ["tasks[0]"]
    answer = await owner.http.post("/crews/debug", json={})
    assert [error["field"] for error in answer.json()["errors"]] == ["tasks_yaml"]


async def test_declared_inputs_may_be_referenced_in_any_syntax(owner: TenantClient) -> None:
    steps = [build_step(inputs={"path": "{{ inputs.a }}{{ inputs['b c'] }}"}, when="has(inputs.a) && size(inputs) > 1")]
    answer = await owner.http.post(WORKFLOWS, json=build_workflow(*steps, inputs={"a": {}, "b c": {}}))
    assert answer.status_code == 201, answer.text
    assert (await owner.http.delete(f"{WORKFLOWS}/{answer.json()['id']}")).status_code == 204


async def test_invalid_parameter_is_named_as_on_the_wire(owner: TenantClient) -> None:
    messages = await send_invalid(owner, "POST", "/executions/exec_0/retry?from=middle")
    assert list(messages) == ["from"]


async def test_concurrent_patches_cannot_create_a_cycle_of_tasks(acme: TenantClient) -> None:
    """Accept all but the last of a cycle, which is refused as a cycle and not as a database error."""
    names = [f"task-{number}" for number in range(4)]
    for name in names:
        assert (await acme.http.post(TASKS, json={"name": name, "description": "d"})).status_code == 201
    for _ in range(5):
        for name in names:
            await acme.http.patch(f"{TASKS}/{name}", json={"context": []})
        pairs = zip(names, names[1:] + names[:1], strict=True)
        answers = await asyncio.gather(
            *(acme.http.patch(f"{TASKS}/{name}", json={"context": [other]}) for name, other in pairs)
        )
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 422]


async def test_waiting_writes_of_one_tenant_do_not_block_others(
    acme: TenantClient, other_tenant: TenantClient, resources: Resources, system: System
) -> None:
    """Ensure that waiting writes of one tenant leave connections for other tenants."""
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        await tx.workflows.lock_writes()
        attempts = range(3 * system.settings.database_pool)
        creations = [asyncio.create_task(acme.http.post(WORKFLOWS, json=build_workflow())) for _ in attempts]
        for _ in attempts:
            assert (await other_tenant.http.get(WORKFLOWS)).status_code == 200
        assert not any(task.done() for task in creations)
    assert {answer.status_code for answer in await asyncio.gather(*creations)} == {201}
