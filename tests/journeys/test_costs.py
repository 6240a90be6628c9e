"""Test costs as seeds/paracle.md shows them, under /api/v1: `costs` is `items`, as in every list."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain import costs
from domain.costs import BilledCall, CostAttribution
from domain.llms import ModelUsage
from domain.shared import ids
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.isolated_database import SilentBell

DAY = timedelta(days=1)
# The calls of the document's summary: agent, provider, model, dollars, and age.
EXAMPLE_CALLS = [
    ("coder", "openai", "gpt-4", 25.5, 3 * DAY),
    ("reviewer", "openai", "gpt-4", 4.5, 2 * DAY),
    ("reviewer", "anthropic", "claude-3-opus", 7.8, DAY / 2),
    ("tester", "anthropic", "claude-3-opus", 7.4, DAY / 4),
    ("tester", "openai", "gpt-4", 100.0, 20 * DAY),
    ("tester", "openai", "gpt-4", 1000.0, 400 * DAY),
]


def build_billed_call(provider: str, model: str, cost: float, **fields: Any) -> BilledCall:
    measures = {"estimated": False, "status": "ok", "duration_ms": 850.0, "first_token_ms": 120.0, **fields}
    usage = ModelUsage(prompt_tokens=100, completion_tokens=50, cached_tokens=20, reasoning_tokens=10)
    return BilledCall(provider=provider, model=model, model_name=f"our-{model}", usage=usage, cost_usd=cost, **measures)


@pytest.fixture
async def clocked_store(system: System):
    """Yield a store and its clock, which tests set."""
    clock = [datetime.now(UTC)]
    url = system.settings.database_url.reveal()
    store = PostgresStore(create_engine(url, pool_size=2, application="tests"), SilentBell(), lambda: clock[0])
    yield store, clock
    await store.close()


@pytest.fixture
async def agent_ids(clocked_store: Any, acme: TenantClient) -> dict[str, str]:
    """Bill the example calls; return the ids of their agents by name."""
    store, clock = clocked_store
    agents = {name: (await acme.create_agent(name))["id"] for name in ("coder", "reviewer", "tester")}
    now = clock[0]
    for name, provider, model, cost, ago in EXAMPLE_CALLS:
        clock[0] = now - ago
        attribution = CostAttribution(agent_id=agents[name], agent_name=name)
        async with store.tenant_transaction(acme.tenant_id) as tx:
            await costs.settle_call(tx, None, attribution, build_billed_call(provider, model, cost))
    return agents


async def test_cost_of_one_model_call(resources: Resources, acme: TenantClient, shared_tenant: TenantClient) -> None:
    agent = await acme.create_agent("coder")
    execution_id, key_id = ids.generate_id("exec"), ids.generate_id("key")
    attribution = CostAttribution(
        execution_id=execution_id,
        agent_id=agent["id"],
        agent_name="coder",
        key_id=key_id,
        user_id=acme.account["id"],
    )
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        settled = await costs.settle_call(tx, None, attribution, build_billed_call("openai", "gpt-4", 0.0045))
    answer = (await acme.http.get("/costs", params={"agent_id": agent["id"], "limit": 10})).json()
    assert answer["total_cost"] == 0.0045
    assert (answer["total"], answer["limit"], answer["offset"], answer["has_more"]) == (1, 10, 0, False)
    (item,) = answer["items"]
    assert item["timestamp"] == item["created_at"]
    assert datetime.now(UTC) - datetime.fromisoformat(item["timestamp"]) < timedelta(minutes=1)
    assert (
        item
        | {
            "id": settled.cost_id,
            "tenant_id": acme.tenant_id,
            "user_id": acme.account["id"],
            "agent_id": agent["id"],
            "agent_name": "coder",
            "execution_id": execution_id,
            "key_id": key_id,
            "workflow_id": None,
            "provider": "openai",
            "model": "gpt-4",
            "model_name": "our-gpt-4",
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "cached_tokens": 20,
            "reasoning_tokens": 10,
            "cost_usd": 0.0045,
            "estimated": False,
            "status": "ok",
            "error_type": None,
            "duration_ms": 850.0,
            "first_token_ms": 120.0,
        }
        == item
    )
    assert (await shared_tenant.http.get(f"/costs?execution_id={execution_id}")).json()["items"] == []


async def test_cost_summary_as_paracle_shows_it(acme: TenantClient, agent_ids: dict[str, str]) -> None:
    week = (await acme.http.get("/costs/summary?period=week")).json()
    assert {name: week[name] for name in ("period", "total_cost", "by_agent", "by_provider", "by_model")} == {
        "period": "week",
        "total_cost": 45.2,
        "by_agent": {"coder": 25.5, "reviewer": 12.3, "tester": 7.4},
        "by_provider": {"openai": 30.0, "anthropic": 15.2},
        "by_model": {"gpt-4": 30.0, "claude-3-opus": 15.2},
    }
    assert [list(week[name])[0] for name in ("by_agent", "by_provider", "by_model")] == ["coder", "openai", "gpt-4"]
    assert (week["calls"], week["total_tokens"], week["errors"], week["by_status"]) == (4, 600, 0, {"ok": 4})
    assert abs(week["p50_duration_ms"] - 850) <= 8.5
    assert (await acme.http.get("/costs/summary")).json() == week
    for period, total in (("day", 15.2), ("month", 145.2)):
        assert (await acme.http.get(f"/costs/summary?period={period}")).json()["total_cost"] == total
    month_ago = (datetime.now(UTC) - 30 * DAY).isoformat()
    for query, total in (
        ({"until": month_ago}, 1000.0),
        ({"since": month_ago}, 145.2),
        ({"since": "2001-01-01"}, 1145.2),
    ):
        answer = (await acme.http.get("/costs/summary", params=query)).json()
        assert (answer["period"], answer["total_cost"]) == (None, total)


async def test_cost_lists_are_filtered_and_totalled(
    acme: TenantClient, agent_ids: dict[str, str], clocked_store: Any
) -> None:
    store, clock = clocked_store
    clock[0] = datetime.now(UTC)
    execution_id = ids.generate_id("exec")
    async with store.tenant_transaction(acme.tenant_id) as tx:
        failed = build_billed_call("openai", "gpt-4", 0.25, status="error", error_type="cut_off", estimated=True)
        await costs.settle_call(tx, None, CostAttribution(execution_id=execution_id), failed)

    async def count_costs(**parameters: Any) -> tuple[int, float]:
        answer = await acme.http.get("/costs", params=parameters)
        assert answer.status_code == 200, answer.text
        listing = answer.json()
        assert len(listing["items"]) == min(listing["total"], parameters.get("limit", 100))
        return listing["total"], listing["total_cost"]

    assert await count_costs() == (7, 1145.45)
    # The totals cover all matching costs, not only the page.
    assert await count_costs(limit=2) == (7, 1145.45)
    assert await count_costs(limit=2, page=2) == (7, 1145.45)
    assert await count_costs(limit=1, agent_id="reviewer") == (2, 12.3)
    assert await count_costs(agent_id=agent_ids["reviewer"]) == (2, 12.3)
    assert await count_costs(agent_id="missing") == (0, 0)
    assert await count_costs(provider="anthropic") == (2, 15.2)
    assert await count_costs(model="gpt-4", limit=1) == (5, 1130.25)
    assert await count_costs(model_name="our-gpt-4") == (5, 1130.25)
    assert await count_costs(status="error") == (1, 0.25)
    assert await count_costs(execution_id=execution_id) == (1, 0.25)
    assert await count_costs(execution_id="nonsense") == (0, 0)
    assert await count_costs(since=(datetime.now(UTC) - DAY).isoformat()) == (3, 15.45)
    assert await count_costs(since=f"{datetime.now(UTC) - 30 * DAY:%Y-%m-%d}", limit=1) == (6, 145.45)
    assert await count_costs(until=(datetime.now(UTC) - 30 * DAY).isoformat()) == (1, 1000.0)
    times = [item["created_at"] for item in (await acme.http.get("/costs")).json()["items"]]
    assert times == sorted(times, reverse=True)
    # Costs of a deleted agent are found by its name.
    await acme.http.delete("/agents/reviewer")
    assert await count_costs(agent_id="reviewer") == (2, 12.3)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/costs?status=lost", "status"),
        ("/costs?since=yesterday", "since"),
        ("/costs?since=2026-01-02&until=2025-12-31", "until"),
        ("/costs?colour=red", "colour"),
        ("/costs?limit=0", "limit"),
        ("/costs?model=%00", "model"),
        ("/costs/summary?period=year", "period"),
        ("/costs/summary?period=day&since=2026-01-01", "period"),
        ("/costs/summary?until=never", "until"),
    ],
)
async def test_invalid_cost_query_is_refused_by_field(acme: TenantClient, path: str, field: str) -> None:
    answer = await acme.http.get(path)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
