"""Show that runs take and leave what their schemas describe, however they are started and by an agent of any kind."""

import json
from typing import Any

import httpx
import pytest

from tests.support.clients import DEFAULT_MANIFEST, TenantClient, pack_archive
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution, stream_events

ORDER_SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"$ref": "#/$defs/order"},
        "task": {"type": "string"},
        "wrong": {"type": "boolean"},
    },
    "required": ["order"],
    "$defs": {
        "order": {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
            "required": ["items"],
        },
        "item": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]},
    },
}
TOTAL_SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}},
    "required": ["total"],
    "additionalProperties": False,
}
TOTAL_SOURCE = """
def handle(payload):
    total = sum(item["price"] for item in payload["order"]["items"])
    return {"total": f"{total} euros" if payload.get("wrong") else total}
"""
ORDER: dict[str, Any] = {"order": {"items": [{"price": 2}, {"price": 3}]}}
BROKEN_ORDER: dict[str, Any] = {"order": {"items": [{"price": 2}, {"price": "3"}]}}


def read_field_errors(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


async def set_schemas(acme: TenantClient, agent_id: str, **schemas: Any) -> dict[str, Any]:
    answer = await acme.http.patch(f"/agents/{agent_id}", json=schemas)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
async def totals(shared_tenant: TenantClient) -> str:
    """An agent whose manifest names its schemas: one inline, one in a file of the archive."""
    agent = await shared_tenant.create_agent()
    manifest = f"{DEFAULT_MANIFEST}input_schema: schemas/order.yaml\noutput_schema:\n  properties:\n    total: {{type: number}}\n"
    order = "type: object\nproperties: {order: {type: object, properties: {items: {items: {properties: {price: {type: number}}}}}}}\n"
    archive = pack_archive({"agent.py": TOTAL_SOURCE, "schemas/order.yaml": order}, manifest)
    version = await shared_tenant.build_version(agent["id"], archive)
    assert version["status"] == "ready", version["build_log"]
    assert version["output_schema"] == {"properties": {"total": {"type": "number"}}}
    return str(agent["id"])


async def test_the_manifests_schemas_hold_until_the_agent_has_its_own(shared_tenant: TenantClient, totals: str) -> None:
    own_fields = (await shared_tenant.http.get(f"/agents/{totals}")).json()
    assert (own_fields["input_schema"], own_fields["output_schema"]) == (None, None)
    resolved = (await shared_tenant.http.get(f"/agents/{totals}?resolved=true")).json()
    assert resolved["output_schema"] == {"properties": {"total": {"type": "number"}}}
    refused = await shared_tenant.http.post(f"/agents/{totals}/execute", json={"payload": BROKEN_ORDER})
    assert read_field_errors(refused) == {"payload.order.items[1].price": 'must be a number, not "3".'}
    assert (await shared_tenant.run_agent(totals, ORDER))["result"] == {"total": 5}
    wrong = await shared_tenant.run_agent(totals, {**ORDER, "wrong": True})
    assert (wrong["status"], wrong["error_type"], wrong["result"]) == ("failed", "output_invalid", None)
    assert 'output.total: must be a number, not "5 euros".' in wrong["error_message"]
    # The agent's own schema counts for the next run, and the run keeps that of its start.
    await set_schemas(shared_tenant, totals, input_schema={}, output_schema={})
    free = await shared_tenant.run_agent(totals, {**ORDER, "wrong": True})
    assert free["result"] == {"total": "5 euros"}
    await set_schemas(shared_tenant, totals, input_schema=None, output_schema=None)
    again = (await shared_tenant.http.post(f"/executions/{free['id']}/retry")).json()
    assert (await shared_tenant.wait_for_end(again["id"]))["status"] == "completed"
    assert (await shared_tenant.run_agent(totals, {**ORDER, "wrong": True}))["error_type"] == "output_invalid"


async def test_inputs_are_checked_wherever_a_run_is_started(shared_tenant: TenantClient, totals: str) -> None:
    http = shared_tenant.http
    inputs = await http.post("/executions", json={"agent_id": totals, "inputs": BROKEN_ORDER})
    assert list(read_field_errors(inputs)) == ["inputs.order.items[1].price"]
    schedule = {"name": generate_name("s"), "cron_expression": "0 9 * * *", "agent_id": totals, "inputs": BROKEN_ORDER}
    refused = await http.post("/scheduler/schedules", json=schedule)
    assert list(read_field_errors(refused)) == ["inputs.order.items[1].price"]
    created = await http.post("/scheduler/schedules", json={**schedule, "inputs": ORDER})
    assert created.status_code == 201, created.text
    # The schema changes later: the schedule says why it starts nothing.
    strict = {"type": "object", "properties": {"order": {"type": "object", "required": ["customer"]}}}
    await set_schemas(shared_tenant, totals, input_schema=strict)
    try:
        run = await http.post(f"/scheduler/schedules/{created.json()['id']}/run")
        assert list(read_field_errors(run)) == ["inputs.order.customer"]
    finally:
        await set_schemas(shared_tenant, totals, input_schema=None)


async def test_a_step_with_a_broken_input_fails_with_its_own_error(shared_tenant: TenantClient, totals: str) -> None:
    steps = [{"id": "sum", "agent": totals, "inputs": {"order": "{{ inputs.order }}"}}]
    workflow = await shared_tenant.http.post("/workflows", json={"name": generate_name("flow"), "steps": steps})
    path = f"/workflows/{workflow.json()['id']}/execute"
    for order, expected in ((ORDER, None), (BROKEN_ORDER, "input_invalid")):
        started = await shared_tenant.http.post(path, json={"inputs": order})
        assert started.status_code == 201, started.text
        ended = await shared_tenant.wait_for_end(started.json()["id"])
        assert ended["error_type"] == expected, ended
    assert 'payload.order.items[1].price: must be a number, not "3".' in ended["error_message"]


async def test_the_result_of_a_workflow_fits_its_output_schema(shared_tenant: TenantClient, totals: str) -> None:
    workflow = {
        "name": generate_name("flow"),
        "steps": [{"id": "sum", "agent": totals, "inputs": {"order": "{{ inputs.order }}"}}],
        "outputs": {"sums": ["{{ steps.sum.outputs.total }}"]},
        "output_schema": {"properties": {"sums": {"items": {"type": "number", "maximum": 10}}}},
    }
    created = await shared_tenant.http.post("/workflows", json=workflow)
    assert created.status_code == 201, created.text
    path = f"/workflows/{created.json()['id']}"
    assert "maximum: 10" in (await shared_tenant.http.get(path, headers={"Accept": "application/yaml"})).text
    for price, expected in ((2, None), (20, "output_invalid")):
        inputs = {"order": {"items": [{"price": price}]}}
        started = await shared_tenant.http.post(f"{path}/execute", json={"inputs": inputs})
        ended = await shared_tenant.wait_for_end(started.json()["id"])
        assert ended["error_type"] == expected, ended
    assert "output.sums[0]: must be at most 10, not 20." in ended["error_message"]
    refused = await shared_tenant.http.patch(path, json={"output_schema": {"items": []}})
    assert list(read_field_errors(refused)) == ["output_schema.items"]


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"x": {"$ref": "https://example.com/x.json"}}}, "input_schema.properties.x.$ref"),
        ({"$ref": "#"}, "input_schema.$ref"),
        ({"properties": {f"p{number}": {} for number in range(10_000)}}, "input_schema"),
        ({"properties": {"a": {"pattern": "^(?=a)"}}}, "input_schema.properties.a.pattern"),
        ({"anyOf": [{}, {"type": "text"}]}, "input_schema.anyOf[1].type"),
        ({"requird": ["a"]}, "input_schema.requird"),
    ],
)
async def test_a_schema_that_cannot_be_applied_is_refused_with_its_place(
    shared_tenant: TenantClient, schema: dict[str, Any], place: str
) -> None:
    body = {"name": generate_name("agent"), "input_schema": schema}
    assert list(read_field_errors(await shared_tenant.http.post("/agents", json=body))) == [place]
    manifest = f"{DEFAULT_MANIFEST}output_schema: schema.json\n"
    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(
        agent["id"], pack_archive({"agent.py": TOTAL_SOURCE, "schema.json": json.dumps(schema)}, manifest)
    )
    assert version["status"] == "failed"
    assert f"schema.json: `{place.replace('input', 'output')}`" in version["error_message"]


