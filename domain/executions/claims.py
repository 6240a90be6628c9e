"""What workers do with executions: claim, begin, record, settle, give back."""

from datetime import datetime, timedelta

import msgspec

from domain import events
from domain.events import ExecutionEvent
from domain.executions.schema import (
    WHOLE_LANE,
    AttemptOutcome,
    Execution,
    ExecutionSettlement,
    LaneShare,
    RunLane,
    job_from_execution,
    ring_plan,
    status_from_outcome,
)
from domain.ports import SandboxOutcome, Tx
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.leases import Lease, LostLease


async def claim_executions(
    tx: Tx,
    worker: str,
    lease: timedelta,
    slots: int,
    at_hand: frozenset[str] = frozenset(),
    share: LaneShare = WHOLE_LANE,
    lane: RunLane = "run",
) -> list[Execution]:
    """Take up to `slots` pending executions over all tenants, fairly and within the limits of agents and tenants.

    One is `running` at once if it is of a model agent, or if its version is among those `at_hand` on the worker's
    machine, else `preparing`. `share` bounds every tenant's running executions, besides its own limit.
    """
    held = Lease(worker_id=worker, claimed_at=tx.now, expires_at=tx.now + lease)
    taken = await tx.executions.claim_pending(held, slots, at_hand, share, lane)
    for execution in taken:
        tx.announce_status(execution.id, execution.status)
    return taken


async def begin_running(tx: Tx, execution: Execution) -> None:
    """The version lies ready on this machine; the agent starts now. Errors: `LostLease`."""
    if not await tx.executions.begin_running(execution.id, execution.attempt, tx.now):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "running")


async def append_agent_events(tx: Tx, execution: Execution, written: list[ExecutionEvent]) -> None:
    """Append what the agent wrote to the log of an execution held by this attempt. Errors: `LostLease`."""
    if not await tx.events.append_if_leased(execution.id, execution.attempt, written):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "running")


def enforce_result_limits(outcome: SandboxOutcome) -> SandboxOutcome:
    """Return an outcome that can be kept: a result that is beyond the bounds of JSON is none."""
    try:
        if outcome.output is not None:
            check_json(outcome.output)
    except JsonTooLarge as error:
        return SandboxOutcome(error_type="result_not_json", error_message=f"The result {error.reason}")
    return outcome


async def settle_executions(tx: Tx, ended: list[AttemptOutcome]) -> ExecutionSettlement:
    """Settle executions of any tenants with what their sandboxes left behind."""
    kept = [_kept(one, tx.now) for one in ended]
    found = await tx.executions.settle_attempts(kept, tx.now)
    for one in kept:
        if (one.execution.id, one.execution.attempt) in found.settled_attempts:
            tx.announce_status(one.execution.id, status_from_outcome(one.outcome))
            ring_plan(tx, one.execution)
    return found


def _kept(one: AttemptOutcome, now: datetime) -> AttemptOutcome:
    outcome = enforce_result_limits(one.outcome)
    if not outcome.stack:
        return msgspec.structs.replace(one, outcome=outcome)
    trace = events.build_log_event("ERROR", outcome.stack, now, "traceback")
    return msgspec.structs.replace(one, outcome=outcome, events=[*one.events, trace])


async def hand_over_execution(tx: Tx, execution: Execution) -> None:
    """Hand a held execution back, as a worker does that is told to stop. The attempt does not count."""
    _freed(tx, await tx.executions.hand_over_execution(execution.id, execution.attempt, tx.now))


async def release_execution(tx: Tx, execution: Execution) -> None:
    """Hand a held execution back after what it ran in was lost. The attempt counts: it may have been the reason."""
    _freed(tx, await tx.executions.release_execution(execution.id, execution.attempt, tx.now))


async def requeue_expired(tx: Tx, execution_id: str) -> None:
    """Give an expired lease's execution back to the queue, or fail it when its attempts are used up."""
    _freed(tx, await tx.executions.requeue_expired(execution_id, tx.now))


def _freed(tx: Tx, after: Execution | None) -> None:
    if after is None:
        return
    if after.status == "pending":
        tx.ring_job(job_from_execution(after))
    ring_plan(tx, after)
    tx.announce_status(after.id, after.status)
