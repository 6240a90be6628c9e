"""Keep the order of gates in any interleaving: of starts, claims, ends, lost workers, expiry, upkeep and killed processes."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import executions
from domain.executions import Execution
from domain.shared import ids
from tests.support.gate_environment import GateEnvironment, open_gate_environment
from tests.support.isolated_database import NOW

THREADS = [None, "a", "a", "a", "b"]
KEYS = [None, None, "x", "x", "y"]
START = st.fixed_dictionaries(
    {
        "thread": st.sampled_from(THREADS),
        "key": st.sampled_from(KEYS),
        "limit": st.integers(1, 3),
        "delay": st.sampled_from([0, 0, 0, 30]),
        "expires_in": st.sampled_from([None, None, 45, 90]),
        "priority": st.sampled_from([0, 0, -10, 10]),
        "if_busy": st.sampled_from([None, None, None, "reject", "cancel"]),
    }
)
PLACE = st.integers(0, 9)
SINGLE = st.one_of(
    *[st.tuples(st.just("start"), START)] * 4,
    st.tuples(st.just("settle"), PLACE),
    st.tuples(st.just("claim"), st.integers(1, 4)),
    st.tuples(st.just("settle"), PLACE),
    st.tuples(st.just("cancel"), PLACE),
    st.tuples(st.just("lose"), PLACE),
    st.tuples(st.just("park"), PLACE),
    st.tuples(st.just("resume"), PLACE),
    st.tuples(st.just("keep"), st.none()),
)
STEP = st.one_of(
    SINGLE,
    SINGLE,
    SINGLE,
    st.tuples(st.just("together"), st.lists(SINGLE, min_size=2, max_size=5)),
    st.tuples(st.just("rush"), st.tuples(START, st.integers(2, 4))),
    st.tuples(st.just("rush"), st.tuples(START, st.integers(2, 4))),
    st.tuples(st.just("wait"), st.sampled_from([5, 30, 60])),
    st.tuples(st.just("kill"), st.tuples(st.sampled_from(["settle", "cancel", "lose"]), PLACE)),
)
_ROWS_SQL = """
    SELECT id, thread_id, concurrency_key, concurrency_limit, status, blocked, gate, attempt, expires_at,
           coalesce(run_at, created_at) AS due_at, coalesce(turn_at, created_at) AS turn_at
    FROM executions ORDER BY id
