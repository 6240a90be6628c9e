"""Start what was put off when its time has come, cancel what expired, and admit whom a gate has forgotten.

A run that ends notes its gates in its own transaction, and the next ones are admitted right after that. If the process
is killed in between, the note is still there, and admission happens here.
"""

from typing import Final

import structlog

from domain import executions
from domain.ports import Store
from infra.polling import PollResult
from workers.lifecycle import Drain

# Seconds after which a run that is due, or a gate that was missed, is noticed.
GATE_POLL_SECONDS: Final = 1.0
# Short transactions: no other one waits long for these rows.
MAX_FREED_RUNS: Final = 200
MAX_SIGNALLED_GATES: Final = 200

_log = structlog.get_logger("paddock.gates")


class GateKeeper:
    """Free delayed runs, cancel expired ones, and admit the next runs at gates, in bounded batches."""

    def __init__(self, store: Store, drain: Drain | None = None) -> None:
        self._store, self._drain = store, drain or Drain()

    async def run(self) -> None:
        """Keep the gates until draining begins."""
        await self._drain.poll("gates", self.run_round)

    async def run_round(self) -> PollResult:
        """Do one batch of each kind of work."""
        expired = await self._expire_runs()
        freed, next_seconds = await self._free_due_runs()
        admitted = await self._admit_signalled()
        if expired or freed or admitted:
            return PollResult(did_work=True, pause_seconds=0.0)
        pause = GATE_POLL_SECONDS if next_seconds is None else min(GATE_POLL_SECONDS, max(next_seconds, 0.01))
        return PollResult(did_work=False, pause_seconds=pause)

    async def _expire_runs(self) -> int:
        async with self._store.autocommit() as tx:
            expired = await tx.gates.expire(tx.now, MAX_FREED_RUNS)
            executions.announce_expiry(tx, expired)
        if expired:
            _log.info("expired runs cancelled", runs=len(expired))
        return len(expired)

    async def _free_due_runs(self) -> tuple[int, float | None]:
        async with self._store.autocommit() as tx:
            freed, next_seconds = await tx.gates.free_due(tx.now, MAX_FREED_RUNS)
            executions.ring_freed(tx, freed)
        return len(freed), next_seconds

    async def _admit_signalled(self) -> int:
        async with self._store.autocommit() as tx:
            gates = await tx.gates.list_signalled(MAX_SIGNALLED_GATES)
        for gate in gates:
            # A gate of a key that a run reaches by this has its own signal.
            async with self._store.autocommit() as tx:
                await executions.admit_next(tx, gate)
        return len(gates)
