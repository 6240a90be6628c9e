"""Plans in their own database: the worker dies at every boundary there is, others race it, nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from domain import executions
from domain.executions import AttemptOutcome, ExecutionStart
from domain.plans import coordinator, service
from domain.plans.coordinator import PlanLocked
from domain.plans.schema import Plan, PlanStep, PlanWork, RetryPolicy
from domain.ports import SandboxOutcome, Tx
from domain.shared import ids
from scripts.system import System
from tests.support.isolated_database import NOW
from tests.support.plan_builders import PlanEnvironment, SimulatedCrash, open_plan_environment
from workers.plan.advancer import PlanAdvancer


@pytest.fixture
async def world(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as one:
        yield one


def _diamond(world: PlanEnvironment) -> list[PlanStep]:
    def step(step_id: str, *above: str, **more: Any) -> PlanStep:
        return PlanStep(id=step_id, name=step_id, work=world.build_work(), depends_on=list(above), **more)

    return [
        step("a"),
        step("b", "a"),
        step("c", "a", map=[1, 2, 3], max_parallel=2),
        step("d", "b", "c", inputs={"b": "{{ steps.b.outputs.step }}", "c": "{{ steps.c.outputs }}"}),
    ]


async def test_a_plan_comes_to_what_its_last_step_came_to(world: PlanEnvironment) -> None:
    execution_id = await world.start_plan(*_diamond(world))
    assert (await world.get_execution(execution_id)).status == "pending"
    ended = await world.run_to_end(execution_id)
    assert (ended.status, ended.output_data) == ("completed", {"step": "d"})
    assert (ended.steps_completed, ended.steps_total) == (4, 4)
    assert ended.results == {
        "a": {"step": "a"},
        "b": {"step": "b"},
        "c": [{"step": "c[0]"}, {"step": "c[1]"}, {"step": "c[2]"}],
        "d": {"step": "d"},
    }
    given = await world.database.owner.fetchval("SELECT input_data::text FROM executions WHERE step = 'd'")
    assert msgspec.json.decode(given) == {"b": "b", "c": ended.results["c"]}
    assert await world.list_due() == [], "nothing is left to be told"


async def test_the_worker_dies_at_every_boundary_and_each_step_runs_once(world: PlanEnvironment) -> None:
    """Before every commit of the plan worker in turn, and after it with all that it knew."""
    boundaries = 0
    for at in range(100):
        execution_id = await world.start_plan(*_diamond(world))
        count, died = 0, False
        for _ in range(60):
            for one in await world.list_due():
                die = count == at
                count += 1
                try:
                    await world.advance_plan(one, None, die)
                except SimulatedCrash:
                    died = True
            await world.settle_claimed(1)
            found = await world.get_execution(execution_id)
            if found.status == "completed":
                break
        assert found.status == "completed", found
        rows = await world.database.owner.fetch(
            "SELECT step, count(*) AS runs, max(attempt) AS attempts FROM executions "
            "WHERE root_id = (SELECT max(id::text)::uuid FROM executions WHERE lane = 'plan') GROUP BY step"
        )
        assert {row["step"]: (row["runs"], row["attempts"]) for row in rows} == dict.fromkeys(
            ("a", "b", "c[0]", "c[1]", "c[2]", "d"), (1, 1)
        )
        events = await world.database.owner.fetch(
            "SELECT seq, type, data->>'status' AS status FROM execution_events "
            "WHERE execution_id = (SELECT max(id::text)::uuid FROM executions WHERE lane = 'plan') ORDER BY seq"
        )
        assert [row["seq"] for row in events] == list(range(1, len(events) + 1))
        ends = [row for row in events if row["type"] == "status" and row["status"] == "completed"]
        assert ends == [events[-1]]
        if not died:
            boundaries = at
            break
    assert boundaries >= 5, "there were boundaries to die at"


async def test_a_step_whose_run_worker_dies_is_run_again_and_the_others_are_not(world: PlanEnvironment) -> None:
    execution_id = await world.start_plan(*_diamond(world))
    await world.advance_plan(execution_id)
    async with world.store.autocommit() as tx:
        (lost,) = await executions.claim_executions(tx, "dead", timedelta(seconds=60), 10)
    world.clock[0] += timedelta(seconds=61)
    async with world.store.transaction(world.caller) as tx:
        await executions.requeue_expired(tx, lost.id)
    ended = await world.run_to_end(execution_id)
    assert ended.status == "completed"
    rows = await world.database.owner.fetch("SELECT step, attempt FROM executions WHERE parent_id IS NOT NULL")
    assert {row["step"]: row["attempt"] for row in rows} == {
        "a": 2,
        **dict.fromkeys(("b", "c[0]", "c[1]", "c[2]", "d"), 1),
    }


async def test_planners_that_race_start_each_step_once(system: System, world: PlanEnvironment) -> None:
    plans = [await world.start_plan(*_diamond(world)) for _ in range(8)]
    rings = [asyncio.Event() for _ in range(3)]
    planners = [asyncio.create_task(PlanAdvancer(world.store, 2, ring).run()) for ring in rings]
    try:
        for _ in range(400):
            for ring in rings:
                ring.set()
            await world.settle_claimed()
            if all([(await world.get_execution(one)).status == "completed" for one in plans]):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError([await world.get_execution(one) for one in plans])
    finally:
        for task in planners:
            task.cancel()
        await asyncio.gather(*planners, return_exceptions=True)
    counted = await world.database.owner.fetch(
        "SELECT root_id, step, count(*) AS runs FROM executions WHERE parent_id IS NOT NULL GROUP BY 1, 2"
    )
    assert len(counted) == 8 * 6
    assert {row["runs"] for row in counted} == {1}


async def test_what_somebody_else_is_at_is_left_to_them(world: PlanEnvironment) -> None:
    execution_id = await world.start_plan(*_diamond(world))
    async with world.store.transaction(world.caller) as tx:
        await coordinator.advance_plan(tx, execution_id, None)
        with pytest.raises(PlanLocked):
            await world.advance_plan(execution_id)
    assert (await world.list_children(execution_id)) == {"a": ["pending"]}


async def test_a_step_is_tried_again_as_often_as_it_may_and_then_the_plan_has_failed(world: PlanEnvironment) -> None:
    retry = RetryPolicy(attempts=2, delay=10, factor=2)
    step = PlanStep(id="a", name="The first", work=world.build_work(), retry=retry)
    after = PlanStep(id="b", name="b", work=world.build_work(), depends_on=["a"])
    execution_id = await world.start_plan(step, after)
    for pause in (10, 20):
        await world.advance_plan(execution_id)
        assert await world.settle_claimed(error="ValueError") == ["a"]
        await world.advance_plan(execution_id)
        assert await world.settle_claimed() == [], "not before its time"
        world.clock[0] += timedelta(seconds=pause)
        assert await world.list_due() == [execution_id]
    await world.advance_plan(execution_id)
    assert await world.settle_claimed(error="ValueError") == ["a"]
    await world.advance_plan(execution_id)
    ended = await world.get_execution(execution_id)
    assert (ended.status, ended.error_type) == ("failed", "ValueError")
    assert ended.error_message == "The step 'The first' failed: no"
    assert await world.list_children(execution_id) == {"a": ["failed"] * 3}


async def test_run_again_from_the_failed_step_on(world: PlanEnvironment) -> None:
    steps = _diamond(world)
    execution_id = await world.start_plan(*steps)
    await world.advance_plan(execution_id)
    await world.settle_claimed()
    await world.advance_plan(execution_id)
    async with world.store.autocommit() as tx:
        claimed = await executions.claim_executions(tx, "worker", timedelta(seconds=60), 10)
    assert sorted(one.step or "" for one in claimed) == ["b", "c[0]", "c[1]"]
    for one in claimed:
        failed = one.step == "c[1]"
        outcome = (
            SandboxOutcome(error_type="E", error_message="no") if failed else SandboxOutcome(output=b'{"step": "kept"}')
        )
        async with world.store.transaction(world.caller) as tx:
            await executions.settle_executions(tx, [AttemptOutcome(execution=one, outcome=outcome, events=[])])
    await world.advance_plan(execution_id)
    assert (await world.get_execution(execution_id)).status == "failed"
    async with world.store.transaction(world.caller) as tx:
        again = await service.retry_plan(tx, world.caller, execution_id, from_failed=True)
    assert (again.retry_of, again.status) == (execution_id, "pending")
    ended = await world.run_to_end(again.id)
    assert ended.status == "completed"
    assert ended.results is not None
    assert ended.results["b"] == {"step": "kept"}
    assert ended.results["c"] == [{"step": "kept"}, {"step": "c[1]"}, {"step": "c[2]"}]
    rows = await world.database.owner.fetch("SELECT step FROM executions WHERE parent_id = $1", _uuid(again.id))
    assert sorted(row["step"] for row in rows) == ["c[1]", "c[2]", "d"]


def _uuid(execution_id: str) -> Any:
    return ids.decode_id("exec", execution_id)


async def test_a_cancel_takes_the_whole_tree(world: PlanEnvironment) -> None:
    inner = Plan(kind="workflow", name="inner", steps=[PlanStep(id="x", name="x", work=world.build_work())])
    execution_id = await world.start_plan(
        PlanStep(id="a", name="a", work=world.build_work()), PlanStep(id="i", name="i", work=PlanWork(plan=inner))
    )
    for _ in range(2):
        for one in await world.list_due():
            await world.advance_plan(one)
    assert await world.list_children(execution_id) == {"a": ["pending"], "i": ["running"], "x": ["pending"]}
    async with world.store.transaction(world.caller) as tx:
        await executions.cancel_execution(tx, execution_id)
    assert await world.list_children(execution_id) == {"a": ["cancelled"], "i": ["cancelled"], "x": ["cancelled"]}
    for _ in range(3):
        for one in await world.list_due():
            await world.advance_plan(one)
    left = await world.database.owner.fetch("SELECT DISTINCT status FROM plan_steps")
    assert [row["status"] for row in left] == ["cancelled"]
    assert await world.list_due() == []


async def test_a_cancel_beside_an_advance_leaves_nothing_running(world: PlanEnvironment) -> None:
    """The advance has begun a step that the cancel cannot see yet."""
    execution_id = await world.start_plan(*_diamond(world))
    cancelling: asyncio.Task[Any]

    async def cancel() -> None:
        async with world.store.transaction(world.caller) as tx:
            await executions.cancel_execution(tx, execution_id)

    async with world.store.transaction(world.caller) as tx:
        await coordinator.advance_plan(tx, execution_id, None)
        cancelling = asyncio.create_task(cancel())
        await asyncio.sleep(0.2)
    await cancelling
    for one in await world.list_due():
        await world.advance_plan(one)
    assert (await world.get_execution(execution_id)).status == "cancelled"
    assert await world.list_children(execution_id) == {"a": ["cancelled"]}
    assert await world.settle_claimed() == []


async def test_a_plan_that_takes_too_long_has_failed_and_runs_nothing(world: PlanEnvironment) -> None:
    plan = Plan(kind="workflow", name="plan", steps=_diamond(world))
    async with world.store.transaction(world.caller) as tx:
        execution_id = (await service.start_plan(tx, world.caller, plan, ExecutionStart(timeout=100))).id
    await world.advance_plan(execution_id)
    world.clock[0] += timedelta(seconds=99)
    assert await world.list_due() == []
    world.clock[0] += timedelta(seconds=1)
    assert await world.list_due() == [execution_id]
    await world.advance_plan(execution_id)
    ended = await world.get_execution(execution_id)
    assert (ended.status, ended.error_type) == ("failed", "timeout")
    assert await world.list_children(execution_id) == {"a": ["cancelled"]}


async def test_calls_in_a_minute_are_bounded_over_all_workers(world: PlanEnvironment) -> None:
    execution_id = await world.start_plan(*_diamond(world))

    async def pace(tx: Tx) -> float:
        return (await tx.plans.reserve_model_call(execution_id, 3, tx.now) - NOW).total_seconds()

    found = []
    for _ in range(7):
        async with world.store.transaction(world.caller) as tx:
            found.append(await pace(tx))
    assert found == [0, 0, 0, 60, 60, 60, 120]
