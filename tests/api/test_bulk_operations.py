"""Cancel, retry and delete many executions as one operation."""

import secrets
from typing import Any

import msgspec
import pytest

from domain import bulk_operations
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from infra.wiring import Resources
from tests.support.clients import TenantClient, wait_for_result

SLEEPER_SOURCE = "import time\ndef handle(payload):\n    time.sleep(payload.get('seconds', 0))\n    return payload\n"


async def start_operation(tenant: TenantClient, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    answer = await tenant.http.post("/executions/bulk", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def complete_operation(tenant: TenantClient, **body: Any) -> dict[str, Any]:
    """Start an operation, and return it once it is complete."""
    operation = await start_operation(tenant, **body)

    async def probe() -> dict[str, Any] | None:
        current = (await tenant.http.get(f"/executions/bulk/{operation['id']}")).json()
        return dict(current) if current["status"] != "running" else None

    return dict(await wait_for_result(probe))


async def test_executions_are_cancelled_retried_and_deleted_by_filter(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(SLEEPER_SOURCE)
    slow = [await acme.start_execution(agent, {"seconds": 60}, tags=["slow"]) for _ in range(3)]
    fast = await acme.run_agent(agent, {}, tags=["fast"])
    counted = await start_operation(acme, action="cancel", filter={"agent_id": agent}, dry_run=True)
    assert (counted["id"], counted["status"], counted["total"]) == (None, "dry_run", 3)
    cancelled = await complete_operation(acme, action="cancel", filter={"tag": ["slow"]})
    assert (cancelled["total"], cancelled["done"], cancelled["failed"], cancelled["left"]) == (3, 3, 0, 0)
    assert [(await acme.wait_for_end(execution["id"]))["status"] for execution in slow] == ["cancelled"] * 3
    retried = await complete_operation(acme, action="retry", filter={"tag": ["fast"]})
    assert retried["done"] == 1
    again = (await acme.http.get("/executions", params={"tag": "fast"})).json()["items"]
    assert [execution["retry_of"] for execution in again] == [fast["id"], None]
    await acme.wait_for_end(again[0]["id"])
    deleted = await complete_operation(acme, action="delete", filter={"agent_id": agent})
    assert (deleted["done"], deleted["failed"]) == (5, 0)
    assert (await acme.http.get("/executions")).json()["total"] == 0
    listed = (await acme.http.get("/executions/bulk")).json()
    assert [operation["action"] for operation in listed["items"]] == ["delete", "retry", "cancel"]


async def test_refusals_are_counted_and_shown(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(SLEEPER_SOURCE)
    ended = await acme.run_agent(agent)
    running = await acme.start_execution(agent, {"seconds": 60})
    operation = await complete_operation(acme, action="delete", ids=[running["id"], ended["id"], ended["id"]])
    assert (operation["total"], operation["done"], operation["failed"]) == (2, 1, 1)
    assert [(error["execution_id"], error["code"]) for error in operation["errors"]] == [(running["id"], "conflict")]
    await acme.http.post(f"/executions/{running['id']}/cancel")
    refused = await acme.http.post(f"/executions/bulk/{operation['id']}/cancel")
    assert refused.status_code == 409


async def test_the_same_request_is_one_operation(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(SLEEPER_SOURCE)
    await acme.run_agent(agent)
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first, second = [await start_operation(acme, headers, action="retry", filter={"agent_id": agent}) for _ in range(2)]
    assert first["id"] == second["id"]

    async def probe() -> bool:
        return bool((await acme.http.get(f"/executions/bulk/{first['id']}")).json()["status"] == "completed")

    await wait_for_result(probe)
    assert (await acme.http.get("/executions")).json()["total"] == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "cancel"}, "filter"),
        ({"action": "cancel", "filter": {}}, "filter"),
        ({"action": "cancel", "filter": {"status": "failed"}, "ids": []}, "ids"),
        ({"action": "cancel", "ids": []}, "ids"),
        ({"action": "cancel", "ids": ["exec_01k3v9rt0hf7btqeqn5j8x2a4c"]}, "ids[0]"),
        ({"action": "cancel", "ids": ["\0"]}, "ids[0]"),
        ({"action": "stop", "ids": ["x"]}, "action"),
        ({"action": "delete", "filter": {"agent_id": "unknown-agent"}}, "filter.agent_id"),
        ({"action": "delete", "filter": {"crew_id": "a\0"}}, "filter.crew_id"),
        ({"action": "delete", "filter": {"tag": ["a\0"]}}, "filter.tag[0]"),
        ({"action": "delete", "filter": {"tag": [f"t{number}" for number in range(100)]}}, "filter.tag[32]"),
        ({"action": "delete", "filter": {"metadata": ["x"]}}, "filter.metadata[0]"),
        ({"action": "delete", "filter": {"search": "-x"}}, "filter.search"),
        ({"action": "delete", "filter": {"since": "yesterday"}}, "filter.since"),
        ({"action": "delete", "filter": {"parent_id": "x"}}, "filter.parent_id"),
        ({"action": "delete", "filter": {"agent_version_id": "x"}, "more": 1}, "more"),
    ],
)
async def test_bad_operations_are_refused(shared_tenant: TenantClient, body: dict[str, Any], field: str) -> None:
    answer = await shared_tenant.http.post("/executions/bulk", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text


async def test_a_foreign_agent_is_unknown(acme: TenantClient, other_tenant: TenantClient) -> None:
    agent = await acme.create_agent()
    body = {"action": "delete", "filter": {"agent_id": agent["id"]}}
    answer = await other_tenant.http.post("/executions/bulk", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "filter.agent_id")


async def test_each_action_takes_the_scope_of_a_single_one(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(SLEEPER_SOURCE)
    execution = await acme.run_agent(agent)
    for action, scope, other in (
        ("cancel", "run:agents", "write:executions"),
        ("retry", "run:agents", "write:executions"),
        ("delete", "write:executions", "run:agents"),
    ):
        body = {"action": action, "ids": [execution["id"]], "dry_run": True}
        for scopes, status in (([scope], 201), ([other, "read:executions"], 403)):
            async with acme.open_client(await acme.create_key(scopes=scopes)) as client:
                assert (await client.post("/executions/bulk", json=body)).status_code == status, (action, scopes)


async def test_a_tenant_runs_a_bounded_number_of_operations(
    acme: TenantClient, monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    agent = await acme.create_agent()
    body = {"action": "cancel", "filter": {"agent_id": agent["id"]}}
    caller = Caller(tenant_id=acme.tenant_id, user_id=agent["user_id"], role="user", scopes=frozenset({"run:agents"}))
    monkeypatch.setattr(bulk_operations, "MAX_RUNNING_OPERATIONS", 0)
    async with resources.store.transaction(caller) as tx:
        with pytest.raises(DomainError, match="operations are running already"):
            await bulk_operations.start_operation(tx, caller, msgspec.convert(body, bulk_operations.NewBulkOperation))
        dry = msgspec.convert({**body, "dry_run": True}, bulk_operations.NewBulkOperation)
        assert (await bulk_operations.start_operation(tx, caller, dry)).total == 0
