"""Approve and reject steps of plans: their own, those of nested plans, and tool calls of agents at any depth."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from domain import executions
from domain.events import EventQuery
from domain.executions import ApprovalDecision, Execution
from domain.plans import approvals
from domain.plans.coordinator import PlanLocked
from domain.plans.schema import Plan, PlanStep, PlanWork
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.shared.leases import LostLease
from scripts.system import System
from tests.support.plan_builders import PlanEnvironment, open_plan_environment


@pytest.fixture
async def environment(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as environment:
        yield environment


async def decide(
    environment: PlanEnvironment, execution_id: str, approved: bool = True, call_id: str | None = None
) -> Execution:
    async with environment.store.transaction(environment.caller) as tx:
        return await approvals.decide_approval(
            tx, environment.caller, execution_id, approved, ApprovalDecision(call_id=call_id, reason="So.")
        )


async def list_waiting(environment: PlanEnvironment, execution_id: str) -> list[str]:
    await environment.advance_until_idle()
    return [call["call_id"] for call in (await environment.get_execution(execution_id)).waiting_for or []]


async def find_child(environment: PlanEnvironment, execution_id: str, step: str) -> str:
    query = "SELECT id FROM executions WHERE parent_id = $1 AND step = $2 ORDER BY id DESC LIMIT 1"
    row_id = await environment.database.owner.fetchval(query, ids.decode_id("exec", execution_id), step)
    return ids.encode_id("exec", row_id)


async def list_events(environment: PlanEnvironment, execution_id: str, kind: str) -> list[dict[str, Any]]:
    async with environment.store.transaction(environment.caller) as tx:
        (event_slice,) = await tx.events.find_slices([_build_event_query(environment, execution_id)], 1000)
    assert event_slice is not None
    assert [event.seq for event in event_slice.events] == list(range(1, event_slice.last_seq + 1))
    return [event.data for event in event_slice.events if event.type == kind]


def _build_event_query(environment: PlanEnvironment, execution_id: str) -> Any:
    return EventQuery(execution_id=execution_id, tenant_id=environment.caller.tenant_id, seq=0)


def build_nested_plan(*steps: PlanStep, levels: int = 1) -> PlanWork:
    work = PlanWork(plan=Plan(kind="workflow", name="inner", steps=list(steps)))
    for level in range(levels - 1):
        step = PlanStep(id=f"l{level}", name="level", work=work)
        work = PlanWork(plan=Plan(kind="workflow", name="between", steps=[step]))
    return work


def build_approval_step(environment: PlanEnvironment, step_id: str, *above: str) -> PlanStep:
    return PlanStep(
        id=step_id, name=step_id, work=environment.build_work(), requires_approval=True, depends_on=list(above)
    )


def build_agent_step(environment: PlanEnvironment, step_id: str) -> PlanStep:
    return PlanStep(id=step_id, name=step_id, work=environment.build_model_agent(), prompt="Go.")


@pytest.mark.parametrize("levels", [1, 2, 4])
async def test_step_of_a_nested_plan_is_approved_from_the_root(environment: PlanEnvironment, levels: int) -> None:
    root = await environment.start_plan(
        PlanStep(id="sub", name="sub", work=build_nested_plan(build_approval_step(environment, "ship"), levels=levels))
    )
    assert await list_waiting(environment, root) == ["ship"]
    after = await decide(environment, root, call_id="ship")
    assert (after.status, after.waiting_for) == ("running", None)
    assert (await environment.run_to_end(root)).status == "completed"
    approvals_of_root = await list_events(environment, root, "approval")
    assert [
        (approval["status"], [call["call_id"] for call in approval["calls"]]) for approval in approvals_of_root
    ] == [
        ("waiting", ["ship"]),
        ("approved", ["ship"]),
    ]
    assert (approvals_of_root[1]["by"], approvals_of_root[1]["reason"]) == (environment.caller.user_id, "So.")


async def test_step_of_a_nested_plan_is_rejected_from_the_root(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        PlanStep(id="sub", name="sub", work=build_nested_plan(build_approval_step(environment, "ship")))
    )
    assert await list_waiting(environment, root) == ["ship"]
    inner = await find_child(environment, root, "sub")
    await decide(environment, root, approved=False)
    ended = await environment.run_to_end(root)
    assert (ended.status, ended.error_type) == ("failed", "rejected")
    assert [(event["step"], event["status"]) for event in await list_events(environment, inner, "step")] == [
        ("ship", "waiting"),
        ("ship", "failed"),
    ]


async def test_decided_step_cannot_be_decided_again(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_approval_step(environment, "a"), build_approval_step(environment, "b"))
    assert await list_waiting(environment, root) == ["a", "b"]
    after = await decide(environment, root, call_id="a")
    assert (after.status, [call["call_id"] for call in after.waiting_for or []]) == ("waiting", ["b"])
    with pytest.raises(DomainError, match="call_id: does not wait for an approval; these do: b"):
        await decide(environment, root, approved=False, call_id="a")
    await decide(environment, root)
    for _ in range(2):
        with pytest.raises(DomainError) as error:
            await decide(environment, root, approved=False)
        assert error.value.code == "conflict"
    assert (await environment.run_to_end(root)).status == "completed"
    assert [event["status"] for event in await list_events(environment, root, "approval")] == [
        "waiting",
        "approved",
        "approved",
    ]
    assert [event["status"] for event in await list_events(environment, root, "status")] == [
        *("pending", "waiting", "running", "completed"),
    ]


async def test_root_lists_further_waiting_steps_of_a_nested_plan(environment: PlanEnvironment) -> None:
    """Let a nested plan wait for another step without a change of its status."""
    inner = build_nested_plan(
        build_approval_step(environment, "a"),
        PlanStep(id="x", name="x", work=environment.build_work()),
        build_approval_step(environment, "b", "x"),
        levels=2,
    )
    root = await environment.start_plan(PlanStep(id="sub", name="sub", work=inner))
    assert await list_waiting(environment, root) == ["a"]
    assert await environment.settle_claimed() == ["x"]
    assert await list_waiting(environment, root) == ["a", "b"]
    await decide(
        environment, await find_child(environment, await find_child(environment, root, "sub"), "l0"), call_id="a"
    )
    assert await list_waiting(environment, root) == ["b"]


async def test_calls_with_the_same_id_are_distinguished(environment: PlanEnvironment) -> None:
    """Qualify ids of calls, as models number their calls from one in each run."""
    work = build_nested_plan(build_agent_step(environment, "deep"))
    root = await environment.start_plan(
        build_agent_step(environment, "one"),
        PlanStep(id="sub", name="sub", work=work),
        build_approval_step(environment, "call_1"),
    )
    await environment.advance_until_idle()
    first, second = await environment.park_on_calls("call_1"), await environment.park_on_calls("call_1")
    qualified_ids = [f"{first.id}:call_1", f"{second.id}:call_1"]
    assert sorted(await list_waiting(environment, root)) == sorted(["call_1", *qualified_ids])
    (inner,) = [run for run in (first, second) if run.step == "deep"]
    await decide(environment, root, call_id=f"{inner.id}:call_1")
    assert (await environment.get_execution(inner.id)).status == "pending"
    (other,) = [run for run in (first, second) if run.step == "one"]
    assert (await environment.get_execution(other.id)).status == "waiting"
    assert sorted(await list_waiting(environment, root)) == sorted(["call_1", f"{other.id}:call_1"])
    await decide(environment, root, call_id="call_1")
    assert (await environment.get_execution(other.id)).status == "waiting"
    assert await list_waiting(environment, root) == ["call_1"], "the id is unique again"
    await decide(environment, root, call_id="call_1")
    await environment.advance_until_idle()
    assert sorted(await environment.settle_model_runs()) == ["deep", "one"]
    assert (await environment.run_to_end(root)).status == "completed"


async def test_decision_at_the_child_is_visible_above(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        PlanStep(id="sub", name="sub", work=build_nested_plan(build_agent_step(environment, "deep")))
    )
    await environment.advance_until_idle()
    leaf = await environment.park_on_calls("c1", "c2")
    assert await list_waiting(environment, root) == ["c1", "c2"]
    await decide(environment, leaf.id, call_id="c1")
    # Before any plan was advanced: the child's decision holds.
    with pytest.raises(DomainError, match="already decided"):
        await decide(environment, root, approved=False, call_id="c1")
    assert await list_waiting(environment, root) == ["c2"]
    await decide(environment, root)
    assert (await environment.get_execution(leaf.id)).status == "pending"
    rows = await environment.database.owner.fetch("SELECT call_id, status FROM execution_steps ORDER BY call_id")
    assert [tuple(row) for row in rows] == [("c1", "approved"), ("c2", "approved")]
    assert await list_waiting(environment, root) == []
    assert (await environment.get_execution(root)).status == "running"


async def test_waiting_items_of_a_map_are_named(environment: PlanEnvironment) -> None:
    step = PlanStep(id="each", name="each", work=environment.build_model_agent(), prompt="Go.", map=[1, 2])
    root = await environment.start_plan(step)
    await environment.advance_until_idle()
    await environment.park_on_calls("c1"), await environment.park_on_calls("c2")
    await environment.advance_until_idle()
    calls = (await environment.get_execution(root)).waiting_for or []
    assert [(call["call_id"], call["step"]) for call in calls] == [("c1", "each[0]"), ("c2", "each[1]")]


async def test_cancelled_plan_cannot_be_decided(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        PlanStep(
            id="sub",
            name="sub",
            work=build_nested_plan(build_approval_step(environment, "a"), build_agent_step(environment, "b")),
        )
    )
    await environment.advance_until_idle()
    leaf = await environment.park_on_calls("c1")
    assert await list_waiting(environment, root) == ["a", "c1"]
    async with environment.store.transaction(environment.caller) as tx:
        await executions.cancel_execution(tx, root)
    for execution_id in (root, leaf.id, await find_child(environment, root, "sub")):
        with pytest.raises(DomainError) as error:
            await decide(environment, execution_id)
        assert error.value.code == "conflict"
    await environment.advance_until_idle()
    assert await environment.list_children(root) == {"sub": ["cancelled"], "b": ["cancelled"]}


async def test_concurrent_decide_cancel_and_advance_never_deadlock(environment: PlanEnvironment) -> None:
    """Lock several executions in one order: the leaves first, the root last."""

    async def run_operation(execution_id: str, operation: str) -> None:
        try:
            if operation == "cancel":
                async with environment.store.transaction(environment.caller) as tx:
                    await executions.cancel_execution(tx, execution_id)
            elif operation == "decide":
                await decide(environment, execution_id)
            else:
                await environment.advance_until_idle()
        except DomainError as error:
            assert error.code == "conflict", error.detail
        except (LostLease, PlanLocked):
            pass

    for _ in range(12):
        work = build_nested_plan(
            build_approval_step(environment, "a"), *(build_agent_step(environment, f"c{number}") for number in range(6))
        )
        root = await environment.start_plan(
            *(PlanStep(id=f"s{number}", name="s", work=work) for number in range(2)),
            build_approval_step(environment, "b"),
        )
        await environment.advance_until_idle()
        for number in range(12):
            await environment.park_on_calls(f"call_{number}")
        await environment.advance_until_idle()
        subs = [await find_child(environment, root, f"s{number}") for number in range(2)]
        await asyncio.gather(
            run_operation(root, "decide"),
            run_operation(root, "cancel"),
            *(run_operation(sub, "cancel") for sub in subs),
            *(run_operation(sub, "decide") for sub in subs),
            run_operation(root, "turns"),
        )
        await environment.advance_until_idle()
        statuses = {
            status for child_statuses in (await environment.list_children(root)).values() for status in child_statuses
        }
        assert statuses == {"cancelled"}
        assert (await environment.get_execution(root)).status == "cancelled"
        await environment.database.owner.execute("UPDATE executions SET status = 'cancelled' WHERE status = 'pending'")


async def test_decision_does_not_extend_the_deadline(environment: PlanEnvironment) -> None:
    """Decide on a process whose clock is past the deadline, before the plan is advanced on one whose clock is not."""
    root = await environment.start_plan(build_approval_step(environment, "a"))
    await environment.advance_until_idle()
    timeout = (await environment.get_execution(root)).timeout
    environment.clock[0] += timedelta(seconds=timeout + 5)
    await decide(environment, root)
    environment.clock[0] -= timedelta(seconds=10)
    await environment.advance_until_idle()
    assert (await environment.get_execution(root)).status == "running"
    environment.clock[0] += timedelta(seconds=10)
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "timeout")
