"""Workflows: what a tenant keeps, to be started."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidFields, NotFound
from domain.shared.pages import Listing, Page
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


async def create_workflow(tx: Tx, caller: Caller, sent: ParsedBody[NewWorkflow]) -> Workflow:
    """Keep a workflow. Errors: `conflict` for a taken name, `invalid_field` with all that is wrong with it."""
    data = sent.data
    with sent.add_line_numbers():
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
            steps_total=len(data.steps),
            tenant_id=caller.tenant_id,
            user_id=caller.user_id,
            created_at=tx.now,
            updated_at=tx.now,
        )
        if not await tx.workflows.add(workflow):
            raise names.NameTaken("workflow", workflow.name)
        await _check(tx, caller, workflow)
    return workflow


async def _check(tx: Tx, caller: Caller, workflow: Workflow) -> None:
    """Refuse a workflow that could never be run. It is written down already, so that others lead to it as it is."""
    found = await validate_workflow(tx, caller, workflow)
    if found:
        raise InvalidFields(found)


async def get_workflow(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Workflow:
    """A workflow by id or name. Errors: `not_found`."""
    workflow = await tx.workflows.find(reference, lock)
    if workflow is None:
        raise NotFound("workflow", reference)
    return workflow


async def list_workflows(tx: Tx, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]:
    """The tenant's workflows, newest first."""
    return await tx.workflows.list_page(page, status)


async def update_workflow(tx: Tx, caller: Caller, reference: str, sent: ParsedBody[PatchWorkflow]) -> Workflow:
    """Change what was sent, and check the whole anew. Executions that are under way keep the plan they have.

    Errors: `not_found`, `conflict` for a taken name, `invalid_field`.
    """
    with sent.add_line_numbers():
        await tx.workflows.lock_writes()
        workflow = await get_workflow(tx, reference, lock=True)
        changed: dict[str, Any] = {
            field: value
            for field in PatchWorkflow.__struct_fields__
            if (value := getattr(sent.data, field)) is not UNSET
        }
        if "name" in changed:
            names.check_name(changed["name"], "wf", RESERVED_WORKFLOW_NAMES)
        workflow = msgspec.structs.replace(workflow, **changed, updated_at=tx.now)
        workflow.steps_total = len(workflow.steps)
        if not await tx.workflows.save(workflow):
            raise names.NameTaken("workflow", workflow.name)
        # What is only put away or described anew may name what is gone.
        if changed.keys() - {"status", "description"}:
            await _check(tx, caller, workflow)
    return workflow


async def delete_workflow(tx: Tx, reference: str) -> None:
    """Remove a workflow. Its executions go on, and stay on record.

    Errors: `not_found`, `conflict` while a schedule starts it.
    """
    await tx.workflows.lock_writes()
    workflow = await get_workflow(tx, reference, lock=True)
    starting = await tx.schedules.list_names_by_target("workflow", workflow.id)
    if starting:
        raise Conflict(f"The schedule {starting[0]!r} starts this workflow; delete that first.")
    await tx.workflows.delete(workflow.id)
