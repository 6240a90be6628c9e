"""Deciding on what waits in plans: their own steps, those of plans in them, and tool calls of agents at any depth."""

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
async def world(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as one:
        yield one


async def decide(
    world: PlanEnvironment, execution_id: str, approved: bool = True, call_id: str | None = None
) -> Execution:
    async with world.store.transaction(world.caller) as tx:
        return await approvals.decide_approval(
            tx, world.caller, execution_id, approved, ApprovalDecision(call_id=call_id, reason="So.")
        )


async def waiting(world: PlanEnvironment, execution_id: str) -> list[str]:
    await world.advance_until_idle()
    return [call["call_id"] for call in (await world.get_execution(execution_id)).waiting_for or []]


async def child(world: PlanEnvironment, execution_id: str, step: str) -> str:
    query = "SELECT id FROM executions WHERE parent_id = $1 AND step = $2 ORDER BY id DESC LIMIT 1"
    found = await world.database.owner.fetchval(query, ids.decode_id("exec", execution_id), step)
    return ids.encode_id("exec", found)


async def log(world: PlanEnvironment, execution_id: str, kind: str) -> list[dict[str, Any]]:
    async with world.store.transaction(world.caller) as tx:
        (found,) = await tx.events.find_slices([_asked(world, execution_id)], 1000)
    assert found is not None
    assert [event.seq for event in found.events] == list(range(1, found.last_seq + 1))
    return [event.data for event in found.events if event.type == kind]


def _asked(world: PlanEnvironment, execution_id: str) -> Any:
    return EventQuery(execution_id=execution_id, tenant_id=world.caller.tenant_id, seq=0)


def nested(*steps: PlanStep, levels: int = 1) -> PlanWork:
    work = PlanWork(plan=Plan(kind="workflow", name="inner", steps=list(steps)))
    for level in range(levels - 1):
        step = PlanStep(id=f"l{level}", name="level", work=work)
        work = PlanWork(plan=Plan(kind="workflow", name="between", steps=[step]))
    return work


def ask(world: PlanEnvironment, step_id: str, *above: str) -> PlanStep:
    return PlanStep(id=step_id, name=step_id, work=world.build_work(), requires_approval=True, depends_on=list(above))


def asker(world: PlanEnvironment, step_id: str) -> PlanStep:
    return PlanStep(id=step_id, name=step_id, work=world.build_model_agent(), prompt="Go.")


@pytest.mark.parametrize("levels", [1, 2, 4])
async def test_a_step_of_a_plan_within_is_approved_from_the_root(world: PlanEnvironment, levels: int) -> None:
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=nested(ask(world, "ship"), levels=levels)))
    assert await waiting(world, root) == ["ship"]
    after = await decide(world, root, call_id="ship")
    assert (after.status, after.waiting_for) == ("running", None)
    assert (await world.run_to_end(root)).status == "completed"
    told = await log(world, root, "approval")
    assert [(one["status"], [call["call_id"] for call in one["calls"]]) for one in told] == [
        ("waiting", ["ship"]),
        ("approved", ["ship"]),
    ]
    assert (told[1]["by"], told[1]["reason"]) == (world.caller.user_id, "So.")


async def test_a_step_of_a_plan_within_is_rejected_from_the_root(world: PlanEnvironment) -> None:
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=nested(ask(world, "ship"))))
    assert await waiting(world, root) == ["ship"]
    inner = await child(world, root, "sub")
    await decide(world, root, approved=False)
    ended = await world.run_to_end(root)
    assert (ended.status, ended.error_type) == ("failed", "rejected")
    assert [(one["step"], one["status"]) for one in await log(world, inner, "step")] == [
        ("ship", "waiting"),
        ("ship", "failed"),
    ]


async def test_what_is_decided_on_is_not_decided_on_again(world: PlanEnvironment) -> None:
    root = await world.start_plan(ask(world, "a"), ask(world, "b"))
    assert await waiting(world, root) == ["a", "b"]
    after = await decide(world, root, call_id="a")
    assert (after.status, [call["call_id"] for call in after.waiting_for or []]) == ("waiting", ["b"])
    with pytest.raises(DomainError, match="call_id: does not wait for an approval; these do: b"):
        await decide(world, root, approved=False, call_id="a")
    await decide(world, root)
    for _ in range(2):
        with pytest.raises(DomainError) as raised:
            await decide(world, root, approved=False)
        assert raised.value.code == "conflict"
    assert (await world.run_to_end(root)).status == "completed"
    assert [one["status"] for one in await log(world, root, "approval")] == ["waiting", "approved", "approved"]
    assert [one["status"] for one in await log(world, root, "status")] == [
        *("pending", "waiting", "running", "completed"),
    ]


async def test_the_root_learns_that_more_waits_within(world: PlanEnvironment) -> None:
    """A plan within that waits goes on waiting, for other things: its status does not change."""
    inner = nested(ask(world, "a"), PlanStep(id="x", name="x", work=world.build_work()), ask(world, "b", "x"), levels=2)
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=inner))
    assert await waiting(world, root) == ["a"]
    assert await world.settle_claimed() == ["x"]
    assert await waiting(world, root) == ["a", "b"]
    await decide(world, await child(world, await child(world, root, "sub"), "l0"), call_id="a")
    assert await waiting(world, root) == ["b"]


