"""Find executions, and cancel them."""

import msgspec
from msgspec import UNSET

from domain.executions.rings import note_end, ring_plan
from domain.executions.schema import Execution, ExecutionFilter
from domain.executions.terms import PatchExecution, build_term_query, replace_terms
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, NotFound
from domain.shared.pages import Listing, Page
from domain.shared.status import TERMINAL_STATUSES
from domain.shared.tags import check_metadata, check_tags


async def get_execution(tx: Tx, execution_id: str) -> Execution:
    """Return an execution. Errors: `not_found`."""
    execution = await tx.executions.get(execution_id)
    if execution is None:
        raise NotFound("execution", execution_id)
    if execution.lane == "plan":
        execution.results = await tx.plans.get_step_outputs(execution_id)
    return execution


def apply_tenant_filter(caller: Caller, filters: ExecutionFilter, *tenants: str | None) -> ExecutionFilter:
    """Apply filters by tenant: the caller's own tenant changes nothing, another one has no executions."""
    if any(tenant is not None and tenant != caller.tenant_id for tenant in tenants):
        return msgspec.structs.replace(filters, agent_id="(another tenant)")
    return filters


async def list_executions(tx: Tx, filters: ExecutionFilter, page: Page) -> Listing[Execution]:
    """List executions, newest first. Agents, crews and workflows may be named; an unknown one has no executions.

    Errors: `invalid_field` for a tag, a member of the metadata or a search.
    """
    return await tx.executions.list_page(await resolve_filter(tx, filters), page)


async def resolve_filter(tx: Tx, filters: ExecutionFilter) -> ExecutionFilter:
    """Return a filter with ids for names, and with the terms that it asks for. Errors: `invalid_field`."""
    filters = msgspec.structs.replace(filters, terms=build_term_query(filters))
    for field, repository in (
        ("agent_id", tx.agents),
        ("crew_id", tx.crews),
        ("workflow_id", tx.workflows),
        ("schedule_id", tx.schedules),
    ):
        reference = getattr(filters, field)
        owner = None if reference is None else await repository.find(reference)
        if owner is not None:
            filters = msgspec.structs.replace(filters, **{field: owner.id})
    return filters


async def patch_execution(tx: Tx, execution_id: str, data: PatchExecution) -> Execution:
    """Change what an execution is found by. Errors: `not_found`, `invalid_field`; `conflict` for a step."""
    execution = await tx.executions.lock_execution(execution_id)
    if execution is None:
        raise NotFound("execution", execution_id)
    if execution.parent_id is not None:
        raise Conflict(f"The execution is a step of {execution.root_id}. Change that one.")
    if data.run_name is not UNSET:
        execution.run_name = data.run_name
    if data.tags is not UNSET:
        execution.tags = check_tags(data.tags or [])
    if data.metadata is not UNSET:
        execution.metadata = check_metadata(data.metadata)
    await tx.executions.save_labels(execution, tx.now)
    await replace_terms(tx, execution_id)
    return await get_execution(tx, execution_id)


async def cancel_child_executions(tx: Tx, execution_id: str, reason: str) -> None:
    """Cancel the steps of a plan that run or wait; does nothing for other executions."""
    for child_id in await tx.executions.cancel_children(execution_id, reason, tx.now):
        tx.announce_status(child_id, "cancelled")


async def cancel_execution(tx: Tx, execution_id: str, reason: str = "Cancelled on request.") -> Execution:
    """Settle an execution as cancelled; the worker that runs it kills it within a second.

    Cancelling a cancelled one again succeeds. Errors: `not_found`, `conflict` for one that ended otherwise.
    """
    execution = await get_execution(tx, execution_id)
    if execution.status not in TERMINAL_STATUSES:
        # Children first: a worker that settles a run locks it before its parent.
        await cancel_child_executions(tx, execution_id, reason)
        if await tx.executions.cancel_execution(execution_id, reason, tx.now):
            tx.announce_status(execution_id, "cancelled")
            note_end(tx, execution)
            ring_plan(tx, execution)
    after = await get_execution(tx, execution_id)
    if after.status != "cancelled":
        raise Conflict(f"The execution is {after.status}; it can no longer be cancelled.")
    return after
