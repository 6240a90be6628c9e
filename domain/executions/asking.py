"""Finding executions, and cancelling them."""

import msgspec

from domain.access import Caller
from domain.errors import conflict, not_found
from domain.executions.schema import Execution, Filter
from domain.pages import Listing, Page
from domain.ports import Tx
from domain.states import TERMINAL
from domain.times import utc


async def get(tx: Tx, execution_id: str) -> Execution:
    """An execution. Errors: `not_found`."""
    execution = await tx.executions.get(execution_id)
    if execution is None:
        raise not_found("execution", execution_id)
    return execution


def narrowed(caller: Caller, wanted: Filter, *tenants: str | None) -> Filter:
    """The filter with what a tenant filter means: one's own tenant changes nothing, another has no rows.

    Errors: `invalid_field` for a time without an offset.
    """
    times = {field: utc(field, at) for field in ("since", "until") if (at := getattr(wanted, field)) is not None}
    wanted = msgspec.structs.replace(wanted, **times)
    if any(tenant is not None and tenant != caller.tenant_id for tenant in tenants):
        return msgspec.structs.replace(wanted, agent_id="(another tenant)")
    return wanted


async def list_executions(tx: Tx, narrowed: Filter, page: Page) -> Listing[Execution]:
    """Executions, newest first. `agent_id` takes a name too; an unknown agent has no executions."""
    if narrowed.agent_id is not None:
        agent = await tx.agents.find(narrowed.agent_id)
        if agent is not None:
            narrowed = msgspec.structs.replace(narrowed, agent_id=agent.id)
    return await tx.executions.page(narrowed, page)


async def cancel(tx: Tx, execution_id: str, reason: str = "Cancelled on request.") -> Execution:
    """Settle an execution as cancelled; whoever runs it kills it within a second.

    Cancelling a cancelled one is fine. Errors: `not_found`, `conflict` for one that ended otherwise.
    """
    execution = await get(tx, execution_id)
    if execution.status not in TERMINAL and await tx.executions.cancel(execution_id, reason, tx.now):
        tx.changed(execution_id, "cancelled")
    after = await get(tx, execution_id)
    if after.status != "cancelled":
        raise conflict(f"The execution is {after.status}; it cannot be cancelled any more.")
    return after
