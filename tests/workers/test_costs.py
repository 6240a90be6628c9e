"""Sums of costs equal brute force over the rows, after any sequence of spending, deleting and folding."""

import asyncio
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import costs
from domain.costs import BilledCall, Cost, CostAttribution, CostFilter
from domain.llms import ModelUsage
from domain.shared import ids
from domain.shared.pages import Page
from domain.stats import NANOS_PER_UNIT, QUANTILE_FRACTIONS
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import IsolatedDatabase
from tests.support.stats_environment import run_property_test
from tests.support.stats_oracle import assert_near, interpolate_quantile
from tests.support.stats_strategies import (
    BOUNDS,
    EXECUTIONS,
    NAME,
    NAMES,
    NOWS,
    PAGE,
    PLACE,
    TENANT,
    TIMES,
    draw_filter,
)
from workers.record.stats import StatsFolder
from workers.upkeep.retention import RetentionSweeper

DAYS = {"day": 1, "week": 7, "month": 30}
AGENTS = [ids.encode_id("agent", UUID(int=number)) for number in (1, 2)]
KEYS = [ids.encode_id("key", UUID(int=1))]
MONEY = st.sampled_from([0.0, 1e-9, 0.0045, 0.1, 0.2, 1 / 3, 2.5e-9, 1000.0]) | st.floats(0, 1000)
COUNT = st.integers(0, 10**7)
SPENDER = st.builds(
    CostAttribution,
    execution_id=st.none() | st.sampled_from(EXECUTIONS),
    agent_id=st.none() | st.sampled_from(AGENTS),
    agent_name=st.none() | NAME,
    key_id=st.none() | st.sampled_from(KEYS),
)
CALL = st.builds(
    BilledCall,
    **dict.fromkeys(("provider", "model", "model_name"), NAME),
    usage=st.builds(ModelUsage, **dict.fromkeys(ModelUsage.__struct_fields__, COUNT)),
    cost_usd=MONEY,
    estimated=st.booleans(),
    status=st.sampled_from(["ok", "error", "cancelled"]),
    error_type=st.none() | st.sampled_from(["rate_limited", "cut_off"]),
    duration_ms=st.sampled_from([0.0, 0.5, 1234.5]) | st.floats(0, 1e6),
    first_token_ms=st.none() | st.floats(0, 1e6),
)
STEP = st.one_of(
    st.tuples(st.just("call"), TENANT, st.lists(st.tuples(SPENDER, CALL), min_size=1, max_size=6)),
    st.tuples(st.just("call"), TENANT, st.lists(st.tuples(SPENDER, CALL), min_size=1, max_size=2)),
    st.tuples(st.just("turn_clock"), st.sampled_from(NOWS) | TIMES),
    st.tuples(st.just("delete"), TENANT, st.lists(PLACE, max_size=3)),
    st.tuples(st.just("retain"), TENANT, st.integers(1, 60)),
    st.tuples(st.just("fold"), TENANT, st.integers(1, 7)),
    st.tuples(st.just("fold_all")),
)
FILTER = draw_filter(
    agent_id=st.sampled_from([*AGENTS, *NAMES]),
    execution_id=st.sampled_from([*EXECUTIONS, "nonsense"]),
    **dict.fromkeys(("provider", "model", "model_name"), NAME),
    status=st.sampled_from(["ok", "error", "cancelled"]),
)
ASK = st.tuples(TENANT, FILTER, BOUNDS, PAGE)


def sum_nanos(rows: list[Cost]) -> int:
    return sum(round(row.cost_usd * NANOS_PER_UNIT) for row in rows)


