"""Steps of a plan as executions: each is a child of the plan's own."""

from typing import Any

import msgspec

from domain.agents import AgentSpec
from domain.agents.prompts import build_messages
from domain.executions.schema import (
    DEFAULT_TIMEOUT_SECONDS,
    MODEL_AGENT_TIMEOUT_SECONDS,
    Execution,
    job_from_execution,
)
from domain.executions.service import TOOL_CALL_TIMEOUT_SECONDS, add_execution, build_execution
from domain.plans.engine import PlanState, StepFailed, create_runs, resume_runs
from domain.plans.schema import PLAN_TIMEOUT_SECONDS, WHOLE_STEP, AgentWork, Plan, PlanStep, PlanWork, StepRun, ToolWork
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json_value


def format_step_label(run: StepRun) -> str:
    """`review`, or `review[3]` for an item."""
    return run.step if run.item == WHOLE_STEP else f"{run.step}[{run.item}]"


def qualify_call_id(execution_id: str, call_id: str) -> str:
    """The id of a call that waits in an execution, where others of its id wait elsewhere."""
    return f"{execution_id}:{call_id.removeprefix(f'{execution_id}:')}"


async def start_child(
    tx: Tx,
    parent: Execution,
    plan: Plan,
    step: PlanStep,
    run: StepRun,
    payload: dict[str, Any],
    spec: AgentSpec | None,
    before: str | None = None,
) -> Execution:
    """Write the execution of a step that starts now, and ring for it. A plan goes on where the one `before` failed.

    Errors: `StepFailed`.
    """
    try:
        check_json_value(payload)
    except JsonTooLarge as error:
        raise StepFailed("not_startable", f"What the step is given {error.reason}") from None
    work = step.work
    child = build_execution(
        tx, parent.tenant_id, parent.user_id, parent.key_id, _named(work), _given(parent, work, payload)
    )
    child = msgspec.structs.replace(
        child,
        parent_id=parent.id,
        root_id=parent.root_id or parent.id,
        step=format_step_label(run),
        crew_id=parent.crew_id,
        workflow_id=parent.workflow_id,
        schedule_id=parent.schedule_id,
        cost_limit=parent.cost_limit,
    )
    if isinstance(work, AgentWork):
        return await _agent(tx, parent, plan, step, work, child, spec)
    if isinstance(work, ToolWork):
        timeout = step.timeout or TOOL_CALL_TIMEOUT_SECONDS
        made = msgspec.structs.replace(child, kind="tool", lane="llm", mode="yolo", timeout=timeout, max_attempts=1)
        return await add_execution(tx, made, None)
    made = build_plan_execution(child, work.plan, parent.mode, step.timeout)
    old = None if before is None else await tx.executions.get(before)
    # What it was asked may be something else by now.
    if old is None or old.lane != "plan" or old.input_data != payload:
        return await add_plan_execution(tx, made, work.plan)
    made = msgspec.structs.replace(made, retry_of=old.id)
    return await add_plan_execution(tx, made, work.plan, await load_resumed_runs(tx, old.id, work.plan))


async def load_resumed_runs(tx: Tx, execution_id: str, plan: Plan) -> list[StepRun]:
    """The steps of an ended plan as they are run again from where it failed."""
    board = PlanState(plan, await tx.plans.list_runs(execution_id))
    for one in await tx.plans.list_progress(execution_id):
        # Nobody may have taken it in yet when a plan is cancelled.
        if one.status == "completed":
            board.end_try((one.step, one.item), None, None, tx.now)
    return resume_runs(plan, board.runs.values())


def build_plan_execution(execution: Execution, plan: Plan, mode: Any, timeout: int | None) -> Execution:
    """An execution as one of a plan."""
    return msgspec.structs.replace(
        execution,
        kind=plan.kind,
        lane="plan",
        crew_id=plan.crew_id or execution.crew_id,
        workflow_id=execution.workflow_id or plan.workflow_id,
        mode=mode,
        timeout=timeout or PLAN_TIMEOUT_SECONDS,
        max_attempts=1,
        steps_total=len(plan.steps),
    )


async def add_plan_execution(tx: Tx, execution: Execution, plan: Plan, runs: list[StepRun] | None = None) -> Execution:
    """Write the execution of a plan, and the plan with it, and ring for it."""
    await tx.executions.add(execution, None)
    await tx.plans.add(execution.id, plan, create_runs(plan) if runs is None else runs)
    tx.ring_job(job_from_execution(execution))
    return execution


async def _agent(
    tx: Tx, parent: Execution, plan: Plan, step: PlanStep, work: AgentWork, child: Execution, spec: AgentSpec | None
) -> Execution:
    if spec is None:
        timeout = step.timeout or work.timeout or DEFAULT_TIMEOUT_SECONDS
        made = msgspec.structs.replace(
            child,
            agent_id=work.agent_id,
            agent_name=work.name,
            agent_version_id=work.version_id,
            timeout=timeout,
            cost_limit=parent.cost_limit if work.calls_models else None,
        )
        return await add_execution(tx, made, None)
    if not child.input_data:
        raise StepFailed("not_startable", f"The agent {work.name!r} is asked nothing: the step has no prompt.")
    try:
        build_messages(spec, child.input_data)
    except DomainError as error:
        raise StepFailed("not_startable", error.detail) from error
    made = msgspec.structs.replace(
        child,
        agent_id=work.agent_id,
        agent_name=work.name,
        lane="llm",
        mode=parent.mode or "safe",
        model=spec.model,
        timeout=step.timeout or spec.timeout or MODEL_AGENT_TIMEOUT_SECONDS,
    )
    return await add_execution(
        tx, made, msgspec.structs.replace(spec, max_rpm=plan.max_rpm, output_file=spec.output_file or step.output_file)
    )


def _named(work: AgentWork | ToolWork | PlanWork) -> str:
    return work.plan.name if isinstance(work, PlanWork) else work.name


def _given(parent: Execution, work: AgentWork | ToolWork | PlanWork, payload: dict[str, Any]) -> dict[str, Any]:
    if isinstance(work, ToolWork):
        # The files of all that belongs to one run lie together.
        return {"tool": work.tool, "args": payload, "execution_id": parent.root_id or parent.id}
    return payload
