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


class BackendRouter:
    """Route programs with a network to the first backend, all others and blank slots to the second.

    One pool works over both, so that all idle slots share one memory limit.
    """

    def __init__(self, gateway: SandboxBackend, others: SandboxBackend) -> None:
        self._gateway, self._others = gateway, others
        self.supports_blanks = others.supports_blanks

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """Start a tree that has no program assigned yet; for None a blank one. Errors: `sandbox_unavailable`."""
        return await self._select_backend(program).start_tree(program)

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Send a tree the code and the entrypoint to import."""
        self._select_backend(program).assign_program(tree, program, mode)

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """Create the watchdog for a tree of this program; None where the fence has none."""
        return self._select_backend(program).create_watchdog(program)

    def _select_backend(self, program: SandboxProgram | None) -> SandboxBackend:
        return self._gateway if program is not None and program.network is not None else self._others


class SlotCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Count the slots: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int
