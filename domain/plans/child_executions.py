"""Start the steps of a plan: each runs as a child execution of the plan's execution."""

from typing import Any

import msgspec

from domain import schemas
from domain.agents import AgentSpec, build_messages
from domain.executions import (
    DEFAULT_TIMEOUT_SECONDS,
    MODEL_AGENT_TIMEOUT_SECONDS,
    TOOL_CALL_TIMEOUT_SECONDS,
    Execution,
    ExecutionMode,
    add_at_gates,
    add_execution,
    add_label_terms,
    build_execution,
    job_from_execution,
)
from domain.plans.engine import PlanState, StepFailed, create_runs, resume_runs
from domain.plans.schema import (
    PLAN_TIMEOUT_SECONDS,
    AgentWork,
    Plan,
    PlanStep,
    PlanWork,
    StepRun,
    ToolWork,
    format_step_label,
)
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json_value


class ChildStart(msgspec.Struct, kw_only=True, frozen=True):
    """Describe the child to start for a step of `parent`: its `payload`, and the `spec` of a model agent.

    A plan within the plan resumes the failed execution `resumed_id`, if it has one.
    """

    parent: Execution
    plan: Plan
    step: PlanStep
    run: StepRun
    payload: dict[str, Any]
    spec: AgentSpec | None
    resumed_id: str | None = None


def prefix_call_id(execution_id: str, call_id: str) -> str:
    """Return a call id that is unique among the executions of a plan."""
    return f"{execution_id}:{call_id.removeprefix(f'{execution_id}:')}"


async def start_child(tx: Tx, start: ChildStart) -> Execution:
    """Add the pending execution of a step and ring its lane. Errors: `StepFailed`."""
    try:
        check_json_value(start.payload)
    except JsonTooLarge as error:
        raise StepFailed("not_startable", f"The input of the step {error.reason}") from None
    work, child = start.step.work, _build_child(tx, start)
    if isinstance(work, AgentWork):
        await _check_input(start, work)
        if start.spec is None:
            return await add_execution(tx, _build_code_child(start, work, child), None)
        return await _add_model_child(tx, start, work, child, start.spec)
    if isinstance(work, ToolWork):
        timeout = start.step.timeout or TOOL_CALL_TIMEOUT_SECONDS
        child = msgspec.structs.replace(child, kind="tool", lane="llm", mode="yolo", timeout=timeout, max_attempts=1)
        return await add_execution(tx, child, None)
    return await _add_plan_child(tx, start, work.plan, child)


async def _check_input(start: ChildStart, work: AgentWork) -> None:
    """Check the input of a step against its agent's schema. Errors: `StepFailed` (`input_invalid`)."""
    schema = work.input_schema if start.spec is None else start.spec.input_schema
    if schema is None:
        return
    errors = await schemas.list_value_errors(schema, start.payload, "payload", start.parent.tenant_id)
    if errors:
        raise StepFailed("input_invalid", f"The input of the step breaks its schema. {schemas.describe_errors(errors)}")


def _build_child(tx: Tx, start: ChildStart) -> Execution:
    parent, work, payload = start.parent, start.step.work, start.payload
    if isinstance(work, ToolWork):
        # All executions of a run share the workspace of its root.
        payload = {"tool": work.tool, "args": payload, "execution_id": parent.root_id or parent.id}
    name = work.plan.name if isinstance(work, PlanWork) else work.name
    return msgspec.structs.replace(
        build_execution(tx, parent.tenant_id, parent.user_id, parent.key_id, name, payload),
        parent_id=parent.id,
        root_id=parent.root_id or parent.id,
        step=format_step_label(start.run.step, start.run.item),
        crew_id=parent.crew_id,
        workflow_id=parent.workflow_id,
        schedule_id=parent.schedule_id,
        cost_limit=parent.cost_limit,
        priority=parent.priority,
    )


def _build_code_child(start: ChildStart, work: AgentWork, child: Execution) -> Execution:
    return msgspec.structs.replace(
        child,
        agent_id=work.agent_id,
        agent_name=work.name,
        agent_version_id=work.version_id,
        state=start.parent.state,
        env=work.env,
        output_schema=work.output_schema,
        timeout=start.step.timeout or work.timeout or DEFAULT_TIMEOUT_SECONDS,
        cost_limit=start.parent.cost_limit if work.calls_models else None,
    )


async def _add_model_child(tx: Tx, start: ChildStart, work: AgentWork, child: Execution, spec: AgentSpec) -> Execution:
    if not child.input_data:
        message = f"The agent {work.name!r} has nothing to do: the step has no prompt and no inputs."
        raise StepFailed("not_startable", message)
    try:
        build_messages(spec, child.input_data)
    except DomainError as error:
        raise StepFailed("not_startable", error.detail) from error
    child = msgspec.structs.replace(
        child,
        agent_id=work.agent_id,
        agent_name=work.name,
        lane="llm",
        mode=start.parent.mode or "safe",
        model=spec.model,
        timeout=start.step.timeout or spec.timeout or MODEL_AGENT_TIMEOUT_SECONDS,
    )
    output_file = spec.output_file or start.step.output_file
    spec = msgspec.structs.replace(spec, max_rpm=start.plan.max_rpm, output_file=output_file)
    return await add_execution(tx, child, spec)


async def _add_plan_child(tx: Tx, start: ChildStart, plan: Plan, child: Execution) -> Execution:
    child = build_plan_execution(child, plan, start.parent.mode, start.step.timeout)
    child = msgspec.structs.replace(child, state=start.parent.state)
    old = None if start.resumed_id is None else await tx.executions.get(start.resumed_id)
    # With another input the old results are of no use.
    if old is None or old.lane != "plan" or old.input_data != start.payload:
        return await add_plan_execution(tx, child, plan)
    child = msgspec.structs.replace(child, retry_of=old.id)
    return await add_plan_execution(tx, child, plan, await load_resumed_runs(tx, old.id, plan))


async def load_resumed_runs(tx: Tx, execution_id: str, plan: Plan) -> list[StepRun]:
    """Return the runs with which an ended plan continues from its failure."""
    state = PlanState(plan, await tx.plans.list_runs(execution_id))
    for child in await tx.plans.list_progress(execution_id):
        # A plan that was cancelled may not have taken in its last results.
        if child.status == "completed":
            state.end_try((child.step, child.item), None, None, tx.now)
    return resume_runs(plan, state.runs.values())


def build_plan_execution(
    execution: Execution, plan: Plan, mode: ExecutionMode | None, timeout: int | None
) -> Execution:
    """Return an execution as one of a plan."""
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
    """Add the execution of a plan with the plan, and ring the plan lane."""
    execution = await add_at_gates(tx, execution)
    await add_label_terms(tx, execution)
    is_blocked = execution.blocked is not None
    await tx.plans.add(execution.id, plan, create_runs(plan) if runs is None else runs, is_blocked)
    if not is_blocked:
        tx.ring_job(job_from_execution(execution))
    return execution
