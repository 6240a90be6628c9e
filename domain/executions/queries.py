"""Finding executions, and cancelling them."""

import msgspec

from domain.executions.schema import Execution, ExecutionFilter, ring_plan
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, NotFound
from domain.shared.pages import Listing, Page
from domain.shared.status import TERMINAL_STATUSES


async def get_execution(tx: Tx, execution_id: str) -> Execution:
    """An execution. Errors: `not_found`."""
    execution = await tx.executions.get(execution_id)
    if execution is None:
        raise NotFound("execution", execution_id)
    if execution.lane == "plan":
        execution.results = await tx.plans.get_step_outputs(execution_id)
    return execution


def apply_tenant_filter(caller: Caller, wanted: ExecutionFilter, *tenants: str | None) -> ExecutionFilter:
    """The filter with what a tenant filter means: one's own tenant changes nothing, another has no rows."""
    if any(tenant is not None and tenant != caller.tenant_id for tenant in tenants):
        return msgspec.structs.replace(wanted, agent_id="(another tenant)")
    return wanted


async def list_executions(tx: Tx, narrowed: ExecutionFilter, page: Page) -> Listing[Execution]:
    """Executions, newest first. Agents, crews and workflows may be named; an unknown one has no executions."""
    for field, known in (
        ("agent_id", tx.agents),
        ("crew_id", tx.crews),
        ("workflow_id", tx.workflows),
        ("schedule_id", tx.schedules),
    ):
        reference = getattr(narrowed, field)
        found = None if reference is None else await known.find(reference)
        if found is not None:
            narrowed = msgspec.structs.replace(narrowed, **{field: found.id})
    return await tx.executions.list_page(narrowed, page)


async def cancel_child_executions(tx: Tx, execution_id: str, reason: str) -> None:
    """Cancel what runs or waits of the steps of a plan; nothing for other executions."""
    for cancelled in await tx.executions.cancel_children(execution_id, reason, tx.now):
        tx.announce_status(cancelled, "cancelled")


async def cancel_execution(tx: Tx, execution_id: str, reason: str = "Cancelled on request.") -> Execution:
    """Settle an execution as cancelled; whoever runs it kills it within a second.

    Cancelling a cancelled one is fine. Errors: `not_found`, `conflict` for one that ended otherwise.
    """
    execution = await get_execution(tx, execution_id)
    if execution.status not in TERMINAL_STATUSES:
        # Whoever settles a run locks it before what it belongs to.
        await cancel_child_executions(tx, execution_id, reason)
        if await tx.executions.cancel_execution(execution_id, reason, tx.now):
            tx.announce_status(execution_id, "cancelled")
            ring_plan(tx, execution)
    after = await get_execution(tx, execution_id)
    if after.status != "cancelled":
        raise Conflict(f"The execution is {after.status}; it cannot be cancelled any more.")
    return after
