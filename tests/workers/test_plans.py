"""Run plans in an isolated database: the worker dies at every commit, others race it, nothing is lost or done twice."""

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
async def environment(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as environment:
        yield environment


def _build_diamond(environment: PlanEnvironment) -> list[PlanStep]:
    def build_step(step_id: str, *above: str, **more: Any) -> PlanStep:
        return PlanStep(id=step_id, name=step_id, work=environment.build_work(), depends_on=list(above), **more)

    return [
        build_step("a"),
        build_step("b", "a"),
        build_step("c", "a", map=[1, 2, 3], max_parallel=2),
        build_step("d", "b", "c", inputs={"b": "{{ steps.b.outputs.step }}", "c": "{{ steps.c.outputs }}"}),
    ]


async def test_plan_ends_with_the_output_of_its_last_step(environment: PlanEnvironment) -> None:
    execution_id = await environment.start_plan(*_build_diamond(environment))
    assert (await environment.get_execution(execution_id)).status == "pending"
    ended = await environment.run_to_end(execution_id)
    assert (ended.status, ended.output_data) == ("completed", {"step": "d"})
    assert (ended.steps_completed, ended.steps_total) == (4, 4)
    assert ended.results == {
        "a": {"step": "a"},
        "b": {"step": "b"},
        "c": [{"step": "c[0]"}, {"step": "c[1]"}, {"step": "c[2]"}],
        "d": {"step": "d"},
    }
    inputs = await environment.database.owner.fetchval("SELECT input_data::text FROM executions WHERE step = 'd'")
    assert msgspec.json.decode(inputs) == {"b": "b", "c": ended.results["c"]}
    assert await environment.list_due() == [], "no signal is left"


async def test_worker_that_dies_at_any_commit_runs_each_step_once(environment: PlanEnvironment) -> None:
    """Die before every commit of the plan worker in turn, and lose all that the worker knew."""
    boundaries = 0
    for crash_at in range(100):
        execution_id = await environment.start_plan(*_build_diamond(environment))
        count, died = 0, False
        for _ in range(60):
            for due_id in await environment.list_due():
                is_crashing = count == crash_at
                count += 1
                try:
                    await environment.advance_plan(due_id, None, is_crashing)
                except SimulatedCrash:
                    died = True
            await environment.settle_claimed(1)
            execution = await environment.get_execution(execution_id)
            if execution.status == "completed":
                break
        assert execution.status == "completed", execution
        rows = await environment.database.owner.fetch(
            "SELECT step, count(*) AS runs, max(attempt) AS attempts FROM executions "
            "WHERE root_id = (SELECT max(id::text)::uuid FROM executions WHERE lane = 'plan') GROUP BY step"
        )
        assert {row["step"]: (row["runs"], row["attempts"]) for row in rows} == dict.fromkeys(
            ("a", "b", "c[0]", "c[1]", "c[2]", "d"), (1, 1)
        )
        events = await environment.database.owner.fetch(
            "SELECT seq, type, data->>'status' AS status FROM execution_events "
            "WHERE execution_id = (SELECT max(id::text)::uuid FROM executions WHERE lane = 'plan') ORDER BY seq"
        )
        assert [row["seq"] for row in events] == list(range(1, len(events) + 1))
        ends = [row for row in events if row["type"] == "status" and row["status"] == "completed"]
        assert ends == [events[-1]]
        if not died:
            boundaries = crash_at
            break
    assert boundaries >= 5, "there were too few commits to die at"


async def test_step_whose_worker_dies_runs_again_alone(environment: PlanEnvironment) -> None:
    execution_id = await environment.start_plan(*_build_diamond(environment))
    await environment.advance_plan(execution_id)
    async with environment.store.autocommit() as tx:
        (lost,) = await executions.claim_executions(tx, "dead", timedelta(seconds=60), 10)
    environment.clock[0] += timedelta(seconds=61)
    async with environment.store.transaction(environment.caller) as tx:
        await executions.requeue_expired(tx, lost.id)
    ended = await environment.run_to_end(execution_id)
    assert ended.status == "completed"
    rows = await environment.database.owner.fetch("SELECT step, attempt FROM executions WHERE parent_id IS NOT NULL")
    assert {row["step"]: row["attempt"] for row in rows} == {
        "a": 2,
        **dict.fromkeys(("b", "c[0]", "c[1]", "c[2]", "d"), 1),
    }


async def test_racing_planners_start_each_step_once(system: System, environment: PlanEnvironment) -> None:
    plans = [await environment.start_plan(*_build_diamond(environment)) for _ in range(8)]
    rings = [asyncio.Event() for _ in range(3)]
    planners = [asyncio.create_task(PlanAdvancer(environment.store, 2, ring).run()) for ring in rings]
    try:
        for _ in range(400):
            for ring in rings:
                ring.set()
            await environment.settle_claimed()
            if all([(await environment.get_execution(plan_id)).status == "completed" for plan_id in plans]):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError([await environment.get_execution(plan_id) for plan_id in plans])
    finally:
        for task in planners:
            task.cancel()
        await asyncio.gather(*planners, return_exceptions=True)
    rows = await environment.database.owner.fetch(
        "SELECT root_id, step, count(*) AS runs FROM executions WHERE parent_id IS NOT NULL GROUP BY 1, 2"
    )
    assert len(rows) == 8 * 6
    assert {row["runs"] for row in rows} == {1}


async def test_plan_locked_by_another_worker_is_skipped(environment: PlanEnvironment) -> None:
    execution_id = await environment.start_plan(*_build_diamond(environment))
    async with environment.store.transaction(environment.caller) as tx:
        await coordinator.advance_plan(tx, execution_id, None)
        with pytest.raises(PlanLocked):
            await environment.advance_plan(execution_id)
    assert (await environment.list_children(execution_id)) == {"a": ["pending"]}


async def test_step_is_retried_to_its_limit_before_the_plan_fails(environment: PlanEnvironment) -> None:
    retry = RetryPolicy(attempts=2, delay=10, factor=2)
    step = PlanStep(id="a", name="The first", work=environment.build_work(), retry=retry)
    after = PlanStep(id="b", name="b", work=environment.build_work(), depends_on=["a"])
    execution_id = await environment.start_plan(step, after)
    for pause in (10, 20):
        await environment.advance_plan(execution_id)
        assert await environment.settle_claimed(error="ValueError") == ["a"]
        await environment.advance_plan(execution_id)
        assert await environment.settle_claimed() == [], "before its time"
        environment.clock[0] += timedelta(seconds=pause)
        assert await environment.list_due() == [execution_id]
    await environment.advance_plan(execution_id)
    assert await environment.settle_claimed(error="ValueError") == ["a"]
    await environment.advance_plan(execution_id)
    ended = await environment.get_execution(execution_id)
    assert (ended.status, ended.error_type) == ("failed", "ValueError")
    assert ended.error_message == "The step 'The first' failed: no"
    assert await environment.list_children(execution_id) == {"a": ["failed"] * 3}


async def test_retry_continues_from_the_failed_step(environment: PlanEnvironment) -> None:
    steps = _build_diamond(environment)
    execution_id = await environment.start_plan(*steps)
    await environment.advance_plan(execution_id)
    await environment.settle_claimed()
    await environment.advance_plan(execution_id)
    async with environment.store.autocommit() as tx:
        claimed = await executions.claim_executions(tx, "worker", timedelta(seconds=60), 10)
    assert sorted(execution.step or "" for execution in claimed) == ["b", "c[0]", "c[1]"]
    for execution in claimed:
        is_failed = execution.step == "c[1]"
        outcome = (
            SandboxOutcome(error_type="E", error_message="no")
            if is_failed
            else SandboxOutcome(output=b'{"step": "kept"}')
        )
        async with environment.store.transaction(environment.caller) as tx:
            await executions.settle_executions(tx, [AttemptOutcome(execution=execution, outcome=outcome, events=[])])
    await environment.advance_plan(execution_id)
    assert (await environment.get_execution(execution_id)).status == "failed"
    async with environment.store.transaction(environment.caller) as tx:
        retried = await service.retry_plan(tx, environment.caller, execution_id, from_failed=True)
    assert (retried.retry_of, retried.status) == (execution_id, "pending")
    ended = await environment.run_to_end(retried.id)
    assert ended.status == "completed"
    assert ended.results is not None
    assert ended.results["b"] == {"step": "kept"}
    assert ended.results["c"] == [{"step": "kept"}, {"step": "c[1]"}, {"step": "c[2]"}]
    rows = await environment.database.owner.fetch(
        "SELECT step FROM executions WHERE parent_id = $1", _decode_id(retried.id)
    )
    assert sorted(row["step"] for row in rows) == ["c[1]", "c[2]", "d"]


def _decode_id(execution_id: str) -> Any:
    return ids.decode_id("exec", execution_id)


async def test_cancel_reaches_the_whole_tree(environment: PlanEnvironment) -> None:
    inner = Plan(kind="workflow", name="inner", steps=[PlanStep(id="x", name="x", work=environment.build_work())])
    execution_id = await environment.start_plan(
        PlanStep(id="a", name="a", work=environment.build_work()), PlanStep(id="i", name="i", work=PlanWork(plan=inner))
    )
    for _ in range(2):
        for due_id in await environment.list_due():
            await environment.advance_plan(due_id)
    assert await environment.list_children(execution_id) == {"a": ["pending"], "i": ["running"], "x": ["pending"]}
    async with environment.store.transaction(environment.caller) as tx:
        await executions.cancel_execution(tx, execution_id)
    assert await environment.list_children(execution_id) == {"a": ["cancelled"], "i": ["cancelled"], "x": ["cancelled"]}
    for _ in range(3):
        for due_id in await environment.list_due():
            await environment.advance_plan(due_id)
    statuses = await environment.database.owner.fetch("SELECT DISTINCT status FROM plan_steps")
    assert [row["status"] for row in statuses] == ["cancelled"]
    assert await environment.list_due() == []


async def test_cancel_during_an_advance_leaves_nothing_running(environment: PlanEnvironment) -> None:
    """Cancel while an uncommitted advance has started a step that the cancel cannot see."""
    execution_id = await environment.start_plan(*_build_diamond(environment))
    cancelling: asyncio.Task[Any]

    async def cancel() -> None:
        async with environment.store.transaction(environment.caller) as tx:
            await executions.cancel_execution(tx, execution_id)

    async with environment.store.transaction(environment.caller) as tx:
        await coordinator.advance_plan(tx, execution_id, None)
        cancelling = asyncio.create_task(cancel())
        await asyncio.sleep(0.2)
    await cancelling
    for due_id in await environment.list_due():
        await environment.advance_plan(due_id)
    assert (await environment.get_execution(execution_id)).status == "cancelled"
    assert await environment.list_children(execution_id) == {"a": ["cancelled"]}
    assert await environment.settle_claimed() == []


async def test_plan_past_its_timeout_fails_and_runs_nothing(environment: PlanEnvironment) -> None:
    plan = Plan(kind="workflow", name="plan", steps=_build_diamond(environment))
    async with environment.store.transaction(environment.caller) as tx:
        execution_id = (await service.start_plan(tx, environment.caller, plan, ExecutionStart(timeout=100))).id
    await environment.advance_plan(execution_id)
    environment.clock[0] += timedelta(seconds=99)
    assert await environment.list_due() == []
    environment.clock[0] += timedelta(seconds=1)
    assert await environment.list_due() == [execution_id]
    await environment.advance_plan(execution_id)
    ended = await environment.get_execution(execution_id)
    assert (ended.status, ended.error_type) == ("failed", "timeout")
    assert await environment.list_children(execution_id) == {"a": ["cancelled"]}


async def test_model_calls_per_minute_are_limited_across_workers(environment: PlanEnvironment) -> None:
    execution_id = await environment.start_plan(*_build_diamond(environment))

    async def reserve_call(tx: Tx) -> float:
        return (await tx.plans.reserve_model_call(execution_id, 3, tx.now) - NOW).total_seconds()

    delays = []
    for _ in range(7):
        async with environment.store.transaction(environment.caller) as tx:
            delays.append(await reserve_call(tx))
    assert delays == [0, 0, 0, 60, 60, 60, 120]