class CostOracle:
    """Compute sums by brute force over rows."""

    def __init__(self, rows: list[Cost]) -> None:
        self.rows = rows

    def sum_by(self, field: str) -> dict[str, float]:
        nanos_by_value: Counter[str] = Counter()
        for row in self.rows:
            if (value := getattr(row, field)) is not None:
                nanos_by_value[value] += sum_nanos([row])
        return {
            name: cost / NANOS_PER_UNIT
            for name, cost in sorted(nanos_by_value.items(), key=lambda pair: (-pair[1], pair[0]))
        }

    def sum_groups(self) -> dict[Any, dict[str, int]]:
        groups: dict[Any, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            agent = None if row.agent_id is None else str(ids.decode_id("agent", row.agent_id))
            dims = (agent, row.agent_name, row.provider, row.model, row.model_name, row.status)
            tokens = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
            groups[dims].update(
                {
                    "count": 1,
                    "cost_usd": sum_nanos([row]),
                    **{name: getattr(row, name) for name in tokens},
                    "errors": int(row.status == "error"),
                    "estimated": int(row.estimated),
                    "duration_ms": round(row.duration_ms * 1000),
                }
            )
        return {dims: dict(counts) for dims, counts in groups.items()}


class CostEnvironment:
    """Hold two tenants in one database, and the costs that they must have."""

    def __init__(
        self, database: IsolatedDatabase, store: PostgresStore, callers: list[Any], clock: list[datetime]
    ) -> None:
        self.database, self.store, self.callers, self.clock = database, store, callers, clock
        self.rows: list[dict[str, Cost]] = [{}, {}]

    async def call(self, whose: int, sent: list[tuple[CostAttribution, BilledCall]]) -> None:
        for spender, call in sent:
            async with self.store.transaction(self.callers[whose]) as tx:
                settled = await costs.settle_call(tx, None, spender, call)
            assert settled.warnings == []
            tokens = {name: getattr(call.usage, name) for name in (*ModelUsage.__struct_fields__, "total_tokens")}
            attribution_fields = {
                name: getattr(spender, name) for name in CostAttribution.__struct_fields__ if hasattr(Cost, name)
            }
            call_fields = {name: getattr(call, name) for name in BilledCall.__struct_fields__ if name != "usage"}
            self.rows[whose][settled.cost_id] = Cost(
                id=settled.cost_id,
                tenant_id=self.callers[whose].tenant_id,
                created_at=self.clock[0],
                **{**tokens, **attribution_fields, **call_fields},
            )

    async def turn_clock(self, now: datetime) -> None:
        self.clock[0] = now

    async def delete(self, whose: int, places: list[int]) -> None:
        cost_ids = sorted(self.rows[whose])
        deleted_ids = sorted({cost_ids[place % len(cost_ids)] for place in places}) if cost_ids else []
        async with self.store.transaction(self.callers[1 - whose]) as tx:
            assert await tx.costs.delete_many(deleted_ids) == 0
        async with self.store.transaction(self.callers[whose]) as tx:
            assert await tx.costs.delete_many(deleted_ids) == len(deleted_ids)
            assert await tx.costs.delete_many(deleted_ids) == 0
        for cost_id in deleted_ids:
            del self.rows[whose][cost_id]

    async def retain(self, whose: int, days: int) -> None:
        """Delete as retention does for a tenant. (Retention of all would drop the month of the ids, which have a real clock.)"""
        before = self.clock[0] - timedelta(days=days)
        old = [cost_id for cost_id, row in self.rows[whose].items() if row.created_at < before]
        tenant_id = self.callers[whose].tenant_id
        assert await RetentionSweeper(self.store)._delete_records(tenant_id, "costs", timedelta(days=days)) == len(old)
        for cost_id in old:
            del self.rows[whose][cost_id]

    async def fold(self, whose: int, most: int) -> None:
        async with self.store.transaction(self.callers[whose]) as tx:
            await tx.stats.fold_deltas("costs", most)

    async def fold_all(self) -> None:
        folder = StatsFolder(self.store)
        while await folder.fold_deltas():
            pass
        assert await self.database.owner.fetchval("SELECT count(*) FROM stat_deltas") == 0

    async def ask(
        self,
        whose: int,
        wanted_filter: dict[str, Any] | None = None,
        bounds: Any = (None, None),
        page: Page | None = None,
    ) -> None:
        rows = sorted(self.rows[whose].values(), key=lambda row: (row.created_at, row.id), reverse=True)
        times = [row.created_at for row in rows]
        since, until = (
            bound if not isinstance(bound, int) else times[bound % len(times)] if times else None for bound in bounds
        )
        if since and until and until < since:
            since, until = until, since
        # A number stands for the value of one of the rows.
        filter_values = {
            name: (getattr(rows[value % len(rows)], name) if rows else None) if type(value) is int else value
            for name, value in (wanted_filter or {}).items()
        }
        page = page or Page(limit=1000)
        within = [
            r for r in rows if (since or r.created_at) <= r.created_at and (until is None or r.created_at < until)
        ]
        # The name of an agent that does not exist is compared with the name at the time of the call.
        matching = [
            row
            for row in within
            if all(
                value in (None, row.agent_id if value in AGENTS else row.agent_name)
                if name == "agent_id"
                else value in (None, getattr(row, name))
                for name, value in filter_values.items()
            )
        ]
        async with self.store.transaction(self.callers[whose]) as tx:
            page_of_costs = await costs.list_costs(tx, CostFilter(**filter_values, since=since, until=until), page)
            assert page_of_costs.items == matching[page.offset : page.offset + page.limit]
            assert (page_of_costs.total, page_of_costs.total_cost) == (
                len(matching),
                sum_nanos(matching) / NANOS_PER_UNIT,
            )
            assert page_of_costs.has_more == (page.offset + page.limit < len(matching))
            for period, days in DAYS.items():
                begin = (tx.now - timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
                self._check(await costs.summarize_costs(tx, period), [row for row in rows if row.created_at >= begin])
            if since or until:
                self._check(await costs.summarize_costs(tx, None, since, until), within)
            sums = await tx.stats.sum_groups(costs.query_from_filter(CostFilter(since=since, until=until)))
            groups = {tuple(group.dims.values()): group.measures for group in sums.groups}
            assert groups == CostOracle(within).sum_groups()

    def _check(self, summary: costs.CostSummary, rows: list[Cost]) -> None:
        oracle, summary_fields = CostOracle(rows), msgspec.structs.asdict(summary)
        for share, name in zip(
            QUANTILE_FRACTIONS, ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms"), strict=True
        ):
            assert_near(summary_fields.pop(name), interpolate_quantile((row.duration_ms for row in rows), share))
        expected = {
            **{name: summary_fields[name] for name in ("period", "since", "until")},
            "total_cost": sum_nanos(rows) / NANOS_PER_UNIT,
            **{
                name: sum(getattr(row, name) for row in rows)
                for name in ("total_tokens", "prompt_tokens", "completion_tokens")
            },
            "calls": len(rows),
            "errors": sum(row.status == "error" for row in rows),
            "estimated": sum(row.estimated for row in rows),
            "by_agent": oracle.sum_by("agent_name"),
            "by_provider": oracle.sum_by("provider"),
            "by_model": oracle.sum_by("model"),
            "by_status": Counter(row.status for row in rows),
        }
        assert summary_fields == expected
        for name in ("by_agent", "by_provider", "by_model"):
            assert list(summary_fields[name]) == list(expected[name])


async def test_any_interleaving_matches_brute_force(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def run_steps(steps: list[Any]) -> None:
            clock[0] = NOWS[0]
            for table in ("stat_deltas", "stat_rollups", "costs"):
                await database.owner.execute(f"DELETE FROM {table}")
            environment = CostEnvironment(database, store, [await database.add_tenant() for _ in range(2)], clock)
            for (name, *drawn), question in steps:
                await getattr(environment, name)(*drawn)
                await environment.ask(*question)
            for fold in (lambda: environment.fold(0, 3), environment.fold_all):
                for whose in (0, 1):
                    await environment.ask(whose)
                await fold()
                for _, question in steps[-5:]:
                    await environment.ask(*question)
            for whose in (0, 1):
                await environment.delete(whose, list(range(len(environment.rows[whose]))))
                await environment.ask(whose)
            await environment.fold_all()
            for table in ("stat_deltas", "stat_rollups", "costs"):
                assert await database.owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.tuples(STEP, ASK), min_size=4, max_size=25))
        def check(steps: list[Any]) -> None:
            runner.run(run_steps(steps))

        check()

    await run_property_test(system, run_examples)
