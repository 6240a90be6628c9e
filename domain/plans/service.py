"""Starting plans, and starting ended ones again from where they failed."""

from collections.abc import Iterator
from typing import Any

import msgspec

from domain import expressions
from domain.executions import Execution, get_execution
from domain.executions.schema import ExecutionStart, build_payload
from domain.executions.service import build_execution, build_run_name
from domain.expressions import BadExpression
from domain.expressions.evaluator import WorkBudget
from domain.plans import child_executions, renderer
from domain.plans.engine import create_runs
from domain.plans.schema import MAX_MAP_ITEMS, AgentWork, Plan, PlanWork
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField
from domain.shared.status import TERMINAL_STATUSES


async def start_plan(
    tx: Tx, caller: Caller, plan: Plan, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Write a pending execution of a plan and ring for it. Errors: `invalid_field`."""
    for field in ("agent_version_id", "max_attempts"):
        if getattr(data, field) is not None:
            raise InvalidField(field, f"is for agents; this is a {plan.kind}.")
    _check_models(plan, data)
    given = build_payload(data)
    _check_lists(plan, given)
    execution = child_executions.build_plan_execution(
        build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, plan.name, given),
        plan,
        data.mode or "safe",
        data.timeout,
    )
    named = {} if data.run_name is None else {"run_name": data.run_name}
    execution = msgspec.structs.replace(
        execution, model=data.model, cost_limit=data.cost_limit, schedule_id=schedule_id, **named
    )
    return await child_executions.add_plan_execution(tx, execution, plan)


async def retry_plan(tx: Tx, caller: Caller, execution_id: str, from_failed: bool) -> Execution:
    """Run an ended plan again as it was then, as a new execution; only what is not completed, `from_failed`.

    A plan within it that failed half-way goes on there as well, if it is asked the same as before.
    Errors: `not_found`, `conflict` for one that has not ended, or has nothing that failed.
    """
    old = await get_execution(tx, execution_id)
    plan = await tx.plans.get(execution_id)
    if old.status not in TERMINAL_STATUSES:
        raise Conflict(f"The execution is {old.status}; only one that has ended can be run again.")
    assert plan is not None, "a plan's execution without a plan"
    if from_failed and old.status == "completed":
        raise Conflict("The execution is completed; none of its steps failed.")
    made = build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, plan.name, old.input_data)
    made = child_executions.build_plan_execution(made, plan, old.mode, old.timeout)
    kept: dict[str, Any] = {name: getattr(old, name) for name in ("model", "cost_limit")}
    if old.run_name != build_run_name(plan.name, old.id):
        kept["run_name"] = old.run_name
    made = msgspec.structs.replace(made, **kept, retry_of=old.id)
    if not from_failed:
        return await child_executions.add_plan_execution(tx, made, plan, create_runs(plan))
    made = await child_executions.add_plan_execution(
        tx, made, plan, await child_executions.load_resumed_runs(tx, old.id, plan)
    )
    # What is kept may have written files, which what is run again reads.
    await tx.workspaces.copy_files(old.root_id or old.id, made.id)
    return made


def _check_lists(plan: Plan, given: dict[str, Any]) -> None:
    """Refuse at once a list that is too long, or none, where the inputs alone tell. Errors: `invalid_field`."""
    # Over all of them: what takes longer than this is left to the run.
    budget = WorkBudget()
    for number, step in enumerate(plan.steps):
        if step.map is not None and renderer.find_map_references(step).names <= {"inputs"}:
            field = f"steps[{number}].map"
            try:
                scope = {"inputs": given}
                found = (
                    expressions.evaluate_expression(step.map, scope, budget) if isinstance(step.map, str) else step.map
                )
            except BadExpression as error:
                if budget.remaining_work < 0:
                    return
                raise InvalidField(field, error.message) from error
            if not isinstance(found, list):
                raise InvalidField(field, "is no list with these inputs.")
            if len(found) > MAX_MAP_ITEMS:
                raise InvalidField(field, f"has {len(found)} items with these inputs; {MAX_MAP_ITEMS} are allowed.")


def _check_models(plan: Plan, data: ExecutionStart) -> None:
    """Refuse what is said of calls of models where there are none. Errors: `invalid_field`."""
    works = list(_works(plan))
    if data.cost_limit is not None and not any(one.spec is not None or one.calls_models for one in works):
        raise InvalidField("cost_limit", f"bounds what calls of models cost; nothing in this {plan.kind} calls one.")
    for field in ("mode", "model"):
        if getattr(data, field) is not None and not any(one.spec is not None for one in works):
            raise InvalidField(field, f"is for model agents; there are none in this {plan.kind}.")


def _works(plan: Plan) -> Iterator[AgentWork]:
    for step in plan.steps:
        if isinstance(step.work, PlanWork):
            yield from _works(step.work.plan)
        elif isinstance(step.work, AgentWork):
            yield step.work
