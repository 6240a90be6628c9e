"""Run executions in any lane: claim them, hold their leases while they run, and settle them in batches."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from domain import executions, schemas
from domain.events import ExecutionEvent
from domain.executions import AttemptOutcome, Execution, LaneShare
from domain.ports import Clock, SandboxOutcome, Store, Tx
from domain.shared.leases import LostLease
from infra.group_commit import GroupCommit
from workers.leases import LeasedWork, LeaseKeeper
from workers.lifecycle import Drain

_log: Final = structlog.get_logger("paddock.executions")


class LaneContext(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the runner of a lane works with. `share` names the lane, and limits what a tenant may run."""

    worker_id: str
    store: Store
    leases: LeaseKeeper
    clock: Clock
    share: LaneShare
    drain: Drain


class LaneRunner:
    """Claim, run and settle the executions of one lane in one worker process."""

    def __init__(self, context: LaneContext) -> None:
        self._context, self._store = context, context.store
        self._settlements = GroupCommit(self._settle_batch)
        # Whether executions may have been pending when the last one was settled.
        self.may_have_pending = True

    def list_ready_versions(self) -> frozenset[str]:
        """Return the versions that this machine has at hand."""
        return frozenset()

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Run a claimed execution, settle it, and return the error type that it was settled with."""
        raise NotImplementedError

    async def claim_executions(self, slots: int) -> list[Execution]:
        """Claim up to `slots` executions of the tenants whose turn it is."""
        context, versions = self._context, self.list_ready_versions()
        lease = context.leases.lease_duration
        async with self._store.autocommit() as tx:
            return await executions.claim_executions(tx, context.worker_id, lease, slots, versions, context.share)

    async def run_claimed(self, execution: Execution) -> None:
        """Run a claimed execution to its end, or give it back."""
        log = _log.bind(execution_id=execution.id, attempt=execution.attempt)
        log.info("run started", agent_id=execution.agent_id, version_id=execution.agent_version_id)

        async def fail(message: str) -> None:
            outcome = SandboxOutcome(error_type="internal_error", error_message=message)
            await self.settle_execution(execution, outcome, [])

        work = LeasedWork(
            row_id=execution.id,
            attempt=execution.attempt,
            log=log,
            run=self.run_execution(execution, log),
            hand_over=lambda: self.hand_over_execution(execution),
            release=lambda: self.release_execution(execution),
            fail=fail,
        )
        was_settled_here = await self._context.leases.run_leased(work)
        # If it was ended elsewhere, there may be room for a pending one.
        self.may_have_pending = self.may_have_pending or not was_settled_here

    async def hand_over_execution(self, execution: Execution) -> None:
        """Return a claimed execution to the queue for another worker. The attempt does not count."""
        await self._store.run(execution.tenant_id, lambda tx: executions.hand_over_execution(tx, execution))

    async def release_execution(self, execution: Execution) -> None:
        """Return a claimed execution to the queue after its sandbox was lost. The attempt counts."""
        await self._store.run(execution.tenant_id, lambda tx: executions.release_execution(tx, execution))

    async def settle_execution(
        self,
        execution: Execution,
        outcome: SandboxOutcome,
        events: list[ExecutionEvent],
        write_results: Callable[[Tx], Awaitable[None]] | None = None,
    ) -> None:
        """End an execution with its outcome and its last events. Errors: `LostLease`, and those of `write_results`.

        `write_results` writes what else it leaves in the same transaction, or not at all.
        """
        attempt = AttemptOutcome(execution=execution, outcome=outcome, events=events)
        if write_results is None:
            is_settled = await self._settlements.add(attempt)
        else:
            is_settled = await self._settle_with_results(attempt, write_results)
        if not is_settled:
            raise LostLease(execution.id)

    async def _settle_with_results(
        self, attempt: AttemptOutcome, write_results: Callable[[Tx], Awaitable[None]]
    ) -> bool:
        async def settle(tx: Tx) -> executions.ExecutionSettlement:
            settled = await executions.settle_executions(tx, [attempt])
            if settled.settled_attempts:
                await write_results(tx)
            return settled

        settlement = await self._store.run(attempt.execution.tenant_id, settle)
        self.may_have_pending = settlement.has_waiting
        return bool(settlement.settled_attempts)

    async def _settle_batch(self, ended: list[AttemptOutcome]) -> list[bool]:
        async with self._store.autocommit() as tx:
            settled = await executions.settle_executions(tx, ended)
        self.may_have_pending = settled.has_waiting
        return [(end.execution.id, end.execution.attempt) in settled.settled_attempts for end in ended]


async def check_output(outcome: SandboxOutcome, schema: dict[str, Any] | None, tenant_id: str) -> SandboxOutcome:
    """Return the outcome of a run, or `output_invalid` for a result that breaks its schema."""
    if schema is None or outcome.error_type is not None:
        return outcome
    outcome = executions.enforce_result_limits(outcome)
    if outcome.error_type is not None:
        return outcome
    message = await schemas.find_output_problem(schema, msgspec.json.decode(outcome.output or b"null"), tenant_id)
    return outcome if message is None else SandboxOutcome(error_type="output_invalid", error_message=message)