"""
_OPEN = ("pending", "preparing", "running", "waiting")


class GateMachine:
    """Do steps on one database, and check after each that the gates were kept."""

    def __init__(self, environment: GateEnvironment) -> None:
        self._environment = environment
        self._threads = {name: ids.generate_id("thread") for name in THREADS if name is not None}
        self._held: list[Execution] = []
        self._parked: list[Execution] = []
        self._before: dict[Any, asyncpg.Record] = {}
        self._passed_ids: set[Any] = set()
        self._claim_counts = Counter[str]()
        self._lost_counts = Counter[str]()
        # Whether a process was killed since upkeep looked last: then a run may wait although there is room.
        self._has_missed = False

    async def run(self, steps: list[tuple[str, Any]]) -> None:
        self._environment.now = NOW
        await self._environment.database.owner.execute("TRUNCATE execution_events, executions, gate_signals CASCADE")
        for name, data in steps:
            if name == "together":
                await asyncio.gather(*(self._do(inner, inner_data) for inner, inner_data in data))
            elif name == "kill":
                await self._claim(4)
                self._environment.store.is_killed = self._has_missed = True
                await self._do(*data)
                self._environment.store.is_killed = False
            else:
                await self._do(name, data)
            await self._check()
        await self._drain()

    async def _do(self, name: str, data: Any) -> None:
        work: Coroutine[Any, Any, None] = getattr(self, f"_{name}")(data)
        await work

    async def _start(self, data: dict[str, Any]) -> None:
        fields: dict[str, Any] = {"priority": data["priority"]}
        if data["thread"] is not None:
            fields["thread_id"] = self._threads[data["thread"]]
            if not data["delay"] and data["if_busy"] is not None:
                fields["if_busy"] = data["if_busy"]
        if data["key"] is not None:
            fields |= {"concurrency_key": data["key"], "concurrency_limit": data["limit"]}
        if data["delay"]:
            fields["delay_seconds"] = data["delay"]
        if data["expires_in"] is not None:
            fields["expires_in"] = data["expires_in"]
        await self._environment.try_start(**fields)

    async def _rush(self, data: tuple[dict[str, Any], int]) -> None:
        start, count = data
        await asyncio.gather(*(self._start(start) for _ in range(count)))

    async def _claim(self, slots: int) -> None:
        claimed = await self._environment.claim(slots)
        self._held += claimed
        self._claim_counts.update(execution.id for execution in claimed)
        now = self._environment.now
        for execution in claimed:
            assert execution.blocked is None
            is_first = self._claim_counts[execution.id] == 1
            assert not is_first or execution.expires_at is None or execution.expires_at > now

    def _take(self, place: int) -> Execution | None:
        return self._held.pop(place % len(self._held)) if self._held else None

    async def _settle(self, place: int) -> None:
        # Two at a time, as a worker settles what ends together.
        ended = [execution for execution in (self._take(place), self._take(place)) if execution is not None]
        if ended:
            await self._environment.settle(*ended)

    async def _cancel(self, place: int) -> None:
        open_ids = [row_id for row_id, row in self._before.items() if row["status"] in _OPEN]
        if open_ids:
            await self._environment.try_cancel(ids.encode_id("exec", open_ids[place % len(open_ids)]))

    async def _lose(self, place: int) -> None:
        execution = self._take(place)
        if execution is not None:
            async with self._environment.store.tenant_transaction(execution.tenant_id) as tx:
                await executions.release_execution(tx, execution)

    async def _park(self, place: int) -> None:
        execution = self._take(place)
        if execution is not None:
            async with self._environment.store.tenant_transaction(execution.tenant_id) as tx:
                if await tx.executions.begin_running(execution.id, execution.attempt, tx.now):
                    await tx.executions.park_execution(execution.id, execution.attempt, [], tx.now)
            self._parked.append(execution)

    async def _resume(self, place: int) -> None:
        if self._parked:
            execution = self._parked.pop(place % len(self._parked))
            async with self._environment.store.tenant_transaction(execution.tenant_id) as tx:
                await tx.executions.resume_execution(execution.id, tx.now)

    async def _keep(self, _: None) -> None:
        await self._environment.keep_gates()
        self._has_missed = False

    async def _wait(self, seconds: int) -> None:
        self._environment.now += timedelta(seconds=seconds)

    async def _check(self) -> None:
        rows = await self._environment.database.owner.fetch(_ROWS_SQL)
        passed = [row for row in rows if row["status"] in _OPEN and self._has_passed(row)]
        self._check_limits(rows, passed)
        self._check_order(rows, passed)
        if not self._has_missed:
            self._check_room(rows, passed)
        self._before = {row["id"]: row for row in rows}
        self._passed_ids |= {row["id"] for row in passed}

    @staticmethod
    def _has_passed(row: asyncpg.Record) -> bool:
        """Whether a run has passed the gate of its thread."""
        return row["blocked"] is None or row["gate"] == "key"

    def _check_limits(self, rows: list[asyncpg.Record], passed: list[asyncpg.Record]) -> None:
        by_thread = Counter(row["thread_id"] for row in passed if row["thread_id"] is not None)
        assert not by_thread or max(by_thread.values()) == 1, by_thread
        for key in ("x", "y"):
            admitted = [row for row in passed if row["concurrency_key"] == key and row["blocked"] is None]
            assert len(admitted) <= max((row["concurrency_limit"] for row in admitted), default=0)
        for row in rows:
            assert row["id"] not in self._passed_ids or row["gate"] != "thread", "it was admitted twice"
            assert row["blocked"] is None or row["status"] == "pending"

    def _check_order(self, rows: list[asyncpg.Record], passed: list[asyncpg.Record]) -> None:
        """A run that passed now was before all runs of the thread that waited before this step and still wait."""
        for row in passed:
            if row["thread_id"] is None or row["id"] in self._passed_ids:
                continue
            for other in rows:
                before = self._before.get(other["id"])
                if other["thread_id"] == row["thread_id"] and other["gate"] == "thread" and before is not None:
                    was_waiting = before["gate"] == "thread" and not self._is_expired(other)
                    assert not was_waiting or (other["due_at"], other["id"]) > (row["due_at"], row["id"])

    def _check_room(self, rows: list[asyncpg.Record], passed: list[asyncpg.Record]) -> None:
        held_threads = {row["thread_id"] for row in passed}
        admitted = Counter(row["concurrency_key"] for row in passed if row["blocked"] is None)
        first: dict[str, asyncpg.Record] = {}
        for row in rows:
            if row["gate"] == "thread":
                assert row["thread_id"] in held_threads or self._is_expired(row), "it waits for a free thread"
            if row["gate"] == "key" and not self._is_expired(row):
                first[row["concurrency_key"]] = min(
                    first.get(row["concurrency_key"], row), row, key=lambda waiting: (waiting["turn_at"], waiting["id"])
                )
        for key, row in first.items():
            assert admitted[key] >= row["concurrency_limit"], "it waits although its key has room"

    def _is_expired(self, row: asyncpg.Record) -> bool:
        return row["expires_at"] is not None and row["expires_at"] <= self._environment.now

    async def _drain(self) -> None:
        """Let everything end: no run is forgotten."""
        self._environment.now += timedelta(seconds=31)
        for _ in range(200):
            await self._keep(None)
            while self._parked:
                await self._resume(0)
            await self._claim(3)
            while self._held:
                await self._settle(0)
            await self._check()
            if not any(row["status"] in _OPEN for row in self._before.values()):
                break
        else:
            raise AssertionError("some runs never end")
        assert await self._environment.database.owner.fetchval("SELECT count(*) FROM gate_signals") <= 1000
        await self._keep(None)
        assert await self._environment.database.owner.fetchval("SELECT count(*) FROM gate_signals") == 0


async def test_gates_are_kept_in_any_interleaving(system) -> None:
    """Admit at most as many as allowed, first come first served, each once, and forget none."""

    def run_in_thread() -> None:
        with asyncio.Runner() as runner:
            context = open_gate_environment(system)
            environment = runner.run(context.__aenter__())

            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
            @given(steps=st.lists(STEP, min_size=15, max_size=40))
            def check(steps: list[tuple[str, Any]]) -> None:
                runner.run(GateMachine(environment).run(steps))

            try:
                check()
            finally:
                runner.run(context.__aexit__(None, None, None))

    await asyncio.to_thread(run_in_thread)
