"""Describe what the pool of warm slots needs from a sandbox backend."""

from typing import Literal, Protocol

import msgspec

from domain.ports import SandboxProgram
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.watchdog import ResourceWatchdog


class SandboxBackend(Protocol):
    """Start process trees. `supports_blanks` says whether it can start one before its program is chosen."""

    supports_blanks: bool

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """Start a tree that has no program assigned yet; for None a blank one. Errors: `sandbox_unavailable`."""
        ...

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Send a tree the code and the entrypoint to import."""
        ...

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """Create the watchdog for a tree of this program; None where the fence has none."""
        ...


class SlotCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Count the slots: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int
