"""Start plans, and start ended plans again."""

from collections.abc import Iterator
from typing import Any

import msgspec

from domain import expressions
from domain.executions import (
    STEERING_FIELDS,
    Execution,
    ExecutionStart,
    apply_start_options,
    build_execution,
    build_payload,
    build_run_name,
    get_execution,
)
from domain.expressions import BadExpression, WorkBudget
from domain.plans import child_executions, renderer
from domain.plans.schema import MAX_MAP_ITEMS, AgentWork, Plan, PlanStep, PlanWork
from domain.ports import Tx
from domain.shared import names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField
from domain.shared.status import TERMINAL_STATUSES


async def start_plan(
    tx: Tx, caller: Caller, plan: Plan, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Add a pending execution of a plan and ring the plan lane. Errors: `invalid_field`."""
    for field in ("agent_version_id", "max_attempts"):
        if getattr(data, field) is not None:
            raise InvalidField(field, f"is for agents; this is a {plan.kind}.")
    _check_agent_fields(plan, data)
    payload = build_payload(data)
    _check_lists(plan, payload)
    execution = child_executions.build_plan_execution(
        build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, plan.name, payload),
        plan,
        data.mode or "safe",
        data.timeout,
    )
    execution = apply_start_options(execution, data, schedule_id)
    execution = msgspec.structs.replace(execution, model=data.model, cost_limit=data.cost_limit)
    return await child_executions.add_plan_execution(tx, execution, plan)


async def retry_plan(tx: Tx, caller: Caller, execution_id: str, from_failed: bool) -> Execution:
    """Run an ended plan again as a new execution; `from_failed` keeps its completed steps.

    A failed plan within it resumes as well, if it gets the same input as before.
    Errors: `not_found`; `conflict` for a plan that has not ended or has no failed step.
    """
    old = await get_execution(tx, execution_id)
    plan = await tx.plans.get(execution_id)
    if old.status not in TERMINAL_STATUSES:
        raise Conflict(f"The execution is {old.status}; only one that has ended can be run again.")
    assert plan is not None, "a plan's execution without a plan"
    if from_failed and old.status == "completed":
        raise Conflict("The execution is completed; none of its steps failed.")
    execution = build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, plan.name, old.input_data)
    execution = child_executions.build_plan_execution(execution, plan, old.mode, old.timeout)
    has_default_name = old.run_name == build_run_name(plan.name, old.id)
    execution = msgspec.structs.replace(
        execution,
        run_name=execution.run_name if has_default_name else old.run_name,
        model=old.model,
        cost_limit=old.cost_limit,
        state=old.state,
        files=old.files,
        retry_of=old.id,
        **{field: getattr(old, field) for field in STEERING_FIELDS},
    )
    if not from_failed:
        return await child_executions.add_plan_execution(tx, execution, plan)
    runs = await child_executions.load_resumed_runs(tx, old.id, plan)
    execution = await child_executions.add_plan_execution(tx, execution, plan, runs)
    # Repeated steps may read files that completed steps wrote.
    await tx.workspaces.copy_files(old.root_id or old.id, execution.id)
    return execution


def _check_lists(plan: Plan, inputs: dict[str, Any]) -> None:
    """Refuse a `map` that is no list or too long, where the inputs alone decide that. Errors: `invalid_field`."""
    # One budget for all steps: what takes longer is left to the run.
    budget = WorkBudget()
    for number, step in enumerate(plan.steps):
        if step.map is None or not renderer.find_map_references(step).names <= {"inputs"}:
            continue
        field = f"steps[{number}].map"
        try:
            items = _evaluate_map(step, inputs, budget)
        except BadExpression as error:
            if budget.remaining_work < 0:
                return
            raise InvalidField(field, error.message) from error
        if not isinstance(items, list):
            raise InvalidField(field, "must be a list; with these inputs it is not.")
        if len(items) > MAX_MAP_ITEMS:
            raise InvalidField(field, f"has {len(items)} items with these inputs; at most {MAX_MAP_ITEMS} are allowed.")


def _evaluate_map(step: PlanStep, inputs: dict[str, Any], budget: WorkBudget) -> Any:
    if not isinstance(step.map, str):
        return step.map
    return expressions.evaluate_expression(step.map, {"inputs": inputs}, budget)


def _check_agent_fields(plan: Plan, data: ExecutionStart) -> None:
    """Refuse fields about model calls or uploaded agents for a plan without them. Errors: `invalid_field`."""
    works = list(_iterate_agents(plan))
    if data.cost_limit is not None and not any(work.spec is not None or work.calls_models for work in works):
        raise InvalidField("cost_limit", f"limits the cost of model calls; this {plan.kind} makes none.")
    for field in ("mode", "model"):
        if getattr(data, field) is not None and not any(work.spec is not None for work in works):
            raise InvalidField(field, f"is for model agents; this {plan.kind} has none.")
    if data.state is not None:
        names.check_state_name("state", data.state)
        if all(work.spec is not None for work in works):
            raise InvalidField("state", f"is for uploaded agents; this {plan.kind} has none.")


def _iterate_agents(plan: Plan) -> Iterator[AgentWork]:
    for step in plan.steps:
        if isinstance(step.work, PlanWork):
            yield from _iterate_agents(step.work.plan)
        elif isinstance(step.work, AgentWork):
            yield step.work
