"""What running executions comes to in every lane: claim them, hold them while worked on, settle them together."""

from typing import Any, Final

import structlog

from domain import executions
from domain.events import Event
from domain.executions import Ended, Execution, LaneShare, RunLane
from domain.ports import Outcome, Store
from domain.shared.leases import LostLease
from infra.group_commit import Batches
from workers.leases import Holder

_log: Final = structlog.get_logger("paddock.executions")


class Runs:
    """The executions of one lane that this process holds. `share` bounds what a tenant may have running."""

    def __init__(self, name: str, store: Store, holder: Holder, lane: RunLane, share: LaneShare) -> None:
        self._name, self._store, self._holder, self._lane, self._share = name, store, holder, lane, share
        self._endings = Batches(self._settle)
        # Whether executions may have waited when the last one was settled.
        self.waiting = True

    def at_hand(self) -> frozenset[str]:
        """The versions that lie ready on this machine."""
        return frozenset()

    async def work(self, execution: Execution, log: Any) -> str | None:
        """Work on a claimed execution, settle it by `end`, and return the error that it was settled with."""
        raise NotImplementedError

    async def claim(self, slots: int) -> list[Execution]:
        """Claim up to `slots` executions, of whichever tenants are next."""
        async with self._store.begin_single() as tx:
            return await executions.claim(
                tx, self._name, self._holder.lease, slots, self.at_hand(), self._share, self._lane
            )

    async def __call__(self, execution: Execution) -> None:
        """Run a claimed execution to its end."""
        log = _log.bind(execution_id=execution.id, attempt=execution.attempt)
        log.info("run started", agent_id=execution.agent_id, version_id=execution.agent_version_id)
        settled = await self._holder.attend(
            log,
            execution.id,
            execution.attempt,
            self.work(execution, log),
            lambda: self.hand_over(execution),
            lambda: self.give_back(execution),
            lambda told: self.end(execution, Outcome(error_type="internal_error", error_message=told), []),
        )
        # Whoever ended it instead may have made room for one that waits.
        self.waiting = self.waiting or not settled

    async def hand_over(self, execution: Execution) -> None:
        """Return a claimed execution to the queue for another worker. The attempt does not count."""
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.hand_over(tx, execution)

    async def give_back(self, execution: Execution) -> None:
        """Return a claimed execution to the queue after its sandbox was lost. The attempt counts."""
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.give_back(tx, execution)

    async def end(self, execution: Execution, outcome: Outcome, rest: list[Event]) -> None:
        """Settle. Errors: `LostLease`."""
        if not await self._endings.add(Ended(execution=execution, outcome=outcome, written=rest)):
            raise LostLease(execution.id)

    async def _settle(self, ended: list[Ended]) -> list[bool]:
        async with self._store.begin_single() as tx:
            settled = await executions.finish(tx, ended)
        self.waiting = settled.waiting
        return [(one.execution.id, one.execution.attempt) in settled.held for one in ended]
