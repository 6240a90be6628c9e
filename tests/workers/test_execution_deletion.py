"""Deleted executions leave no trace but their costs, and old events go before their executions."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from domain.shared import ids
from infra.wiring import Resources
from tests.support.clients import TenantClient, wait_for_result
from tests.support.ended_work import SLEEPER, connect_as_owner, create_ended_work, wait_until_recorded
from tests.support.fake_provider import FakeProvider
from workers.upkeep.retention import RetentionSweeper

_TABLES_SQL = """
    SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition ORDER BY 1
"""


async def _find_mentions(owner: asyncpg.Connection, execution_ids: list[str]) -> dict[str, int]:
    """Count the rows of every table, a new one included, that mention one of these executions in any column."""
    names = [str(ids.decode_id("exec", execution_id)) for execution_id in execution_ids] + execution_ids
    mentions = {}
    for (table,) in await owner.fetch(_TABLES_SQL):
        query = f"SELECT count(*) FROM {table} AS t WHERE t::text ~ $1"
        mentions[table] = await owner.fetchval(query, "|".join(names))
    return {table: count for table, count in mentions.items() if count}


async def _list_objects(resources: Resources, prefix: str) -> list[str]:
    return [blob.key async for blob in resources.blobs.list_objects(prefix)]


async def test_deleted_executions_are_mentioned_nowhere(
    system, resources, acme: TenantClient, provider: FakeProvider
) -> None:
    work = await create_ended_work(acme, provider)
    roots = [execution["id"] for execution in (await acme.http.get("/executions")).json()["items"]]
    assert len(roots) == 3
    evaluation = {"prompt": "a", "response": "b", "execution_id": roots[0]}
    assert (await acme.http.post("/evaluations", json=evaluation)).status_code == 201
    labels = {"run_name": "named", "tags": ["x"], "metadata": {"customer": 7}}
    assert (await acme.http.patch(f"/executions/{roots[0]}", json=labels)).status_code == 200
    retried = (await acme.http.post(f"/executions/{roots[0]}/retry")).json()
    await acme.wait_for_end(retried["id"])
    async with connect_as_owner(system) as owner:
        await wait_until_recorded(owner, acme.tenant_id)
        # What was queued for the search is dropped once it was looked at.
        assert await wait_for_result(lambda: _is_queue_empty(owner))
        before = await _find_mentions(owner, work["executions"])
        assert {"executions", "execution_events", "workspace_files", "artifacts", "evaluations", "costs"} <= set(before)
        assert {"plans", "plan_steps", "execution_steps", "execution_terms", "execution_term_lists"} <= set(before)
        costs = (await acme.http.get("/costs/summary")).json()
        spent = await owner.fetchval("SELECT sum(cost_usd) FROM costs WHERE tenant_id = $1", acme.tenant_id)
        assert spent > 0
        assert await _list_objects(resources, f"workspaces/{acme.tenant_id}/") != []
        for root in roots:
            answer = await acme.http.delete(f"/executions/{root}")
            assert answer.status_code == 204, answer.text
        # Objects are on a list until object storage has deleted them.
        assert await wait_for_result(lambda: _has_no_files_of(resources, acme.tenant_id, work["written"][0]))
        assert set(await _find_mentions(owner, work["executions"])) <= {"doomed_objects"}
        assert await wait_for_result(lambda: _has_no_doomed_objects(owner))
        assert await _find_mentions(owner, work["executions"]) == {}
        # Costs stay, in rows and in sums; the execution that was a retry stays, and names none.
        assert await owner.fetchval("SELECT sum(cost_usd) FROM costs WHERE tenant_id = $1", acme.tenant_id) == spent
        assert (await acme.http.get("/costs/summary")).json() == costs
        assert (await acme.http.get(f"/executions/{retried['id']}")).json()["retry_of"] is None
        assert (await acme.http.get("/stats")).json()["total_artifacts"] == await owner.fetchval(
            "SELECT count(*) FROM artifacts WHERE tenant_id = $1", acme.tenant_id
        )
    for root in roots:
        assert (await acme.http.get(f"/executions/{root}")).status_code == 404
        assert (await acme.http.delete(f"/executions/{root}")).status_code == 404


async def _is_queue_empty(owner: asyncpg.Connection) -> bool:
    return not await owner.fetchval("SELECT EXISTS (SELECT FROM execution_term_queue)")


async def _has_no_doomed_objects(owner: asyncpg.Connection) -> bool:
    return not await owner.fetchval("SELECT EXISTS (SELECT FROM doomed_objects)")


async def _has_no_files_of(resources: Resources, tenant_id: str, execution_id: str) -> bool:
    return await _list_objects(resources, f"workspaces/{tenant_id}/{execution_id}/") == []


# Columns that hold ids of executions, which deletions take care of.
_KNOWN_COLUMNS = {
    "artifacts.execution_id",
    "bulk_items.execution_id",
    "cost_holds.execution_id",
    "cost_holds.root_id",
    "costs.execution_id",
    "crew_memories.execution_id",
    "crew_memories.run_id",
    "evaluations.execution_id",
    "execution_events.execution_id",
    "execution_steps.execution_id",
    "execution_term_lists.execution_id",
    "execution_term_queue.execution_id",
    "execution_terms.execution_id",
    "executions.parent_id",
    "executions.retry_of",
    "executions.root_id",
    "plan_calls.execution_id",
    "plan_signals.execution_id",
    "plan_steps.child_id",
    "plan_steps.execution_id",
    "plans.execution_id",
    "schedule_runs.execution_id",
    "schedules.last_execution_id",
    "thread_messages.execution_id",
    "trace_exports.execution_id",
    "workspace_files.execution_id",
}
_COLUMNS_SQL = """
    SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND NOT a.attisdropped AND a.atttypid = 'uuid'::regtype
      AND (a.attname ~ 'execution_id|run_id|root_id|child_id|retry_of'
           OR (c.relname = 'executions' AND a.attname = 'parent_id'))