async def test_a_model_is_asked_again_with_what_is_wrong(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    agent = await create_model_agent(acme, name, output_schema=TOTAL_SCHEMA)
    provider.queue_text("The total is 5.", to=name)
    provider.queue_text('{"total": "5"}', to=name)
    provider.queue_text('```json\n{"total": 5}\n```', to=name)
    execution = await run_execution(acme, agent["id"], task="Add 2 and 3")
    assert (execution["status"], execution["result"]) == ("completed", {"total": 5}), execution
    assert [len(request.messages) for request in provider.requests[-3:]] == [1, 3, 5]
    assert 'output.total: must be a number, not "5".' in provider.requests[-1].get_last_text()
    assert provider.requests[-1].body["response_format"]["json_schema"]["schema"]["required"] == ["total"]
    costs = (await acme.http.get(f"/costs?execution_id={execution['id']}")).json()["items"]
    assert len(costs) == 3
    warnings = [event for event in await stream_events(acme, execution["id"]) if event["type"] == "warning"]
    assert len(warnings) == 2


async def test_a_model_that_never_fits_the_schema_ends_as_output_invalid(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, output_schema=TOTAL_SCHEMA, max_steps=1)
    for _ in range(3):
        provider.queue_text('{"total": null}', to=name)
    provider.queue_text('{"total": 1}', to=name)
    execution = await run_execution(acme, agent["id"], task="Add")
    assert (execution["error_type"], execution["result"]) == ("output_invalid", None), execution
    assert "output.total: must be a number, not null." in execution["error_message"]


async def test_a_model_agent_checks_its_task_and_inherits_its_schemas(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    parent = await create_model_agent(acme, name, input_schema=ORDER_SCHEMA, output_schema=TOTAL_SCHEMA)
    child = await create_model_agent(acme, None, parent=parent["id"])
    refused = await acme.http.post(f"/agents/{child['id']}/execute", json={"task": "Add", "payload": BROKEN_ORDER})
    assert read_field_errors(refused) == {"payload.order.items[1].price": 'must be a number, not "3".'}
    provider.queue_text('{"total": 5}', to=name)
    execution = await run_execution(acme, child["id"], task="Add", payload=ORDER)
    assert execution["result"] == {"total": 5}


async def test_with_tools_the_schema_is_part_of_the_prompt(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(
        acme, name, instructions="Be exact.", tools=["filesystem_list"], output_schema=TOTAL_SCHEMA
    )
    provider.queue_tool_call("filesystem_list", {}, to=name)
    provider.queue_text("no JSON", to=name)
    provider.queue_text('{"total": 0}', to=name)
    execution = await run_execution(acme, agent["id"], task="Count")
    assert execution["result"] == {"total": 0}, execution
    system = provider.requests[-1].messages[0]
    assert system["role"] == "system"
    assert "Be exact." in system["content"]
    assert '"additionalProperties":false' in system["content"]


TYPED_SOURCE = """
from dataclasses import dataclass
from datetime import date


@dataclass
class Order:
    day: date
    prices: list[float]


@dataclass
class Report:
    total: float
    day: date


def handle(payload: Order, context) -> Report:
    total = sum(payload.prices)
    return Report(total if total < 100 else "much", payload.day)
"""


async def test_type_hints_describe_an_agent_and_type_its_payload(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.deploy_agent(TYPED_SOURCE)
    resolved = (await shared_tenant.http.get(f"/agents/{agent}?resolved=true")).json()
    assert resolved["input_schema"]["properties"]["day"] == {"type": "string", "format": "date"}
    refused = await shared_tenant.http.post(f"/agents/{agent}/execute", json={"payload": {"day": "x", "prices": "1"}})
    assert sorted(read_field_errors(refused)) == ["payload.day", "payload.prices"]
    good = await shared_tenant.run_agent(agent, {"day": "2026-11-30", "prices": [1, 2]})
    assert good["result"] == {"total": 3.0, "day": "2026-11-30"}, good
    bad = await shared_tenant.run_agent(agent, {"day": "2026-11-30", "prices": [99, 2]})
    assert (bad["error_type"], bad["result"]) == ("output_invalid", None)
    # Without a schema at the door, the payload that does not fit its type fails the run.
    await set_schemas(shared_tenant, agent, input_schema={})
    mismatch = await shared_tenant.run_agent(agent, {"day": "2026-11-30", "prices": "1"})
    assert (mismatch["error_type"], mismatch["error_message"]) == ("input_invalid", "payload.prices: must be a list.")


async def test_the_manifest_goes_before_the_hints_and_a_hint_without_schema_is_logged(
    shared_tenant: TenantClient,
) -> None:
    agent = await shared_tenant.create_agent()
    manifest = f"{DEFAULT_MANIFEST}input_schema: {{properties: {{day: {{type: string}}}}}}\n"
    source = TYPED_SOURCE.replace("-> Report", "-> complex")
    version = await shared_tenant.build_version(agent["id"], pack_archive({"agent.py": source}, manifest))
    assert version["input_schema"] == {"properties": {"day": {"type": "string"}}}
    assert version["output_schema"] is None
    assert "No schema from the type hints: the hint complex has no JSON Schema" in version["build_log"]


async def test_the_answer_to_a_task_fits_its_output_json(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, role="Clerk")
    task = {"name": generate_name("add"), "description": "Add", "expected_output": "A sum", "agent": agent["id"]}
    both = await acme.http.post("/tasks", json={**task, "output_json": TOTAL_SCHEMA, "response_model": TOTAL_SCHEMA})
    assert list(read_field_errors(both)) == ["response_model"]
    refused = await acme.http.post("/tasks", json={**task, "output_json": {"type": "sum"}})
    assert list(read_field_errors(refused)) == ["output_json.type"]
    created = await acme.http.post("/tasks", json={**task, "response_model": TOTAL_SCHEMA})
    assert created.json()["output_json"] == TOTAL_SCHEMA
    crew = await acme.http.post("/crews", json={"name": generate_name("crew"), "tasks": [created.json()["id"]]})
    assert crew.status_code == 201, crew.text
    for answers, expected in ((["five", '{"total": 5}'], {"total": 5}), (["five"] * 3, None)):
        for answer in answers:
            provider.queue_text(answer, to=name)
        started = await acme.http.post(f"/crews/{crew.json()['id']}/execute", json={})
        ended = await acme.wait_for_end(started.json()["id"])
        assert ended["result"] == expected, ended
    assert ended["error_type"] == "output_invalid"


async def test_the_local_model_answers_in_the_schema(acme: TenantClient) -> None:
    """Show that a small model ends in JSON of the schema, or in `output_invalid`."""
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 40}, "in_europe": {"type": "boolean"}},
        "required": ["capital", "in_europe"],
        "additionalProperties": False,
    }
    agent = await create_model_agent(acme, "smollm2", output_schema=schema, max_tokens=60, temperature=0)
    execution = await run_execution(acme, agent["id"], task="What is the capital of France?")
    if execution["status"] == "completed":
        assert set(execution["result"]) == {"capital", "in_europe"}
        assert isinstance(execution["result"]["in_europe"], bool)
    else:
        assert execution["error_type"] == "output_invalid", execution
    # A schema that no grammar enforces: the model learns what is wrong, and the run ends either way.
    odd = {"type": "object", "properties": {"n": {"multipleOf": 7, "minimum": 50}}, "required": ["n"]}
    agent = await create_model_agent(acme, "smollm2", output_schema=odd, max_tokens=40, temperature=0)
    execution = await run_execution(acme, agent["id"], task="Say a number.")
    if execution["status"] == "completed":
        assert execution["result"]["n"] % 7 == 0
    else:
        assert execution["error_type"] == "output_invalid", execution
