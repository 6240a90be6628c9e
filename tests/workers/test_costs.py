"""Sums of costs are what brute force over the rows says, whatever was spent, deleted and folded when."""

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
from tests.workers.test_stats import own
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


def nanos(rows: list[Cost]) -> int:
    return sum(round(row.cost_usd * NANOS_PER_UNIT) for row in rows)


class Truth:
    """Brute force over rows."""

    def __init__(self, rows: list[Cost]) -> None:
        self.rows = rows

    def spent(self, name: str) -> dict[str, float]:
        found: Counter[str] = Counter()
        for row in self.rows:
            if (value := getattr(row, name)) is not None:
                found[value] += nanos([row])
        return {name: cost / NANOS_PER_UNIT for name, cost in sorted(found.items(), key=lambda one: (-one[1], one[0]))}

    def groups(self) -> dict[Any, dict[str, int]]:
        found: dict[Any, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            agent = None if row.agent_id is None else str(ids.decode_id("agent", row.agent_id))
            dims = (agent, row.agent_name, row.provider, row.model, row.model_name, row.status)
            tokens = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
            found[dims].update(
                {
                    "count": 1,
                    "cost_usd": nanos([row]),
                    **{name: getattr(row, name) for name in tokens},
                    "errors": int(row.status == "error"),
                    "estimated": int(row.estimated),
                    "duration_ms": round(row.duration_ms * 1000),
                }
            )
        return {dims: dict(counts) for dims, counts in found.items()}


class World:
    """Two tenants in one database, and the costs that they have to have."""

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
            named = {name: getattr(spender, name) for name in CostAttribution.__struct_fields__ if hasattr(Cost, name)}
            told = {name: getattr(call, name) for name in BilledCall.__struct_fields__ if name != "usage"}
            self.rows[whose][settled.cost_id] = Cost(
                id=settled.cost_id,
                tenant_id=self.callers[whose].tenant_id,
                created_at=self.clock[0],
                **{**tokens, **named, **told},
            )

    async def turn_clock(self, now: datetime) -> None:
        self.clock[0] = now

    async def delete(self, whose: int, places: list[int]) -> None:
        known = sorted(self.rows[whose])
        chosen = sorted({known[place % len(known)] for place in places}) if known else []
        async with self.store.transaction(self.callers[1 - whose]) as tx:
            assert await tx.costs.delete_many(chosen) == 0
        async with self.store.transaction(self.callers[whose]) as tx:
            assert await tx.costs.delete_many(chosen) == len(chosen)
            assert await tx.costs.delete_many(chosen) == 0
        for one in chosen:
            del self.rows[whose][one]

    async def retain(self, whose: int, days: int) -> None:
        """What retention does for a tenant. (All of it would drop the month of the ids, which are not of our clock.)"""
        before = self.clock[0] - timedelta(days=days)
        old = [one for one, row in self.rows[whose].items() if row.created_at < before]
        tenant_id = self.callers[whose].tenant_id
        assert await RetentionSweeper(self.store)._delete_records(tenant_id, "costs", timedelta(days=days)) == len(old)
        for one in old:
            del self.rows[whose][one]

    async def fold(self, whose: int, most: int) -> None:
        async with self.store.transaction(self.callers[whose]) as tx:
            await tx.stats.fold_deltas("costs", most)

    async def fold_all(self) -> None:
        folder = StatsFolder(self.store)
        while await folder.fold_deltas():
            pass
        assert await self.database.owner.fetchval("SELECT count(*) FROM stat_deltas") == 0

    async def ask(
        self, whose: int, wanted: dict[str, Any] | None = None, bounds: Any = (None, None), page: Page | None = None
    ) -> None:
        rows = sorted(self.rows[whose].values(), key=lambda row: (row.created_at, row.id), reverse=True)
        times = [row.created_at for row in rows]
        since, until = (
            one if not isinstance(one, int) else times[one % len(times)] if times else None for one in bounds
        )
        if since and until and until < since:
            since, until = until, since
        # A number stands for the value of one of the rows.
        named = {
            name: (getattr(rows[value % len(rows)], name) if rows else None) if type(value) is int else value
            for name, value in (wanted or {}).items()
        }
        page = page or Page(limit=1000)
        within = [
            r for r in rows if (since or r.created_at) <= r.created_at and (until is None or r.created_at < until)
        ]
        # Names of agents that there are not are those of the time of the call.
        matching = [
            row
            for row in within
            if all(
                value in (None, row.agent_id if value in AGENTS else row.agent_name)
                if name == "agent_id"
                else value in (None, getattr(row, name))
                for name, value in named.items()
            )
        ]
        async with self.store.transaction(self.callers[whose]) as tx:
            found = await costs.list_costs(tx, CostFilter(**named, since=since, until=until), page)
            assert found.items == matching[page.offset : page.offset + page.limit]
            assert (found.total, found.total_cost) == (len(matching), nanos(matching) / NANOS_PER_UNIT)
            assert found.has_more == (page.offset + page.limit < len(matching))
            for period, days in DAYS.items():
                begin = (tx.now - timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
                self._check(await costs.summarize_costs(tx, period), [row for row in rows if row.created_at >= begin])
            if since or until:
                self._check(await costs.summarize_costs(tx, None, since, until), within)
            sums = await tx.stats.sum_groups(costs.query_from_filter(CostFilter(since=since, until=until)))
            groups = {tuple(group.dims.values()): group.measures for group in sums.groups}
            assert groups == Truth(within).groups()

    def _check(self, summary: costs.CostSummary, rows: list[Cost]) -> None:
        truth, found = Truth(rows), msgspec.structs.asdict(summary)
        for share, name in zip(
            QUANTILE_FRACTIONS, ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms"), strict=True
        ):
            assert_near(found.pop(name), interpolate_quantile((row.duration_ms for row in rows), share))
        expected = {
            **{name: found[name] for name in ("period", "since", "until")},
            "total_cost": nanos(rows) / NANOS_PER_UNIT,
            **{
                name: sum(getattr(row, name) for row in rows)
                for name in ("total_tokens", "prompt_tokens", "completion_tokens")
            },
            "calls": len(rows),
            "errors": sum(row.status == "error" for row in rows),
            "estimated": sum(row.estimated for row in rows),
            "by_agent": truth.spent("agent_name"),
            "by_provider": truth.spent("provider"),
            "by_model": truth.spent("model"),
            "by_status": Counter(row.status for row in rows),
        }
        assert found == expected
        for name in ("by_agent", "by_provider", "by_model"):
            assert list(found[name]) == list(expected[name])


async def test_any_interleaving_leaves_what_brute_force_finds(system) -> None:
    def body(runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]) -> None:
        async def run(steps: list[Any]) -> None:
            clock[0] = NOWS[0]
            for table in ("stat_deltas", "stat_rollups", "costs"):
                await database.owner.execute(f"DELETE FROM {table}")
            world = World(database, store, [await database.add_tenant() for _ in range(2)], clock)
            for (name, *drawn), asked in steps:
                await getattr(world, name)(*drawn)
                await world.ask(*asked)
            for fold in (lambda: world.fold(0, 3), world.fold_all):
                for whose in (0, 1):
                    await world.ask(whose)
                await fold()
                for _, asked in steps[-5:]:
                    await world.ask(*asked)
            for whose in (0, 1):
                await world.delete(whose, list(range(len(world.rows[whose]))))
                await world.ask(whose)
            await world.fold_all()
            for table in ("stat_deltas", "stat_rollups", "costs"):
                assert await database.owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.tuples(STEP, ASK), min_size=4, max_size=25))
        def check(steps: list[Any]) -> None:
            runner.run(run(steps))

        check()

    await own(system, body)
