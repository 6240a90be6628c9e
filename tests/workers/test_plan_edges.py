"""Plans at their limits: costs, concurrency, retries of nested plans, values that are too large, and failing planners."""

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
from workers.agent.runner import AgentRunResult
from workers.model_calls import ModelAccess, ModelCalls
from workers.plan.advancer import PlanAdvancer


@pytest.fixture
async def environment(system: System) -> AsyncIterator[PlanEnvironment]:
    async with open_plan_environment(system) as environment:
        yield environment


def build_nested_plan(*steps: PlanStep, **more: Any) -> PlanWork:
    return PlanWork(plan=Plan(kind="workflow", name="inner", steps=list(steps), **more))


def build_step(environment: PlanEnvironment, step_id: str, *above: str, **more: Any) -> PlanStep:
    return PlanStep(id=step_id, name=step_id, depends_on=list(above), **({"work": environment.build_work()} | more))


async def retry_failed(environment: PlanEnvironment, execution_id: str) -> Execution:
    async with environment.store.transaction(environment.caller) as tx:
        return await service.retry_plan(tx, environment.caller, execution_id, from_failed=True)


async def settle_claimed(environment: PlanEnvironment, **errors: str | None) -> list[str]:
    """Settle all that can be claimed, and return the steps; a step named here fails."""
    async with environment.store.autocommit() as tx:
        claimed = await executions.claim_executions(tx, "worker", timedelta(seconds=60), 100)
    for execution in claimed:
        error_type = errors.get(execution.step or "")
        outcome = SandboxOutcome(output=msgspec.json.encode({"step": execution.step}))
        if error_type:
            outcome = SandboxOutcome(error_type=error_type, error_message="no")
        async with environment.store.transaction(environment.caller) as tx:
            await executions.settle_executions(tx, [AttemptOutcome(execution=execution, outcome=outcome, events=[])])
    return [execution.step or "" for execution in claimed]


async def fetch_rows(environment: PlanEnvironment, query: str, *values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await environment.database.owner.fetch(query, *values)]


async def count_signals(environment: PlanEnvironment) -> int:
    return int(await environment.database.owner.fetchval("SELECT count(*) FROM plan_signals"))


# costs


