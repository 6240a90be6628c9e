"""Create ended executions of every kind, and look at their rows as the owner of the tables."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name

SLEEPER = "import time\ndef handle(p):\n    print('said')\n    time.sleep(p.get('for', 0))\n    return p\n"


@asynccontextmanager
async def connect_as_owner(system: System) -> AsyncIterator[asyncpg.Connection]:
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    await owner.execute("SELECT set_config('paddock.every_tenant', 'on', false)")
    try:
        yield owner
    finally:
        await owner.close()


async def wait_until_recorded(owner: asyncpg.Connection, tenant_id: str) -> None:
    query = (
        "SELECT count(*) FROM executions WHERE tenant_id = $1 AND completed_at IS NOT NULL AND NOT recorded "
        "AND lane <> 'plan'"
    )
    async with asyncio.timeout(60):
        while await owner.fetchval(query, tenant_id):
            await asyncio.sleep(0.05)


async def _list_descendants(acme: TenantClient, execution_id: str) -> list[str]:
    execution_ids = [execution_id]
    children = (await acme.http.get(f"/executions?parent_id={execution_id}&limit=200")).json()["items"]
    for child in children:
        execution_ids += await _list_descendants(acme, child["id"])
    return execution_ids


async def create_ended_work(acme: TenantClient, provider: FakeProvider) -> dict[str, list[str]]:
    """Return ended executions of every kind: of code, of a model with a file, of a nested plan."""
    sleeper = await acme.deploy_agent(SLEEPER)
    model_name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    writing_agent = await create_model_agent(acme, model_name, tools=["filesystem_write"])
    write_call = build_call("filesystem_write", {"path": "notes", "content": "what I noted"})
    provider.queue_text("I write", [write_call], to=model_name)
    provider.queue_text("Done", to=model_name)
    body = {"task": "Go", "mode": "yolo"}
    model_execution = (await acme.http.post(f"/agents/{writing_agent['id']}/execute", json=body)).json()["id"]
    steps = [{"id": f"s{n}", "agent": sleeper, "inputs": {"n": n}} for n in range(3)]
    inner_workflow = (await acme.http.post("/workflows", json={"name": "inner", "steps": steps})).json()
    outer_body = {"name": "outer", "steps": [{"id": "whole", "workflow": inner_workflow["id"]}]}
    outer_workflow = await acme.http.post("/workflows", json=outer_body)
    assert outer_workflow.status_code == 201, outer_workflow.text
    plan_execution = (await acme.http.post(f"/workflows/{outer_workflow.json()['id']}/execute", json={})).json()["id"]
    code_execution = (await acme.start_execution(sleeper, {"n": 1}))["id"]
    for execution_id in (model_execution, plan_execution, code_execution):
        assert (await acme.wait_for_end(execution_id))["status"] == "completed"
    execution_ids = [
        descendant
        for root in (model_execution, plan_execution, code_execution)
        for descendant in await _list_descendants(acme, root)
    ]
    assert len(execution_ids) == 1 + 1 + 1 + 1 + 3
    return {"agents": [sleeper, writing_agent["id"]], "executions": execution_ids, "written": [model_execution]}