async def test_calls_of_one_id_are_told_apart(world: PlanEnvironment) -> None:
    """Models number their calls from one in each run."""
    work = nested(asker(world, "deep"))
    root = await world.start_plan(asker(world, "one"), PlanStep(id="sub", name="sub", work=work), ask(world, "call_1"))
    await world.advance_until_idle()
    first, second = await world.park_on_calls("call_1"), await world.park_on_calls("call_1")
    ids_of = [f"{first.id}:call_1", f"{second.id}:call_1"]
    assert sorted(await waiting(world, root)) == sorted(["call_1", *ids_of])
    (inner,) = [one for one in (first, second) if one.step == "deep"]
    await decide(world, root, call_id=f"{inner.id}:call_1")
    assert (await world.get_execution(inner.id)).status == "pending"
    (other,) = [one for one in (first, second) if one.step == "one"]
    assert (await world.get_execution(other.id)).status == "waiting"
    assert sorted(await waiting(world, root)) == sorted(["call_1", f"{other.id}:call_1"])
    await decide(world, root, call_id="call_1")
    assert (await world.get_execution(other.id)).status == "waiting"
    assert await waiting(world, root) == ["call_1"], "no other has this id any more"
    await decide(world, root, call_id="call_1")
    await world.advance_until_idle()
    assert sorted(await world.settle_model_runs()) == ["deep", "one"]
    assert (await world.run_to_end(root)).status == "completed"


async def test_a_decision_made_at_the_child_is_known_above(world: PlanEnvironment) -> None:
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=nested(asker(world, "deep"))))
    await world.advance_until_idle()
    leaf = await world.park_on_calls("c1", "c2")
    assert await waiting(world, root) == ["c1", "c2"]
    await decide(world, leaf.id, call_id="c1")
    # Before anybody has looked: what was decided there is not decided on again.
    with pytest.raises(DomainError, match="already decided"):
        await decide(world, root, approved=False, call_id="c1")
    assert await waiting(world, root) == ["c2"]
    await decide(world, root)
    assert (await world.get_execution(leaf.id)).status == "pending"
    rows = await world.database.owner.fetch("SELECT call_id, status FROM execution_steps ORDER BY call_id")
    assert [tuple(row) for row in rows] == [("c1", "approved"), ("c2", "approved")]
    assert await waiting(world, root) == []
    assert (await world.get_execution(root)).status == "running"


async def test_items_that_wait_say_which_they_are(world: PlanEnvironment) -> None:
    step = PlanStep(id="each", name="each", work=world.build_model_agent(), prompt="Go.", map=[1, 2])
    root = await world.start_plan(step)
    await world.advance_until_idle()
    await world.park_on_calls("c1"), await world.park_on_calls("c2")
    await world.advance_until_idle()
    calls = (await world.get_execution(root)).waiting_for or []
    assert [(call["call_id"], call["step"]) for call in calls] == [("c1", "each[0]"), ("c2", "each[1]")]


async def test_a_cancel_takes_what_waits_and_it_cannot_be_decided_on_any_more(world: PlanEnvironment) -> None:
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=nested(ask(world, "a"), asker(world, "b"))))
    await world.advance_until_idle()
    leaf = await world.park_on_calls("c1")
    assert await waiting(world, root) == ["a", "c1"]
    async with world.store.transaction(world.caller) as tx:
        await executions.cancel_execution(tx, root)
    for execution_id in (root, leaf.id, await child(world, root, "sub")):
        with pytest.raises(DomainError) as raised:
            await decide(world, execution_id)
        assert raised.value.code == "conflict"
    await world.advance_until_idle()
    assert await world.list_children(root) == {"sub": ["cancelled"], "b": ["cancelled"]}


async def test_deciding_cancelling_and_advancing_at_once_never_deadlock(world: PlanEnvironment) -> None:
    """Whoever locks several executions locks the leaves first, the root last."""

    async def at_once(execution_id: str, what: str) -> None:
        try:
            if what == "cancel":
                async with world.store.transaction(world.caller) as tx:
                    await executions.cancel_execution(tx, execution_id)
            elif what == "decide":
                await decide(world, execution_id)
            else:
                await world.advance_until_idle()
        except DomainError as error:
            assert error.code == "conflict", error.detail
        except (LostLease, PlanLocked):
            pass

    for _ in range(12):
        work = nested(ask(world, "a"), *(asker(world, f"c{number}") for number in range(6)))
        root = await world.start_plan(
            *(PlanStep(id=f"s{number}", name="s", work=work) for number in range(2)), ask(world, "b")
        )
        await world.advance_until_idle()
        for number in range(12):
            await world.park_on_calls(f"call_{number}")
        await world.advance_until_idle()
        subs = [await child(world, root, f"s{number}") for number in range(2)]
        await asyncio.gather(
            at_once(root, "decide"),
            at_once(root, "cancel"),
            *(at_once(sub, "cancel") for sub in subs),
            *(at_once(sub, "decide") for sub in subs),
            at_once(root, "turns"),
        )
        await world.advance_until_idle()
        statuses = {status for found in (await world.list_children(root)).values() for status in found}
        assert statuses == {"cancelled"}
        assert (await world.get_execution(root)).status == "cancelled"
        await world.database.owner.execute("UPDATE executions SET status = 'cancelled' WHERE status = 'pending'")


async def test_a_decision_loses_no_deadline(world: PlanEnvironment) -> None:
    """Whose clock is ahead decides after the deadline is due there, and before it is where plans are advanced."""
    root = await world.start_plan(ask(world, "a"))
    await world.advance_until_idle()
    timeout = (await world.get_execution(root)).timeout
    world.clock[0] += timedelta(seconds=timeout + 5)
    await decide(world, root)
    world.clock[0] -= timedelta(seconds=10)
    await world.advance_until_idle()
    assert (await world.get_execution(root)).status == "running"
    world.clock[0] += timedelta(seconds=10)
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "timeout")