async def test_costs_of_all_descendants_are_summed_up_to_the_root(environment: PlanEnvironment) -> None:
    """Bill a call also after the cancellation of everything that was running."""
    root = await environment.start_plan(
        PlanStep(
            id="sub",
            name="sub",
            work=build_nested_plan(
                build_step(environment, "a"),
                PlanStep(id="d", name="d", work=build_nested_plan(build_step(environment, "b"))),
            ),
        )
    )
    await environment.advance_until_idle()
    await environment.advance_until_idle()
    ids_by_step = {
        row[0]: row[1:]
        for row in await fetch_rows(environment, "SELECT step, id, root_id FROM executions WHERE step IS NOT NULL")
    }

    async def spend_on_step(step_id: str, dollars: float) -> None:
        run_id, root_id = ids_by_step[step_id]
        spender = CostAttribution(
            execution_id=ids.encode_id("exec", run_id),
            root_id=ids.encode_id("exec", root_id),
            user_id=environment.caller.user_id,
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
        async with environment.store.transaction(environment.caller) as tx:
            await costs.settle_call(tx, None, spender, call)

    await spend_on_step("a", 0.1)
    await asyncio.gather(*(spend_on_step(step_id, 0.01) for step_id in ("a", "b") * 10))
    async with environment.store.transaction(environment.caller) as tx:
        await executions.cancel_execution(tx, root)
    await environment.advance_until_idle()
    await spend_on_step("b", 0.2)
    await spend_on_step("a", 0.000000001)
    totals = dict(await fetch_rows(environment, "SELECT coalesce(step, 'root'), total_cost FROM executions"))
    assert totals == {
        "a": pytest.approx(0.200000001, abs=1e-12),
        "b": pytest.approx(0.3, abs=1e-12),
        "d": pytest.approx(0.3, abs=1e-12),
        "sub": pytest.approx(0.500000001, abs=1e-12),
        "root": pytest.approx(0.500000001, abs=1e-12),
    }
    # The cost limit applies to all of them together.
    async with environment.store.transaction(environment.caller) as tx:
        execution_id, root_id = (ids.encode_id("exec", row_id) for row_id in ids_by_step["b"])
        spender = CostAttribution(
            execution_id=execution_id, root_id=root_id, user_id=environment.caller.user_id, cost_limit=0.6
        )
        reservation = await costs.reserve_budget(tx, spender, 1.0, 0.01, 60)
        assert reservation.amount_usd == pytest.approx(0.099999999, abs=1e-9)


# Limits of agents, and changes to them.


async def test_direct_starts_do_not_replace_steps_of_plans(environment: PlanEnvironment) -> None:
    for policy in ("replace", "reject"):
        agent_id = await environment.database.add_agent(environment.caller, max_concurrency=1, policy=policy)
        version = await environment.database.owner.fetchval(
            "SELECT current_version_id FROM agents WHERE id = $1", ids.decode_id("agent", agent_id)
        )
        work = AgentWork(name="limited", agent_id=agent_id, version_id=ids.encode_id("ver", version))
        root = await environment.start_plan(
            PlanStep(id="a", name="a", work=work), PlanStep(id="b", name="b", work=work)
        )
        await environment.advance_until_idle()
        async with environment.store.transaction(environment.caller) as tx:
            direct_start = await executions.start_execution(tx, environment.caller, agent_id, ExecutionStart(inputs={}))
        if policy == "replace":
            async with environment.store.transaction(environment.caller) as tx:
                newer = await executions.start_execution(tx, environment.caller, agent_id, ExecutionStart(inputs={}))
            assert (await environment.get_execution(direct_start.id)).status == "cancelled"
            direct_start = newer
        assert await environment.list_children(root) == {"a": ["pending"], "b": ["pending"]}
        assert (await environment.get_execution(direct_start.id)).status == "pending"
        assert (await environment.run_to_end(root)).status == "completed"
        await environment.database.owner.execute("UPDATE executions SET parent_id = NULL, root_id = NULL, step = NULL")


async def test_deleted_agent_starts_no_further_steps(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"), build_step(environment, "b", "a"))
    await environment.advance_until_idle()
    assert await environment.settle_claimed() == ["a"]
    async with environment.store.transaction(environment.caller) as tx:
        await agents.delete_agent(tx, environment.agent_id)
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "not_startable")
    assert "The agent 'agent' was deleted." in (ended.error_message or "")
    assert ended.results == {"a": {"step": "a"}}


async def test_deleting_an_agent_cancels_its_steps(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"))
    await environment.advance_until_idle()
    async with environment.store.transaction(environment.caller) as tx:
        await agents.delete_agent(tx, environment.agent_id)
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "cancelled")


async def test_nested_plans_finish_with_one_slot_per_tenant(environment: PlanEnvironment) -> None:
    await environment.database.owner.execute("UPDATE tenants SET max_concurrency = 1")
    root = await environment.start_plan(
        PlanStep(id="s", name="s", work=build_nested_plan(*(build_step(environment, step_id) for step_id in "abc"))),
        build_step(environment, "d"),
    )
    assert (await environment.run_to_end(root)).status == "completed"


# Retries.


async def test_retry_of_a_nested_plan_continues_where_it_failed(environment: PlanEnvironment) -> None:
    sub = build_nested_plan(
        build_step(environment, "x"), build_step(environment, "y", "x"), build_step(environment, "z", "y")
    )
    root = await environment.start_plan(
        PlanStep(id="each", name="each", work=sub, map=["p", "q"], inputs={"of": "{{ item }}"}),
        build_step(environment, "end", "each"),
    )
    await environment.advance_until_idle()
    assert sorted(await settle_claimed(environment)) == ["x", "x"]
    await environment.advance_until_idle()
    assert sorted(await settle_claimed(environment, y="ValueError")) == ["y", "y"]
    await environment.advance_until_idle()
    assert (await environment.get_execution(root)).status == "failed"
    # It fails at the same step once more, then one step later.
    for expected, failing in ((["y"], "y"), (["y", "z"], "z"), (["z", "end"], "")):
        root = (await retry_failed(environment, root)).id
        await environment.advance_until_idle()
        for step_id in expected:
            assert set(await settle_claimed(environment, **{failing: "E"})) == {step_id}
            await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert ended.status == "completed"
    assert ended.results == {"each": [{"step": "z"}] * 2, "end": {"step": "end"}}
    assert dict(
        await fetch_rows(environment, "SELECT step, count(*) FROM executions WHERE lane = 'run' GROUP BY 1")
    ) == {
        "x": 2,
        "y": 6,
        "z": 4,
        "end": 1,
    }
    query = "SELECT count(*) FROM executions WHERE lane = 'plan' AND retry_of IS NOT NULL AND parent_id IS NOT NULL"
    assert await fetch_rows(environment, query) == [(6,)]


async def test_retry_of_a_nested_plan_with_other_inputs_starts_over(environment: PlanEnvironment) -> None:
    sub = build_nested_plan(build_step(environment, "x"), build_step(environment, "y", "x"))
    root = await environment.start_plan(
        build_step(environment, "a", continue_on_failure=True),
        PlanStep(id="sub", name="sub", work=sub, depends_on=["a"], inputs={"a": "{{ steps.a.status }}"}),
    )
    await environment.advance_until_idle()
    await settle_claimed(environment, a="ValueError")
    await environment.advance_until_idle()
    await settle_claimed(environment)
    await environment.advance_until_idle()
    await settle_claimed(environment, y="ValueError")
    await environment.advance_until_idle()
    assert (await environment.get_execution(root)).status == "failed"
    retried = await retry_failed(environment, root)
    assert (await environment.run_to_end(retried.id)).status == "completed"
    query = "SELECT step FROM executions WHERE lane = 'run' ORDER BY id"
    assert [step_id for (step_id,) in await fetch_rows(environment, query)] == ["a", "x", "y", "a", "x", "y"]


async def test_retry_evaluates_skipped_steps_again(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        build_step(environment, "a", continue_on_failure=True),
        build_step(environment, "b", "a", when="steps.a.status == 'completed'"),
        build_step(environment, "each", "a", map="steps.a.status == 'completed' ? [1] : [1, 2, 3]", max_parallel=3),
        build_step(environment, "kept", when="false"),
        build_step(environment, "end", "b", "each"),
    )
    await environment.advance_until_idle()
    await settle_claimed(environment, a="ValueError")
    await environment.advance_until_idle()
    await settle_claimed(environment, **{"each[1]": "ValueError"})
    await environment.advance_until_idle()
    assert (await environment.get_execution(root)).status == "failed"
    retried = await retry_failed(environment, root)
    ended = await environment.run_to_end(retried.id)
    assert ended.status == "completed", ended
    assert ended.results == {
        "a": {"step": "a"},
        "b": {"step": "b"},
        "each": [{"step": "each[0]"}],
        "end": {"step": "end"},
    }
    assert ended.steps_completed == 5


async def test_retry_keeps_steps_that_completed_before_a_cancel(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"), build_step(environment, "b", "a"))
    await environment.advance_until_idle()
    await settle_claimed(environment)
    async with environment.store.transaction(environment.caller) as tx:
        await executions.cancel_execution(tx, root)
    retried = await retry_failed(environment, root)
    await environment.advance_until_idle()
    assert await settle_claimed(environment) == ["b"]
    assert (await environment.run_to_end(retried.id)).results == {"a": {"step": "a"}, "b": {"step": "b"}}


async def test_retry_keeps_a_name_only_if_it_was_chosen(environment: PlanEnvironment) -> None:
    for name in (None, "Mine"):
        plan = Plan(kind="workflow", name="plan", steps=[build_step(environment, "a")])
        async with environment.store.transaction(environment.caller) as tx:
            execution = await service.start_plan(tx, environment.caller, plan, ExecutionStart(run_name=name))
            await executions.cancel_execution(tx, execution.id)
            retried = await service.retry_plan(tx, environment.caller, execution.id, from_failed=False)
        assert retried.run_name == (name or f"plan-{retried.id[-6:]}")


async def test_automatic_retry_of_a_nested_plan_starts_over(environment: PlanEnvironment) -> None:
    sub = build_nested_plan(build_step(environment, "x"), build_step(environment, "y", "x"))
    root = await environment.start_plan(
        PlanStep(id="sub", name="sub", work=sub, retry=RetryPolicy(attempts=1, delay=0))
    )
    await environment.advance_until_idle()
    await settle_claimed(environment)
    await environment.advance_until_idle()
    await settle_claimed(environment, y="ValueError")
    assert (await environment.run_to_end(root)).status == "completed"
    query = "SELECT step FROM executions WHERE lane = 'run' ORDER BY id"
    assert [step_id for (step_id,) in await fetch_rows(environment, query)] == ["x", "y", "x", "y"]


# Values that are too large, or are not text.


async def test_too_large_outputs_fail_the_steps_that_refer_to_them(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        build_step(environment, "a"),
        build_step(environment, "b", "a", inputs={"a": "{{ steps.a.outputs }}"}, continue_on_failure=True),
        build_step(environment, "c", "a", when="size(steps.a.outputs) > 3", continue_on_failure=True),
    )
    await environment.advance_until_idle()
    await settle_claimed(environment)
    large = f'"{"x" * MAX_STEP_ANSWERS_BYTES}"'
    await environment.database.owner.execute("UPDATE executions SET output_data = $1::json WHERE step = 'a'", large)
    await environment.advance_until_idle()
    failed = await fetch_rows(environment, "SELECT step, error_type FROM plan_steps WHERE status = 'failed' ORDER BY 1")
    assert failed == [("b", "outputs_too_large"), ("c", "outputs_too_large")]
    assert (await environment.get_execution(root)).status == "completed"


async def test_plan_with_a_too_large_last_output_completes_without_it(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"))
    await environment.advance_until_idle()
    await settle_claimed(environment)
    large = f'"{"x" * MAX_STEP_ANSWERS_BYTES}"'
    await environment.database.owner.execute("UPDATE executions SET output_data = $1::json WHERE step = 'a'", large)
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.output_data) == ("completed", None)
    query = "SELECT data->>'message' FROM execution_events WHERE type = 'warning'"
    ((message,),) = await fetch_rows(environment, query)
    assert "too much" in message


async def test_errors_about_values_with_nul_characters_are_logged(environment: PlanEnvironment) -> None:
    """Replace U+0000 in an answer that an error quotes."""
    root = await environment.start_plan(
        build_step(environment, "a"), build_step(environment, "b", "a", map="steps.a.outputs")
    )
    await environment.advance_until_idle()
    await settle_claimed(environment)
    await environment.database.owner.execute("UPDATE executions SET output_data = '\"\\u0000\"' WHERE step = 'a'")
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "bad_expression")
    assert "map: must be a list, not \ufffd." in (ended.error_message or "")
    # The log holds nothing either that SQL could not read.
    query = "SELECT data->>'error_message' FROM execution_events WHERE type = 'step' AND data->>'status' = 'failed'"
    assert await fetch_rows(environment, query) == [("map: must be a list, not \ufffd.",)]


async def test_too_large_prompt_fails_its_step_with_a_reason(environment: PlanEnvironment) -> None:
    text = "{a}" * 2000
    work = environment.build_model_agent(instructions=text)
    root = await environment.start_plan(
        PlanStep(id="a", name="a", work=work, inputs={"a": "{{ inputs.a }}"}, prompt="Go.")
    )
    await environment.database.owner.execute(
        "UPDATE executions SET input_data = $1::json", msgspec.json.encode({"a": "x" * 4000}).decode()
    )
    await environment.advance_until_idle()
    ended = await environment.get_execution(root)
    assert (ended.status, ended.error_type) == ("failed", "not_startable"), ended
    assert "add more than" in (ended.error_message or "")


async def test_total_number_of_map_items_is_limited(environment: PlanEnvironment) -> None:
    mapped = [build_step(environment, f"s{number}", map=list(range(1000)), max_parallel=1) for number in range(21)]
    root = await environment.start_plan(*mapped)
    await environment.advance_until_idle()
    failed = await fetch_rows(
        environment, "SELECT step, error_type FROM plan_steps WHERE status = 'failed' AND item < 0"
    )
    assert [kind for _, kind in failed] == ["map_too_large"]
    assert (await environment.get_execution(root)).error_type == "map_too_large"


def test_team_of_an_agent_is_rendered_with_the_same_inputs(environment: PlanEnvironment) -> None:
    teammate = msgspec.convert(
        msgspec.to_builtins(environment.build_model_agent(goal="Know {topic}.").spec), agents.Agent
    )
    work = environment.build_model_agent(goal="Ask of {topic}.", team=[teammate])
    step = PlanStep(id="a", name="a", work=work, text=TaskText(description="Go."))
    plan = Plan(kind="crew", name="c", steps=[step])
    spec = PlanScope(plan, {"topic": "bees"}, {}).render_spec(work, step)
    assert spec is not None
    assert (spec.goal, [member.goal for member in spec.team]) == ("Ask of bees.", ["Know bees."])


# Options that are accepted and have an effect.


async def test_options_without_effect_are_refused(environment: PlanEnvironment) -> None:
    code = Plan(
        kind="workflow",
        name="c",
        steps=[build_step(environment, "a"), PlanStep(id="t", name="t", work=ToolWork(name="x", tool="x"))],
    )
    model = Plan(
        kind="workflow",
        name="m",
        steps=[
            PlanStep(
                id="s",
                name="s",
                work=build_nested_plan(PlanStep(id="m", name="m", work=environment.build_model_agent(), prompt="Go.")),
            )
        ],
    )
    calls = msgspec.structs.replace(environment.build_work(), calls_models=True)
    caller = Plan(kind="workflow", name="x", steps=[PlanStep(id="a", name="a", work=calls)])
    options: dict[str, Any] = {"cost_limit": 1.0, "mode": "safe", "model": "m"}
    for plan, expected in ((code, set(options)), (caller, {"mode", "model"}), (model, set[str]())):
        refused_fields = set()
        for field, value in options.items():
            try:
                async with environment.store.transaction(environment.caller) as tx:
                    await service.start_plan(tx, environment.caller, plan, ExecutionStart(**{field: value}))
            except DomainError as error:
                refused_fields |= {field_error.field for field_error in error.errors}
        assert refused_fields == expected


async def test_time_for_checking_lists_at_start_is_limited(environment: PlanEnvironment) -> None:
    """Stop checking three hundred lists of a fifth of a second each, so that a start takes no minutes."""
    heavy = "inputs.n.map(x, x + 1).map(y, y * 2)"
    steps = [build_step(environment, f"s{number}", map=heavy) for number in range(300)]
    plan = Plan(kind="workflow", name="heavy", steps=steps)
    async with environment.store.transaction(environment.caller) as tx:
        execution = await service.start_plan(
            tx, environment.caller, plan, ExecutionStart(inputs={"n": list(range(1000))})
        )
    assert execution.status == "pending"
    invalid_plan = Plan(kind="workflow", name="few", steps=[build_step(environment, "a", map="inputs.n")])
    with pytest.raises(DomainError, match="must be a list; with these inputs"):
        async with environment.store.transaction(environment.caller) as tx:
            await service.start_plan(tx, environment.caller, invalid_plan, ExecutionStart(inputs={"n": 1}))


# Turns of the coordinator.


async def test_ended_plan_leaves_no_signals(environment: PlanEnvironment) -> None:
    for ending in ("completed", "failed", "cancelled", "timeout"):
        sub = PlanStep(id="sub", name="sub", work=build_nested_plan(build_step(environment, "x")))
        root = await environment.start_plan(build_step(environment, "a"), sub)
        await environment.advance_until_idle()
        if ending == "cancelled":
            async with environment.store.transaction(environment.caller) as tx:
                await executions.cancel_execution(tx, root)
        elif ending == "timeout":
            environment.clock[0] += timedelta(days=8)
        else:
            await settle_claimed(environment, a="E" if ending == "failed" else None)
        await environment.advance_until_idle()
        ended = await environment.get_execution(root)
        assert ended.status == ("failed" if ending == "timeout" else ending)
        assert await count_signals(environment) == 0
        states = "SELECT DISTINCT status FROM executions WHERE completed_at IS NULL"
        assert await fetch_rows(environment, states) == []


async def test_plan_advances_one_step_per_turn_under_load(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(*(build_step(environment, f"s{number}") for number in range(5)))
    for number in range(1, 5):
        async with environment.store.transaction(environment.caller) as tx:
            await coordinator.advance_plan(tx, root, None, lambda: True)
        assert len(await environment.list_children(root)) == number
        assert await environment.list_due() == [root]
    await environment.advance_until_idle()
    assert await environment.list_due() == []
    assert (await environment.run_to_end(root)).status == "completed"


async def test_step_started_during_a_cancel_is_rolled_back(environment: PlanEnvironment) -> None:
    """Commit the cancel after the turn has begun and before it saves its results."""
    root = await environment.start_plan(build_step(environment, "a"))
    with pytest.raises(LostLease):
        async with environment.store.transaction(environment.caller) as tx:
            save = tx.plans.save

            async def cancel_and_save(*arguments: Any) -> None:
                async with environment.store.transaction(environment.caller) as other:
                    await executions.cancel_execution(other, root)
                await save(*arguments)

            tx.plans.save = cancel_and_save  # type: ignore[method-assign]
            await coordinator.advance_plan(tx, root, None)
    assert await environment.list_children(root) == {}
    await environment.advance_until_idle()
    assert (await environment.get_execution(root)).status == "cancelled"
    assert await count_signals(environment) == 0


async def test_fast_clock_of_the_starter_delays_nothing(environment: PlanEnvironment) -> None:
    environment.clock[0] += timedelta(minutes=5)
    root = await environment.start_plan(build_step(environment, "a"))
    environment.clock[0] -= timedelta(minutes=5)
    assert await environment.list_due() == [root]


@contextlib.asynccontextmanager
async def run_planner(environment: PlanEnvironment, slots: int) -> AsyncIterator[PlanAdvancer]:
    ring = asyncio.Event()
    advancer = PlanAdvancer(environment.store, slots, ring)
    task = asyncio.create_task(advancer.run())
    try:
        yield advancer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wait_until_running(environment: PlanEnvironment, execution_id: str) -> None:
    for _ in range(300):
        if (await environment.get_execution(execution_id)).status == "running":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the plan was not advanced")


async def test_locked_plans_do_not_block_others(environment: PlanEnvironment) -> None:
    """Hold the locks as a process does that is stopped in the middle of its transactions."""
    locked = [await environment.start_plan(build_step(environment, "a")) for _ in range(6)]
    free = await environment.start_plan(build_step(environment, "a"))
    async with contextlib.AsyncExitStack() as stack:
        for execution_id in locked:
            tx = await stack.enter_async_context(environment.store.transaction(environment.caller))
            await tx.plans.lock(execution_id)
        async with run_planner(environment, 1):
            await wait_until_running(environment, free)
            assert (await environment.get_execution(locked[0])).status == "pending"


async def test_failing_plans_do_not_block_others(environment: PlanEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = [await environment.start_plan(build_step(environment, "a")) for _ in range(6)]
    stuck = [await environment.start_plan(build_step(environment, "a")) for _ in range(6)]
    free = await environment.start_plan(build_step(environment, "a"))
    advance, give_up = coordinator.advance_plan, coordinator.fail_plan

    async def fail_to_advance(tx: Any, execution_id: str, *more: Any) -> Any:
        if execution_id in (*poison, *stuck):
            raise KeyError("here")
        return await advance(tx, execution_id, *more)

    async def fail_to_give_up(tx: Any, execution_id: str, message: str) -> None:
        if execution_id in stuck:
            raise KeyError("there")
        await give_up(tx, execution_id, message)

    monkeypatch.setattr(plans, "advance_plan", fail_to_advance)
    monkeypatch.setattr(plans, "fail_plan", fail_to_give_up)
    async with run_planner(environment, 1):
        await wait_until_running(environment, free)
    for execution_id in poison:
        ended = await environment.get_execution(execution_id)
        assert (ended.status, ended.error_type) == ("failed", "internal_error")
        assert ended.error_message == "The worker failed: KeyError."
    assert {(await environment.get_execution(execution_id)).status for execution_id in stuck} == {"pending"}


async def test_plan_that_is_given_up_cancels_all_its_steps(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(
        PlanStep(id="sub", name="sub", work=build_nested_plan(build_step(environment, "x"))),
        build_step(environment, "a"),
    )
    await environment.advance_until_idle()
    async with environment.store.transaction(environment.caller) as tx:
        await coordinator.fail_plan(tx, root, "The worker failed.")
    await environment.advance_until_idle()
    assert await environment.list_children(root) == {"sub": ["cancelled"], "a": ["cancelled"], "x": ["cancelled"]}
    assert await count_signals(environment) == 0
    events = await fetch_rows(
        environment,
        "SELECT type, data->>'status' FROM execution_events WHERE execution_id = $1 ORDER BY seq DESC LIMIT 1",
        ids.decode_id("exec", root),
    )
    assert events == [("status", "failed")]


# The rate of model calls.


def create_model_calls(environment: PlanEnvironment, run: Execution, run_timeout: Any = None) -> ModelCalls:
    anything: Any = None
    access = ModelAccess(store=environment.store, llm=anything, prices=anything, keyring=anything)
    return ModelCalls(access, run, run_timeout=run_timeout)


async def test_waiting_for_the_rate_limit_extends_the_timeout_and_can_be_stopped(environment: PlanEnvironment) -> None:
    """Apply the plan's `max_rpm` to code agents too."""
    root = await environment.start_plan(build_step(environment, "a"), max_rpm=1)
    await environment.advance_until_idle()
    query = "SELECT id FROM executions WHERE step = 'a'"
    run = await environment.get_execution(ids.encode_id("exec", await environment.database.owner.fetchval(query)))
    extensions: list[float] = []
    run_timeout: Any = SimpleNamespace(when=lambda: 100.0, reschedule=lambda at: extensions.append(at - 100.0))
    for _ in range(2):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await create_model_calls(environment, run, run_timeout)._wait_for_rate_limit(None)
    assert extensions == [60.0]
    unpaced = await environment.start_plan(build_step(environment, "b"))
    await environment.advance_until_idle()
    query = "SELECT id FROM executions WHERE step = 'b'"
    run = await environment.get_execution(ids.encode_id("exec", await environment.database.owner.fetchval(query)))
    calls = create_model_calls(environment, run, run_timeout)
    for _ in range(3):
        await calls._wait_for_rate_limit(None)
    assert (extensions, root != unpaced) == ([60.0], True)


async def test_rate_limit_holds_with_clocks_that_differ(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"), max_rpm=2)
    delays = []
    for behind in (0, 5, 3, 1, 2, 4):
        environment.clock[0] = NOW - timedelta(seconds=behind)
        async with environment.store.transaction(environment.caller) as tx:
            delays.append((await tx.plans.reserve_model_call(root, 2, tx.now) - NOW).total_seconds())
    ordered = sorted(delays)
    assert all(later - earlier >= 60 for earlier, later in zip(ordered, ordered[2:], strict=False))


class WaitingRunner(AgentRunner):
    """A runner that works for longer than the timeout, part of which it waits for the rate limit."""

    def __init__(self, waiting: float) -> None:
        self._waiting = waiting

    async def _run_agent(self, execution: Execution, timeout: asyncio.Timeout) -> AgentRunResult | None:
        timeout.reschedule((timeout.when() or 0) + self._waiting)
        await asyncio.sleep(1.2)
        return AgentRunResult(outcome=SandboxOutcome(output=b"1"))


async def test_waiting_for_the_rate_limit_does_not_count_as_run_time(environment: PlanEnvironment) -> None:
    root = await environment.start_plan(build_step(environment, "a"))
    run = msgspec.structs.replace(await environment.get_execution(root), kind="agent", timeout=1)
    kinds = [
        ended and ended.outcome.error_type
        for ended in [await WaitingRunner(waiting)._run_within_timeout(run) for waiting in (0.0, 5.0)]
    ]
    assert kinds == ["timeout", None]
