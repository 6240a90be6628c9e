"""Start agents, crews and workflows, and start ended executions again."""

import msgspec

from domain import crews, executions, files, plans, threads, workflows, workspaces
from domain.executions import Execution, ExecutionStart, TargetedExecutionStart, get_execution
from domain.plans import Plan
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import InvalidField


async def start_target(
    tx: Tx, caller: Caller, data: TargetedExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Start the one target of `agent_id`, `crew_id` and `workflow_id`. Errors: those of each, `invalid_field`."""
    targets = [field for field in ("agent_id", "crew_id", "workflow_id") if getattr(data, field) is not None]
    if len(targets) != 1:
        raise InvalidField(targets[1] if targets else "agent_id", "send one of agent_id, crew_id and workflow_id.")
    if data.crew_id is not None:
        return await start_crew(tx, caller, data.crew_id, data, schedule_id)
    if data.workflow_id is not None:
        return await start_workflow(tx, caller, data.workflow_id, data, schedule_id)
    return await start_agent(tx, caller, data.agent_id or "", data, schedule_id)


async def start_agent(
    tx: Tx, caller: Caller, reference: str, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Start an agent with the files that the run is given. Errors: `missing_scope`, and those of both."""
    files.require_file_access(caller, data.files)
    data = await threads.prepare_start(tx, caller, data)
    execution = await executions.start_execution(tx, caller, reference, data, schedule_id)
    return await _give_files(tx, execution)


async def start_crew(
    tx: Tx, caller: Caller, reference: str, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Start a crew. Errors: `missing_scope`, `not_found`, `invalid_field`, `conflict`."""
    files.require_file_access(caller, data.files)
    data = await threads.prepare_start(tx, caller, data)
    crew = await crews.get_crew(tx, reference, lock="share")
    plan = await crews.compile_crew(tx, caller, crew, data.model)
    data = _add_plan_files(caller, plan, data)
    crews.validate_inputs(crew, plan, executions.build_payload(data))
    return await _give_files(tx, await plans.start_plan(tx, caller, plan, data, schedule_id))


async def start_workflow(
    tx: Tx, caller: Caller, reference: str, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Start a workflow. Errors: `missing_scope`, `not_found`, `invalid_field`, `conflict`."""
    files.require_file_access(caller, data.files)
    data = await threads.prepare_start(tx, caller, data)
    workflow = await workflows.get_workflow(tx, reference)
    plan = await workflows.compile_workflow(tx, caller, workflow, data.model)
    data = _add_plan_files(caller, plan, data)
    payload = workflows.resolve_inputs(workflow.inputs, executions.build_payload(data))
    data = msgspec.structs.replace(data, payload=payload, inputs=None, task=None)
    return await _give_files(tx, await plans.start_plan(tx, caller, plan, data, schedule_id))


def _add_plan_files(caller: Caller, plan: Plan, data: ExecutionStart) -> ExecutionStart:
    """Return a start with the files that tasks of the plan name. Errors: `missing_scope`, `invalid_field`."""
    run_files = crews.collect_run_files(plan, data.files)
    files.require_file_access(caller, run_files)
    return msgspec.structs.replace(data, files=run_files) if run_files else data


async def retry_execution(tx: Tx, caller: Caller, execution_id: str, from_failed: bool) -> Execution:
    """Run an ended execution again as it was; `from_failed` keeps the completed steps of a plan.

    It gets the files of that execution, which takes no scope to read uploaded ones.

    Errors: `not_found`, `conflict`, and those of starting it.
    """
    old = await get_execution(tx, execution_id)
    if old.thread_id is not None:
        await threads.lock_thread_for_retry(tx, old.thread_id)
    if old.lane == "plan":
        execution = await plans.retry_plan(tx, caller, execution_id, from_failed)
        # A run that goes on has the files of the one before, with what was made of them.
        return execution if from_failed else await _give_files(tx, execution, old)
    if from_failed:
        raise InvalidField("from", "is for crews and workflows; an agent always runs again as a whole.")
    return await _give_files(tx, await executions.retry_execution(tx, caller, execution_id), old)


async def _give_files(tx: Tx, execution: Execution, repeated: Execution | None = None) -> Execution:
    """Put the files that an execution names into its workspace. Errors: `invalid_field`."""
    limits = workspaces.TOOL_LIMITS if execution.lane == "llm" else workspaces.RUN_LIMITS
    await files.give_files(tx, execution, limits, repeated)
    return execution