"""


async def test_every_column_with_ids_of_executions_is_known(system) -> None:
    """A new column must be treated in `erase_executions.sql` or `forget_execution_rows.sql`, and then be named here."""
    async with connect_as_owner(system) as owner:
        assert {name for (name,) in await owner.fetch(_COLUMNS_SQL)} == _KNOWN_COLUMNS


async def test_open_executions_and_steps_are_not_deleted(acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    steps = [{"id": "one", "agent": sleeper, "inputs": {"for": 60}}]
    workflow = (await acme.http.post("/workflows", json={"name": "slow", "steps": steps})).json()
    plan = (await acme.http.post(f"/workflows/{workflow['id']}/execute", json={})).json()

    async def find_step() -> str | None:
        items = (await acme.http.get("/executions", params={"parent_id": plan["id"]})).json()["items"]
        return str(items[0]["id"]) if items else None

    step = await wait_for_result(find_step)
    for execution_id, detail in ((plan["id"], "only one that has ended"), (step, "is a step")):
        answer = await acme.http.delete(f"/executions/{execution_id}")
        assert (answer.status_code, detail in answer.json()["detail"]) == (409, True), answer.text
    await acme.http.post(f"/executions/{plan['id']}/cancel")
    answer = await acme.http.delete(f"/executions/{step}")
    assert answer.status_code == 409
    assert (await acme.http.delete(f"/executions/{plan['id']}")).status_code == 204
    assert (await acme.http.get(f"/executions/{step}")).status_code == 404


async def test_execution_deleted_before_its_artifact_gets_none(system, acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    ended = [await acme.run_agent(sleeper) for _ in range(5)]
    for execution in ended:
        assert (await acme.http.delete(f"/executions/{execution['id']}")).status_code == 204
    last = await acme.run_agent(sleeper)
    async with connect_as_owner(system) as owner:
        await wait_until_recorded(owner, acme.tenant_id)
        assert await wait_for_result(lambda: _is_queue_empty(owner))
        assert await _find_mentions(owner, [execution["id"] for execution in ended]) == {}
    assert [item["run_id"] for item in (await acme.http.get("/artifacts")).json()["items"]] == [last["run_name"]]


async def test_changed_labels_find_an_execution(acme: TenantClient) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    execution = await acme.run_agent(sleeper, {"word": "walrus"}, tags=["old"], run_name="first name")

    async def find(**parameters: str) -> list[str]:
        return [item["id"] for item in (await acme.http.get("/executions", params=parameters)).json()["items"]]

    assert await wait_for_result(lambda: find(search="walrus first"))
    body = {"tags": ["new"], "metadata": {"stage": "done"}, "run_name": "second name"}
    changed = (await acme.http.patch(f"/executions/{execution['id']}", json=body)).json()
    assert {name: changed[name] for name in body} == body
    for parameters in ({"tag": "new"}, {"metadata": "stage:done"}, {"search": "second walrus"}):
        assert await find(**parameters) == [execution["id"]]
    for parameters in ({"tag": "old"}, {"search": "first"}):
        assert await find(**parameters) == []
    refused = await acme.http.patch(f"/executions/{execution['id']}", json={"status": "failed"})
    assert refused.status_code == 422
    emptied = (await acme.http.patch(f"/executions/{execution['id']}", json={"tags": None, "metadata": None})).json()
    assert (emptied["tags"], emptied["metadata"], emptied["run_name"]) == ([], None, "second name")


@pytest.fixture
async def event_days(acme: TenantClient):
    answer = await acme.http.patch("/tenant", json={"event_retention_days": 3})
    assert answer.json()["event_retention_days"] == 3
    yield 3
    await acme.http.patch("/tenant", json={"event_retention_days": None})


async def test_old_events_are_deleted_and_streams_tell_it(
    system, resources, acme: TenantClient, event_days: int
) -> None:
    sleeper = await acme.deploy_agent(SLEEPER)
    old, young = [await acme.run_agent(sleeper, {"n": number}) for number in range(2)]
    async with connect_as_owner(system) as owner:
        await wait_until_recorded(owner, acme.tenant_id)
        await owner.execute(
            "UPDATE executions SET completed_at = $2 WHERE id = $1",
            ids.decode_id("exec", old["id"]),
            datetime.now(UTC) - timedelta(days=event_days + 1),
        )
        removed = [(await RetentionSweeper(resources.store).remove_expired())["events"] for _ in range(2)]
        assert removed == [1, 0]
    async with asyncio.timeout(30):
        streams = [(await acme.http.get(f"/executions/{execution['id']}/events")).text for execution in (old, young)]
    assert "events_removed" in streams[0]
    assert "said" not in streams[0]
    assert [line for line in streams[0].splitlines() if line.startswith("event:")] == [
        "event: warning",
        "event: status",
    ]
    assert "said" in streams[1]
    assert (await acme.http.get(f"/executions/{old['id']}")).json()["output_data"] == {"n": 0}
