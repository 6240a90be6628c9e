"""What running executions comes to in every lane: claim them, hold them while worked on, settle them together."""

from typing import Any, Final

import msgspec
import structlog

from domain import executions
from domain.events import ExecutionEvent
from domain.executions import AttemptOutcome, Execution, LaneShare, RunLane
from domain.ports import SandboxOutcome, Store
from domain.shared.leases import LostLease
from infra.group_commit import GroupCommit
from workers.leases import LeaseKeeper

_log: Final = structlog.get_logger("paddock.executions")


class LaneRunner:
    """The executions of one lane that this process holds. `share` bounds what a tenant may have running."""

    def __init__(self, name: str, store: Store, holder: LeaseKeeper, lane: RunLane, share: LaneShare) -> None:
        self._name, self._store, self._leases = name, store, holder
        self._share = msgspec.structs.replace(share, lane=lane)
        self._settlements = GroupCommit(self._settle_batch)
        # Whether executions may have waited when the last one was settled.
        self.may_have_pending = True

    def list_ready_versions(self) -> frozenset[str]:
        """The versions that lie ready on this machine."""
        return frozenset()

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Work on a claimed execution, settle it by `end`, and return the error that it was settled with."""
        raise NotImplementedError

    async def claim_executions(self, slots: int) -> list[Execution]:
        """Claim up to `slots` executions, of whichever tenants are next."""
        async with self._store.autocommit() as tx:
            return await executions.claim_executions(
                tx, self._name, self._leases.lease_duration, slots, self.list_ready_versions(), self._share
            )

    async def __call__(self, execution: Execution) -> None:
        """Run a claimed execution to its end."""
        log = _log.bind(execution_id=execution.id, attempt=execution.attempt)
        log.info("run started", agent_id=execution.agent_id, version_id=execution.agent_version_id)
        settled = await self._leases.run_leased(
            log,
            execution.id,
            execution.attempt,
            self.run_execution(execution, log),
            lambda: self.hand_over_execution(execution),
            lambda: self.release_execution(execution),
            lambda told: self.settle_execution(
                execution, SandboxOutcome(error_type="internal_error", error_message=told), []
            ),
        )
        # Whoever ended it instead may have made room for one that waits.
        self.may_have_pending = self.may_have_pending or not settled

    async def hand_over_execution(self, execution: Execution) -> None:
        """Return a claimed execution to the queue for another worker. The attempt does not count."""
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            await executions.hand_over_execution(tx, execution)

    async def release_execution(self, execution: Execution) -> None:
        """Return a claimed execution to the queue after its sandbox was lost. The attempt counts."""
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            await executions.release_execution(tx, execution)

    async def settle_execution(self, execution: Execution, outcome: SandboxOutcome, rest: list[ExecutionEvent]) -> None:
        """Settle. Errors: `LostLease`."""
        if not await self._settlements.add(AttemptOutcome(execution=execution, outcome=outcome, events=rest)):
            raise LostLease(execution.id)

    async def _settle_batch(self, ended: list[AttemptOutcome]) -> list[bool]:
        async with self._store.autocommit() as tx:
            settled = await executions.settle_executions(tx, ended)
        self.may_have_pending = settled.has_waiting
        return [(one.execution.id, one.execution.attempt) in settled.settled_attempts for one in ended]
