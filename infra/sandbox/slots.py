"""Represent the slots of a pool: idle ones, pending ones, and the state of each version."""

import asyncio
from typing import Final

from domain.ports import SandboxProgram
from infra.sandbox.demand import FolderIdentity, SlotDemand
from infra.sandbox.process_tree import ProcessTree

# A slot is taken to hold this much until a slot of its version was measured.
DEFAULT_SLOT_BYTES: Final = 8 << 20


# A slot with more listeners counts as several: each is an open file of the worker.
LISTENERS_PER_WEIGHT: Final = 8


class IdleSlot:
    """Hold a stopped tree that waits for a run. `identity` is that of the folders that it imported from."""

    def __init__(
        self, tree: ProcessTree, created_at: float, memory_bytes: int, identity: FolderIdentity | None
    ) -> None:
        self.tree, self.created_at, self.memory_bytes, self.identity = tree, created_at, memory_bytes, identity
        # What it counts among the slots that may wait.
        self.weight = 1 + tree.listener_count // LISTENERS_PER_WEIGHT


class PendingSlot:
    """Represent a slot that is being made. A run that comes meanwhile may claim it instead of starting another."""

    def __init__(self, started_at: float, identity: FolderIdentity | None) -> None:
        self.started_at, self.identity = started_at, identity
        self.claim_future: asyncio.Future[ProcessTree | None] | None = None

    def claim_tree(self) -> "asyncio.Future[ProcessTree | None]":
        """Claim the slot for a run. The future resolves to None if the slot fails."""
        self.claim_future = asyncio.get_running_loop().create_future()
        return self.claim_future

    def deliver_tree(self, tree: ProcessTree | None) -> bool:
        """Deliver the slot to the run that claimed it. Returns False if no run waits for it."""
        if self.claim_future is None or self.claim_future.done():
            return False
        self.claim_future.set_result(tree)
        return True


class VersionSlots:
    """Hold the slots of one version, its demand and its pause."""

    def __init__(self, program: SandboxProgram) -> None:
        self.program = program
        self.demand = SlotDemand()
        self.idle_slots: list[IdleSlot] = []
        self.pending_slots: list[PendingSlot] = []
        self.paused_until = 0.0
        self.slot_bytes = DEFAULT_SLOT_BYTES
        # Set when the program runs with other settings now.
        self.is_retired = False

    def list_unclaimed(self) -> list[PendingSlot]:
        """Return the pending slots that no run waits for."""
        return [slot for slot in self.pending_slots if slot.claim_future is None or slot.claim_future.cancelled()]

    def count_missing(self, now: float) -> int:
        """Return how many slots are to be started now."""
        if now < self.paused_until or self.is_retired:
            return 0
        return self.demand.count_wanted_slots(now) - len(self.idle_slots) - len(self.list_unclaimed())


def get_delivered_tree(claim: "asyncio.Future[ProcessTree | None]") -> ProcessTree | None:
    """Return the tree that was delivered in the moment in which its run gave up, if any."""
    return claim.result() if claim.done() and not claim.cancelled() else None
