"""Claim executions for workers, and begin, log, settle and release them."""

from datetime import datetime, timedelta

import msgspec

from domain import events
from domain.events import ExecutionEvent
from domain.executions.lanes import WHOLE_LANE, LaneShare
from domain.executions.rings import job_from_execution, note_end, ring_plan
from domain.executions.schema import (
    THREAD_UNCHANGED,
    AttemptOutcome,
    Execution,
    ExecutionSettlement,
    status_from_outcome,
)
from domain.ports import SandboxOutcome, Tx
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.leases import Lease, LostLease


async def claim_executions(
    tx: Tx,
    worker_id: str,
    duration: timedelta,
    slots: int,
    local_versions: frozenset[str] = frozenset(),
    share: LaneShare = WHOLE_LANE,
) -> list[Execution]:
    """Claim up to `slots` pending executions over all tenants, fairly and within the limits of agents and tenants.

    An execution is `running` at once if it is of a model agent, or if its version is among the `local_versions` of the
    worker's machine, else `preparing`. `share` names the lane, and bounds every tenant's running executions besides
    its own limit.
    """
    lease = Lease(worker_id=worker_id, claimed_at=tx.now, expires_at=tx.now + duration)
    claimed = await tx.executions.claim_pending(lease, slots, local_versions, share)
    for execution in claimed:
        tx.announce_status(execution.id, execution.status)
    return claimed


async def begin_running(tx: Tx, execution: Execution) -> None:
    """Mark an execution as running, now that its version is on the worker's machine. Errors: `LostLease`."""
    if not await tx.executions.begin_running(execution.id, execution.attempt, tx.now):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "running")


async def append_agent_events(tx: Tx, execution: Execution, written: list[ExecutionEvent]) -> None:
    """Append events to the log of an execution whose lease this attempt holds. Errors: `LostLease`."""
    if not await tx.events.append_if_leased(execution.id, execution.attempt, written):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "running")


def enforce_result_limits(outcome: SandboxOutcome) -> SandboxOutcome:
    """Return the outcome, or the error `result_not_json` where its result exceeds the limits of JSON."""
    try:
        if outcome.output is not None:
            check_json(outcome.output)
    except JsonTooLarge as error:
        return SandboxOutcome(error_type="result_not_json", error_message=f"The result {error.reason}")
    return outcome


async def settle_executions(tx: Tx, outcomes: list[AttemptOutcome]) -> ExecutionSettlement:
    """Settle executions of any tenants with the outcomes of their attempts."""
    prepared = [_prepare_outcome(outcome, tx.now) for outcome in outcomes]
    settlement = await tx.executions.settle_attempts(prepared, tx.now)
    for attempt in prepared:
        if (attempt.execution.id, attempt.execution.attempt) in settlement.settled_attempts:
            tx.announce_status(attempt.execution.id, status_from_outcome(attempt.outcome))
            ring_plan(tx, attempt.execution)
            note_end(tx, attempt.execution)
    return settlement


def _prepare_outcome(attempt: AttemptOutcome, now: datetime) -> AttemptOutcome:
    """Return an outcome within the limits, with its traceback as the last event of the log."""
    outcome = enforce_result_limits(attempt.outcome)
    if outcome.error_type is not None and attempt.execution.thread_id is not None:
        message = f"{outcome.error_message or ''}{THREAD_UNCHANGED}".strip()
        outcome = msgspec.structs.replace(outcome, error_message=message)
    if not outcome.stack:
        return msgspec.structs.replace(attempt, outcome=outcome)
    traceback = events.build_log_event("ERROR", outcome.stack, now, "traceback")
    return msgspec.structs.replace(attempt, outcome=outcome, events=[*attempt.events, traceback])


async def hand_over_execution(tx: Tx, execution: Execution) -> None:
    """Return a leased execution to the queue because its worker stops. The attempt does not count."""
    _announce_release(tx, await tx.executions.hand_over_execution(execution.id, execution.attempt, tx.now))


async def release_execution(tx: Tx, execution: Execution) -> None:
    """Return a leased execution to the queue after its sandbox was lost. The attempt counts: it may be the cause."""
    _announce_release(tx, await tx.executions.release_execution(execution.id, execution.attempt, tx.now))


async def requeue_expired(tx: Tx, execution_id: str) -> None:
    """Return the execution of an expired lease to the queue, or fail it when its attempts are used up."""
    _announce_release(tx, await tx.executions.requeue_expired(execution_id, tx.now))


def _announce_release(tx: Tx, released: Execution | None) -> None:
    if released is None:
        return
    if released.status == "pending":
        tx.ring_job(job_from_execution(released))
    else:
        note_end(tx, released)
    ring_plan(tx, released)
    tx.announce_status(released.id, released.status)
