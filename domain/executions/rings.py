"""Ring for executions: for their workers, for the plans that they are steps of, and at the gates that they leave."""

from datetime import datetime

from domain.executions.schema import Execution
from domain.ports import Tx
from domain.shared.jobs import Job


def job_from_execution(execution: Execution) -> Job:
    """Build the run job of an execution in its present status."""
    return Job(lane=execution.lane, row_id=execution.id, tenant_id=execution.tenant_id, attempt=execution.attempt)


def ring_plan(tx: Tx, execution: Execution) -> None:
    """Ring for the plan that an execution is, or is a step of: its status has changed."""
    plan_id = execution.parent_id or (execution.id if execution.lane == "plan" else None)
    if plan_id is not None:
        tx.ring_job(Job(lane="plan", row_id=plan_id, tenant_id=execution.tenant_id, attempt=0))


def is_expired(execution: Execution, now: datetime) -> bool:
    """Tell whether an execution has not begun and must not begin any more."""
    return execution.started_at is None and execution.expires_at is not None and execution.expires_at <= now


def note_end(tx: Tx, execution: Execution) -> None:
    """Admit the next runs at the gates of one that has ended, right after the commit."""
    if execution.thread_id is not None or execution.concurrency_key is not None:
        tx.free_gates(execution.id)
