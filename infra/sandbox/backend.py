"""What the pool of warm slots asks of whoever makes sandboxes."""

from typing import Literal, Protocol

import msgspec

from domain.ports import SandboxProgram
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.watchdog import ResourceWatchdog


class SandboxBackend(Protocol):
    """A way of making sandboxes. `blanks` says whether it can make them before it is known for what."""

    supports_blanks: bool

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        ...

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        ...

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """What watches a tree of this program."""
        ...


class BackendRouter:
    """Programs with a gateway are the first maker's, all others and blank slots the second's.

    One pool over both, so that what waits shares one bound of memory.
    """

    def __init__(self, gateway: SandboxBackend, others: SandboxBackend) -> None:
        self._gateway, self._others = gateway, others
        self.supports_blanks = others.supports_blanks

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        return await self._select_backend(program).start_tree(program)

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        self._select_backend(program).assign_program(tree, program, mode)

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """What watches a tree of this program."""
        return self._select_backend(program).create_watchdog(program)

    def _select_backend(self, program: SandboxProgram | None) -> SandboxBackend:
        return self._gateway if program is not None and program.gateway else self._others


class SlotCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots there are: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int
