"""Create, list, change and delete workflows."""

from typing import Literal

import msgspec

from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidFields, require_found
from domain.shared.exposure import read_exposure
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields
from domain.workflows.compiler import validate_workflow
from domain.workflows.parser import ParsedBody
from domain.workflows.schema import (
    MAX_WORKFLOWS,
    RESERVED_WORKFLOW_NAMES,
    NewWorkflow,
    PatchWorkflow,
    Workflow,
    WorkflowStatus,
    WorkflowSummary,
)


async def create_workflow(tx: Tx, caller: Caller, body: ParsedBody[NewWorkflow]) -> Workflow:
    """Create a workflow. Errors: `conflict` for a taken name, `invalid_field` with everything that is wrong."""
    data = body.data
    with body.add_line_numbers():
        await tx.workflows.lock_writes()
        if await tx.workflows.count() >= MAX_WORKFLOWS:
            raise Conflict(f"A tenant has at most {MAX_WORKFLOWS} workflows.")
        workflow = Workflow(
            id=ids.generate_id("wf"),
            name=names.check_name(data.name, "wf", RESERVED_WORKFLOW_NAMES),
            description=data.description,
            status=data.status,
            inputs=data.inputs,
            steps=data.steps,
            outputs=data.outputs,
            output_schema=data.output_schema,
            steps_total=len(data.steps),
            expose=read_exposure(data.expose),
            tenant_id=caller.tenant_id,
            user_id=caller.user_id,
            created_at=tx.now,
            updated_at=tx.now,
        )
        if not await tx.workflows.add(workflow):
            raise names.NameTaken("workflow", workflow.name)
        await _refuse_invalid(tx, caller, workflow)
    return workflow


async def _refuse_invalid(tx: Tx, caller: Caller, workflow: Workflow) -> None:
    """Refuse a workflow that can never run. It is saved already, so that cycles through other workflows are found."""
    errors = await validate_workflow(tx, caller, workflow)
    if errors:
        raise InvalidFields(errors)


async def get_workflow(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Workflow:
    """Return a workflow by id or name. Errors: `not_found`."""
    return require_found("workflow", reference, await tx.workflows.find(reference, lock))


async def list_workflows(tx: Tx, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]:
    """Return the tenant's workflows, newest first."""
    return await tx.workflows.list_page(page, status)


async def update_workflow(tx: Tx, caller: Caller, reference: str, body: ParsedBody[PatchWorkflow]) -> Workflow:
    """Change the fields that were sent, and validate the result. Running executions keep their plans.

    Errors: `not_found`, `conflict` for a taken name, `invalid_field`.
    """
    with body.add_line_numbers():
        await tx.workflows.lock_writes()
        workflow = await get_workflow(tx, reference, lock=True)
        changed = collect_sent_fields(body.data)
        if "expose" in changed:
            changed["expose"] = read_exposure(changed["expose"])
        if "name" in changed:
            names.check_name(changed["name"], "wf", RESERVED_WORKFLOW_NAMES)
        workflow = msgspec.structs.replace(workflow, **changed, updated_at=tx.now)
        workflow.steps_total = len(workflow.steps)
        if not await tx.workflows.save(workflow):
            raise names.NameTaken("workflow", workflow.name)
        # Archiving or describing a workflow is allowed even if it refers to something that was deleted.
        if changed.keys() - {"status", "description", "expose"}:
            await _refuse_invalid(tx, caller, workflow)
    return workflow


async def delete_workflow(tx: Tx, reference: str) -> None:
    """Delete a workflow. Its executions continue, and stay on record.

    Errors: `not_found`, `conflict` while a schedule uses it.
    """
    await tx.workflows.lock_writes()
    workflow = await get_workflow(tx, reference, lock=True)
    schedule_names = await tx.schedules.list_names_by_target("workflow", workflow.id)
    if schedule_names:
        raise Conflict(f"The schedule {schedule_names[0]!r} uses this workflow; delete it first.")
    await tx.workflows.delete(workflow.id)
