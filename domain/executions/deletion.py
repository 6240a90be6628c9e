"""Delete executions, with everything that names them."""

from domain.ports import Tx
from domain.shared.errors import Conflict, NotFound
from domain.shared.jobs import Job
from domain.shared.status import TERMINAL_STATUSES


async def delete_execution(tx: Tx, execution_id: str) -> None:
    """Delete an ended execution with its steps: their events, files, artifacts, evaluations and traces.

    Their costs stay in the sums, and no longer name them.
    Errors: `not_found`; `conflict` for one that has not ended, that is a step, or whose last calls are being billed.
    """
    execution = await tx.executions.lock_execution(execution_id)
    if execution is None:
        raise NotFound("execution", execution_id)
    if execution.parent_id is not None:
        raise Conflict(f"The execution is a step of {execution.root_id}. Delete that one.")
    members = await tx.retention.lock_members(execution_id)
    status = next((member.status for member in members if member.status not in TERMINAL_STATUSES), None)
    if status is not None:
        raise Conflict(f"The execution is {status}; only one that has ended can be deleted. Cancel it first.")
    if any(member.is_billed for member in members):
        raise Conflict("The execution's last calls of models are being billed. Delete it in a few seconds.")
    member_ids = [member.id for member in members]
    records = await tx.retention.list_records(member_ids)
    await tx.evaluations.delete_many(records.evaluation_ids)
    await tx.artifacts.delete(records.artifact_ids, tx.now)
    await tx.retention.erase_executions(member_ids, tx.now)
    tx.announce_status(execution_id, "deleted")
    tx.ring_job(Job(lane="record", row_id=execution_id, tenant_id="", attempt=0))
