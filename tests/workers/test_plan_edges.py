"""Plans where it gets narrow: costs, limits, retries of plans in plans, what is too large, and planners in trouble."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from domain import agents, costs, executions, plans
from domain.costs import BilledCall, CostAttribution
from domain.executions import AttemptOutcome, Execution, ExecutionStart
from domain.llms import ModelUsage
from domain.plans import coordinator, service
from domain.plans.renderer import PlanScope
from domain.plans.schema import AgentWork, Plan, PlanStep, PlanWork, RetryPolicy, TaskText, ToolWork
from domain.ports import SandboxOutcome
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.shared.leases import LostLease
from infra.postgres.plans import MAX_STEP_ANSWERS_BYTES
from scripts.system import System
from tests.support.isolated_database import NOW
from tests.support.plan_builders import PlanEnvironment, open_plan_environment
from workers.agent import AgentRunner
from workers.model_calls import ModelAccess, ModelCalls
from workers.plan.advancer import PlanAdvancer


@pytest.fixture
async def world(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as one:
        yield one


def within(*steps: PlanStep, **more: Any) -> PlanWork:
    return PlanWork(plan=Plan(kind="workflow", name="inner", steps=list(steps), **more))


def step(world: PlanEnvironment, step_id: str, *above: str, **more: Any) -> PlanStep:
    return PlanStep(id=step_id, name=step_id, depends_on=list(above), **({"work": world.build_work()} | more))


async def retried(world: PlanEnvironment, execution_id: str) -> Execution:
    async with world.store.transaction(world.caller) as tx:
        return await service.retry_plan(tx, world.caller, execution_id, from_failed=True)


async def settle(world: PlanEnvironment, **errors: str | None) -> list[str]:
    """Settle all that can be claimed; a step named here fails."""
    async with world.store.autocommit() as tx:
        claimed = await executions.claim_executions(tx, "worker", timedelta(seconds=60), 100)
    for one in claimed:
        failed = errors.get(one.step or "")
        outcome = SandboxOutcome(output=msgspec.json.encode({"step": one.step}))
        if failed:
            outcome = SandboxOutcome(error_type=failed, error_message="no")
        async with world.store.transaction(world.caller) as tx:
            await executions.settle_executions(tx, [AttemptOutcome(execution=one, outcome=outcome, events=[])])
    return [one.step or "" for one in claimed]


async def rows(world: PlanEnvironment, query: str, *values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await world.database.owner.fetch(query, *values)]


async def signals(world: PlanEnvironment) -> int:
    return int(await world.database.owner.fetchval("SELECT count(*) FROM plan_signals"))


# costs


async def test_costs_are_those_of_all_below_whenever_they_come(world: PlanEnvironment) -> None:
    """A call that was under way when everything was cancelled is billed after it."""
    root = await world.start_plan(
        PlanStep(
            id="sub",
            name="sub",
            work=within(step(world, "a"), PlanStep(id="d", name="d", work=within(step(world, "b")))),
        )
    )
    await world.advance_until_idle()
    await world.advance_until_idle()
    found = {
        row[0]: row[1:] for row in await rows(world, "SELECT step, id, root_id FROM executions WHERE step IS NOT NULL")
    }

    async def spend(step_id: str, dollars: float) -> None:
        run, root_id = found[step_id]
        spender = CostAttribution(
            execution_id=ids.encode_id("exec", run),
            root_id=ids.encode_id("exec", root_id),
            user_id=world.caller.user_id,
            cost_limit=10.0,
        )
        call = BilledCall(
            provider="p",
            model="m",
            model_name="m",
            usage=ModelUsage(),
            cost_usd=dollars,
            estimated=False,
            status="ok",
            error_type=None,
            duration_ms=1.0,
            first_token_ms=None,
        )
        async with world.store.transaction(world.caller) as tx:
            await costs.settle_call(tx, None, spender, call)

    await spend("a", 0.1)
    await asyncio.gather(*(spend(one, 0.01) for one in ("a", "b") * 10))
    async with world.store.transaction(world.caller) as tx:
        await executions.cancel_execution(tx, root)
    await world.advance_until_idle()
    await spend("b", 0.2)
    await spend("a", 0.000000001)
    totals = dict(await rows(world, "SELECT coalesce(step, 'root'), total_cost FROM executions"))
    assert totals == {
        "a": pytest.approx(0.200000001, abs=1e-12),
        "b": pytest.approx(0.3, abs=1e-12),
        "d": pytest.approx(0.3, abs=1e-12),
        "sub": pytest.approx(0.500000001, abs=1e-12),
        "root": pytest.approx(0.500000001, abs=1e-12),
    }
    # The limit is that of all together.
    async with world.store.transaction(world.caller) as tx:
        run, root_id = (ids.encode_id("exec", one) for one in found["b"])
        spender = CostAttribution(execution_id=run, root_id=root_id, user_id=world.caller.user_id, cost_limit=0.6)
        hold = await costs.reserve_budget(tx, spender, 1.0, 0.01, 60)
        assert hold.amount_usd == pytest.approx(0.099999999, abs=1e-9)


# what others do to agents


async def test_who_starts_an_agent_takes_nothing_from_a_plan(world: PlanEnvironment) -> None:
    for policy in ("replace", "reject"):
        agent_id = await world.database.add_agent(world.caller, max_concurrency=1, policy=policy)
        version = await world.database.owner.fetchval(
            "SELECT current_version_id FROM agents WHERE id = $1", ids.decode_id("agent", agent_id)
        )
        work = AgentWork(name="limited", agent_id=agent_id, version_id=ids.encode_id("ver", version))
        root = await world.start_plan(PlanStep(id="a", name="a", work=work), PlanStep(id="b", name="b", work=work))
        await world.advance_until_idle()
        async with world.store.transaction(world.caller) as tx:
            direct = await executions.start_execution(tx, world.caller, agent_id, ExecutionStart(inputs={}))
        if policy == "replace":
            async with world.store.transaction(world.caller) as tx:
                newer = await executions.start_execution(tx, world.caller, agent_id, ExecutionStart(inputs={}))
            assert (await world.get_execution(direct.id)).status == "cancelled"
            direct = newer
        assert await world.list_children(root) == {"a": ["pending"], "b": ["pending"]}
        assert (await world.get_execution(direct.id)).status == "pending"
        assert (await world.run_to_end(root)).status == "completed"
        await world.database.owner.execute("UPDATE executions SET parent_id = NULL, root_id = NULL, step = NULL")


async def test_an_agent_that_is_deleted_under_way_is_not_run_any_more(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"), step(world, "b", "a"))
    await world.advance_until_idle()
    assert await world.settle_claimed() == ["a"]
    async with world.store.transaction(world.caller) as tx:
        await agents.delete_agent(tx, world.agent_id)
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "not_startable")
    assert "The agent 'agent' was deleted." in (ended.error_message or "")
    assert ended.results == {"a": {"step": "a"}}


async def test_deleting_an_agent_cancels_the_steps_that_run_it(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"))
    await world.advance_until_idle()
    async with world.store.transaction(world.caller) as tx:
        await agents.delete_agent(tx, world.agent_id)
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "cancelled")


async def test_one_slot_of_a_tenant_is_enough_for_plans_in_plans(world: PlanEnvironment) -> None:
    await world.database.owner.execute("UPDATE tenants SET max_concurrency = 1")
    root = await world.start_plan(
        PlanStep(id="s", name="s", work=within(*(step(world, one) for one in "abc"))), step(world, "d")
    )
    assert (await world.run_to_end(root)).status == "completed"


# run again


async def test_a_plan_within_goes_on_where_it_failed(world: PlanEnvironment) -> None:
    sub = within(step(world, "x"), step(world, "y", "x"), step(world, "z", "y"))
    root = await world.start_plan(
        PlanStep(id="each", name="each", work=sub, map=["p", "q"], inputs={"of": "{{ item }}"}),
        step(world, "end", "each"),
    )
    await world.advance_until_idle()
    assert sorted(await settle(world)) == ["x", "x"]
    await world.advance_until_idle()
    assert sorted(await settle(world, y="ValueError")) == ["y", "y"]
    await world.advance_until_idle()
    assert (await world.get_execution(root)).status == "failed"
    # Once more it fails there, then one further on.
    for expected, failing in ((["y"], "y"), (["y", "z"], "z"), (["z", "end"], "")):
        root = (await retried(world, root)).id
        await world.advance_until_idle()
        for one in expected:
            assert set(await settle(world, **{failing: "E"})) == {one}
            await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert ended.status == "completed"
    assert ended.results == {"each": [{"step": "z"}] * 2, "end": {"step": "end"}}
    assert dict(await rows(world, "SELECT step, count(*) FROM executions WHERE lane = 'run' GROUP BY 1")) == {
        "x": 2,
        "y": 6,
        "z": 4,
        "end": 1,
    }
    kept = "SELECT count(*) FROM executions WHERE lane = 'plan' AND retry_of IS NOT NULL AND parent_id IS NOT NULL"
    assert await rows(world, kept) == [(6,)]


async def test_a_plan_within_that_is_asked_something_else_begins_anew(world: PlanEnvironment) -> None:
    sub = within(step(world, "x"), step(world, "y", "x"))
    root = await world.start_plan(
        step(world, "a", continue_on_failure=True),
        PlanStep(id="sub", name="sub", work=sub, depends_on=["a"], inputs={"a": "{{ steps.a.status }}"}),
    )
    await world.advance_until_idle()
    await settle(world, a="ValueError")
    await world.advance_until_idle()
    await settle(world)
    await world.advance_until_idle()
    await settle(world, y="ValueError")
    await world.advance_until_idle()
    assert (await world.get_execution(root)).status == "failed"
    again = await retried(world, root)
    assert (await world.run_to_end(again.id)).status == "completed"
    query = "SELECT step FROM executions WHERE lane = 'run' ORDER BY id"
    assert [one for (one,) in await rows(world, query)] == ["a", "x", "y", "a", "x", "y"]


async def test_what_was_skipped_is_judged_again_after_what_is_run_again(world: PlanEnvironment) -> None:
    root = await world.start_plan(
        step(world, "a", continue_on_failure=True),
        step(world, "b", "a", when="steps.a.status == 'completed'"),
        step(world, "each", "a", map="steps.a.status == 'completed' ? [1] : [1, 2, 3]", max_parallel=3),
        step(world, "kept", when="false"),
        step(world, "end", "b", "each"),
    )
    await world.advance_until_idle()
    await settle(world, a="ValueError")
    await world.advance_until_idle()
    await settle(world, **{"each[1]": "ValueError"})
    await world.advance_until_idle()
    assert (await world.get_execution(root)).status == "failed"
    again = await retried(world, root)
    ended = await world.run_to_end(again.id)
    assert ended.status == "completed", ended
    assert ended.results == {
        "a": {"step": "a"},
        "b": {"step": "b"},
        "each": [{"step": "each[0]"}],
        "end": {"step": "end"},
    }
    assert ended.steps_completed == 5


async def test_what_completed_before_a_cancel_was_taken_in_is_kept(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"), step(world, "b", "a"))
    await world.advance_until_idle()
    await settle(world)
    async with world.store.transaction(world.caller) as tx:
        await executions.cancel_execution(tx, root)
    again = await retried(world, root)
    await world.advance_until_idle()
    assert await settle(world) == ["b"]
    assert (await world.run_to_end(again.id)).results == {"a": {"step": "a"}, "b": {"step": "b"}}


async def test_only_a_name_that_was_given_is_kept(world: PlanEnvironment) -> None:
    for name in (None, "Mine"):
        plan = Plan(kind="workflow", name="plan", steps=[step(world, "a")])
        async with world.store.transaction(world.caller) as tx:
            made = await service.start_plan(tx, world.caller, plan, ExecutionStart(run_name=name))
            await executions.cancel_execution(tx, made.id)
            again = await service.retry_plan(tx, world.caller, made.id, from_failed=False)
        assert again.run_name == (name or f"plan-{again.id[-6:]}")


async def test_an_automatic_try_of_a_plan_within_is_a_whole_one(world: PlanEnvironment) -> None:
    sub = within(step(world, "x"), step(world, "y", "x"))
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=sub, retry=RetryPolicy(attempts=1, delay=0)))
    await world.advance_until_idle()
    await settle(world)
    await world.advance_until_idle()
    await settle(world, y="ValueError")
    assert (await world.run_to_end(root)).status == "completed"
    query = "SELECT step FROM executions WHERE lane = 'run' ORDER BY id"
    assert [one for (one,) in await rows(world, query)] == ["x", "y", "x", "y"]


# what is too large, or no text


async def test_outputs_that_are_too_large_fail_the_step_that_refers_to_them(world: PlanEnvironment) -> None:
    root = await world.start_plan(
        step(world, "a"),
        step(world, "b", "a", inputs={"a": "{{ steps.a.outputs }}"}, continue_on_failure=True),
        step(world, "c", "a", when="size(steps.a.outputs) > 3", continue_on_failure=True),
    )
    await world.advance_until_idle()
    await settle(world)
    large = f'"{"x" * MAX_STEP_ANSWERS_BYTES}"'
    await world.database.owner.execute("UPDATE executions SET output_data = $1::json WHERE step = 'a'", large)
    await world.advance_until_idle()
    failed = await rows(world, "SELECT step, error_type FROM plan_steps WHERE status = 'failed' ORDER BY 1")
    assert failed == [("b", "outputs_too_large"), ("c", "outputs_too_large")]
    assert (await world.get_execution(root)).status == "completed"


async def test_a_plan_whose_last_output_is_too_large_is_completed_without_one(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"))
    await world.advance_until_idle()
    await settle(world)
    large = f'"{"x" * MAX_STEP_ANSWERS_BYTES}"'
    await world.database.owner.execute("UPDATE executions SET output_data = $1::json WHERE step = 'a'", large)
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.output_data) == ("completed", None)
    query = "SELECT data->>'message' FROM execution_events WHERE type = 'warning'"
    ((told,),) = await rows(world, query)
    assert "too much" in told


async def test_values_without_a_place_in_texts_are_told_of_all_the_same(world: PlanEnvironment) -> None:
    """U+0000 in an answer that an error quotes."""
    root = await world.start_plan(step(world, "a"), step(world, "b", "a", map="steps.a.outputs"))
    await world.advance_until_idle()
    await settle(world)
    await world.database.owner.execute("UPDATE executions SET output_data = '\"\\u0000\"' WHERE step = 'a'")
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "bad_expression")
    assert "map: must be a list, not \ufffd." in (ended.error_message or "")
    # Nor does the log hold what SQL could not read.
    told = "SELECT data->>'error_message' FROM execution_events WHERE type = 'step' AND data->>'status' = 'failed'"
    assert await rows(world, told) == [("map: must be a list, not \ufffd.",)]


async def test_a_prompt_that_comes_to_too_much_fails_its_step_with_the_reason(world: PlanEnvironment) -> None:
    text = "{a}" * 2000
    work = world.build_model_agent(instructions=text)
    root = await world.start_plan(PlanStep(id="a", name="a", work=work, inputs={"a": "{{ inputs.a }}"}, prompt="Go."))
    await world.database.owner.execute(
        "UPDATE executions SET input_data = $1::json", msgspec.json.encode({"a": "x" * 4000}).decode()
    )
    await world.advance_until_idle()
    ended = await world.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "not_startable"), ended
    assert "add more than" in (ended.error_message or "")


async def test_a_plan_has_so_many_items_in_all(world: PlanEnvironment) -> None:
    mapped = [step(world, f"s{number}", map=list(range(1000)), max_parallel=1) for number in range(21)]
    root = await world.start_plan(*mapped)
    await world.advance_until_idle()
    failed = await rows(world, "SELECT step, error_type FROM plan_steps WHERE status = 'failed' AND item < 0")
    assert [kind for _, kind in failed] == ["map_too_large"]
    assert (await world.get_execution(root)).error_type == "map_too_large"


def test_the_team_of_an_agent_is_told_the_inputs_as_it_is(world: PlanEnvironment) -> None:
    mate = msgspec.convert(msgspec.to_builtins(world.build_model_agent(goal="Know {topic}.").spec), agents.Agent)
    work = world.build_model_agent(goal="Ask of {topic}.", team=[mate])
    one = PlanStep(id="a", name="a", work=work, text=TaskText(description="Go."))
    plan = Plan(kind="crew", name="c", steps=[one])
    spec = PlanScope(plan, {"topic": "bees"}, {}).render_spec(work, one)
    assert spec is not None
    assert (spec.goal, [one.goal for one in spec.team]) == ("Ask of bees.", ["Know bees."])


# what is accepted, and has an effect


async def test_what_would_have_no_effect_is_refused(world: PlanEnvironment) -> None:
    code = Plan(
        kind="workflow",
        name="c",
        steps=[step(world, "a"), PlanStep(id="t", name="t", work=ToolWork(name="x", tool="x"))],
    )
    model = Plan(
        kind="workflow",
        name="m",
        steps=[
            PlanStep(
                id="s", name="s", work=within(PlanStep(id="m", name="m", work=world.build_model_agent(), prompt="Go."))
            )
        ],
    )
    calls = msgspec.structs.replace(world.build_work(), calls_models=True)
    caller = Plan(kind="workflow", name="x", steps=[PlanStep(id="a", name="a", work=calls)])
    given: dict[str, Any] = {"cost_limit": 1.0, "mode": "safe", "model": "m"}
    for plan, refused in ((code, set(given)), (caller, {"mode", "model"}), (model, set[str]())):
        found = set()
        for field, value in given.items():
            try:
                async with world.store.transaction(world.caller) as tx:
                    await service.start_plan(tx, world.caller, plan, ExecutionStart(**{field: value}))
            except DomainError as error:
                found |= {one.field for one in error.errors}
        assert found == refused


async def test_lists_of_which_the_inputs_tell_are_looked_at_for_so_long_at_the_door(world: PlanEnvironment) -> None:
    """Each may take a fifth of a second; two thousand of them may not take minutes."""
    heavy = "inputs.n.map(x, x + 1).map(y, y * 2)"
    steps = [step(world, f"s{number}", map=heavy) for number in range(300)]
    plan = Plan(kind="workflow", name="heavy", steps=steps)
    async with world.store.transaction(world.caller) as tx:
        made = await service.start_plan(tx, world.caller, plan, ExecutionStart(inputs={"n": list(range(1000))}))
    assert made.status == "pending"
    few = Plan(kind="workflow", name="few", steps=[step(world, "a", map="inputs.n")])
    with pytest.raises(DomainError, match="must be a list; with these inputs"):
        async with world.store.transaction(world.caller) as tx:
            await service.start_plan(tx, world.caller, few, ExecutionStart(inputs={"n": 1}))


# turns


async def test_nothing_is_told_of_a_plan_that_has_ended(world: PlanEnvironment) -> None:
    for ending in ("completed", "failed", "cancelled", "timeout"):
        sub = PlanStep(id="sub", name="sub", work=within(step(world, "x")))
        root = await world.start_plan(step(world, "a"), sub)
        await world.advance_until_idle()
        if ending == "cancelled":
            async with world.store.transaction(world.caller) as tx:
                await executions.cancel_execution(tx, root)
        elif ending == "timeout":
            world.clock[0] += timedelta(days=8)
        else:
            await settle(world, a="E" if ending == "failed" else None)
        await world.advance_until_idle()
        ended = await world.get_execution(root)
        assert ended.status == ("failed" if ending == "timeout" else ending)
        assert await signals(world) == 0
        states = "SELECT DISTINCT status FROM executions WHERE completed_at IS NULL"
        assert await rows(world, states) == []


async def test_who_has_had_a_turn_lets_others_have_theirs(world: PlanEnvironment) -> None:
    root = await world.start_plan(*(step(world, f"s{number}") for number in range(5)))
    for number in range(1, 5):
        async with world.store.transaction(world.caller) as tx:
            await coordinator.advance_plan(tx, root, None, lambda: True)
        assert len(await world.list_children(root)) == number
        assert await world.list_due() == [root]
    await world.advance_until_idle()
    assert await world.list_due() == []
    assert (await world.run_to_end(root)).status == "completed"


async def test_what_is_begun_while_a_plan_is_cancelled_is_not(world: PlanEnvironment) -> None:
    """The cancel commits after the turn has begun and before it writes down what came of it."""
    root = await world.start_plan(step(world, "a"))
    with pytest.raises(LostLease):
        async with world.store.transaction(world.caller) as tx:
            save = tx.plans.save

            async def cancelled_meanwhile(*given: Any) -> None:
                async with world.store.transaction(world.caller) as other:
                    await executions.cancel_execution(other, root)
                await save(*given)

            tx.plans.save = cancelled_meanwhile  # type: ignore[method-assign]
            await coordinator.advance_plan(tx, root, None)
    assert await world.list_children(root) == {}
    await world.advance_until_idle()
    assert (await world.get_execution(root)).status == "cancelled"
    assert await signals(world) == 0


async def test_the_clock_of_who_starts_a_plan_delays_nothing(world: PlanEnvironment) -> None:
    world.clock[0] += timedelta(minutes=5)
    root = await world.start_plan(step(world, "a"))
    world.clock[0] -= timedelta(minutes=5)
    assert await world.list_due() == [root]


@contextlib.asynccontextmanager
async def planner(world: PlanEnvironment, slots: int) -> AsyncIterator[PlanAdvancer]:
    ring = asyncio.Event()
    one = PlanAdvancer(world.store, slots, ring)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def started(world: PlanEnvironment, execution_id: str) -> None:
    for _ in range(300):
        if (await world.get_execution(execution_id)).status == "running":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it was not advanced")


async def test_plans_that_somebody_holds_keep_no_others_from_their_turn(world: PlanEnvironment) -> None:
    """A process that is stopped in the middle of its transactions, for one."""
    held = [await world.start_plan(step(world, "a")) for _ in range(6)]
    free = await world.start_plan(step(world, "a"))
    async with contextlib.AsyncExitStack() as stack:
        for execution_id in held:
            tx = await stack.enter_async_context(world.store.transaction(world.caller))
            await tx.plans.lock(execution_id)
        async with planner(world, 1):
            await started(world, free)
            assert (await world.get_execution(held[0])).status == "pending"


async def test_plans_that_cannot_be_advanced_fail_and_keep_no_others_from_their_turn(
    world: PlanEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = [await world.start_plan(step(world, "a")) for _ in range(6)]
    stuck = [await world.start_plan(step(world, "a")) for _ in range(6)]
    free = await world.start_plan(step(world, "a"))
    advance, give_up = coordinator.advance_plan, coordinator.fail_plan

    async def broken(tx: Any, execution_id: str, *more: Any) -> Any:
        if execution_id in (*poison, *stuck):
            raise KeyError("here")
        return await advance(tx, execution_id, *more)

    async def never(tx: Any, execution_id: str, told: str) -> None:
        if execution_id in stuck:
            raise KeyError("there")
        await give_up(tx, execution_id, told)

    monkeypatch.setattr(plans, "advance_plan", broken)
    monkeypatch.setattr(plans, "fail_plan", never)
    async with planner(world, 1):
        await started(world, free)
    for execution_id in poison:
        ended = await world.get_execution(execution_id)
        assert (ended.status, ended.error_type) == ("failed", "internal_error")
        assert ended.error_message == "The worker failed: KeyError."
    assert {(await world.get_execution(one)).status for one in stuck} == {"pending"}


async def test_a_plan_that_is_given_up_takes_all_below_it_along(world: PlanEnvironment) -> None:
    root = await world.start_plan(PlanStep(id="sub", name="sub", work=within(step(world, "x"))), step(world, "a"))
    await world.advance_until_idle()
    async with world.store.transaction(world.caller) as tx:
        await coordinator.fail_plan(tx, root, "The worker failed.")
    await world.advance_until_idle()
    assert await world.list_children(root) == {"sub": ["cancelled"], "a": ["cancelled"], "x": ["cancelled"]}
    assert await signals(world) == 0
    events = await rows(
        world,
        "SELECT type, data->>'status' FROM execution_events WHERE execution_id = $1 ORDER BY seq DESC LIMIT 1",
        ids.decode_id("exec", root),
    )
    assert events == [("status", "failed")]


# the pace of calls


def calls_of(world: PlanEnvironment, run: Execution, run_timeout: Any = None) -> ModelCalls:
    anything: Any = None
    access = ModelAccess(store=world.store, llm=anything, prices=anything, keyring=anything)
    return ModelCalls(access, run, run_timeout=run_timeout)


async def test_who_waits_for_a_turn_to_call_says_so_and_can_be_stopped(world: PlanEnvironment) -> None:
    """Of a code agent too, whose `max_rpm` is looked up."""
    root = await world.start_plan(step(world, "a"), max_rpm=1)
    await world.advance_until_idle()
    query = "SELECT id FROM executions WHERE step = 'a'"
    run = await world.get_execution(ids.encode_id("exec", await world.database.owner.fetchval(query)))
    extensions: list[float] = []
    run_timeout: Any = SimpleNamespace(when=lambda: 100.0, reschedule=lambda at: extensions.append(at - 100.0))
    for _ in range(2):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await calls_of(world, run, run_timeout)._wait_for_rate_limit()
    assert extensions == [60.0]
    unpaced = await world.start_plan(step(world, "b"))
    await world.advance_until_idle()
    query = "SELECT id FROM executions WHERE step = 'b'"
    run = await world.get_execution(ids.encode_id("exec", await world.database.owner.fetchval(query)))
    calls = calls_of(world, run, run_timeout)
    for _ in range(3):
        await calls._wait_for_rate_limit()
    assert (extensions, root != unpaced) == ([60.0], True)


async def test_the_pace_holds_whatever_the_clocks_say(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"), max_rpm=2)
    found = []
    for behind in (0, 5, 3, 1, 2, 4):
        world.clock[0] = NOW - timedelta(seconds=behind)
        async with world.store.transaction(world.caller) as tx:
            found.append((await tx.plans.reserve_model_call(root, 2, tx.now) - NOW).total_seconds())
    ordered = sorted(found)
    assert all(later - earlier >= 60 for earlier, later in zip(ordered, ordered[2:], strict=False))


class Paced(AgentRunner):
    """Works for longer than it may, some of which it waits for its turn."""

    def __init__(self, waiting: float) -> None:
        self._waiting = waiting

    async def _run_agent(self, execution: Execution, timeout: asyncio.Timeout) -> SandboxOutcome | None:
        timeout.reschedule((timeout.when() or 0) + self._waiting)
        await asyncio.sleep(1.2)
        return SandboxOutcome(output=b"1")


async def test_waiting_for_a_turn_to_call_takes_nothing_from_the_time_of_a_run(world: PlanEnvironment) -> None:
    root = await world.start_plan(step(world, "a"))
    run = msgspec.structs.replace(await world.get_execution(root), kind="agent", timeout=1)
    kinds = [
        outcome and outcome.error_type for outcome in [await Paced(one)._run_within_timeout(run) for one in (0.0, 5.0)]
    ]
    assert kinds == ["timeout", None]
