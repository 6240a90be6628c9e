"""What the pool of warm slots asks of whoever makes sandboxes."""

from typing import Literal, Protocol

import msgspec

from domain.ports import Program
from infra.sandbox.process_tree import Tree
from infra.sandbox.watchdog import Watch


class Maker(Protocol):
    """A way of making sandboxes. `blanks` says whether it can make them before it is known for what."""

    blanks: bool

    async def make(self, program: Program | None) -> Tree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        ...

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        ...

    def watch(self, program: Program) -> Watch | None:
        """What watches a tree of this program."""
        ...


class Chosen:
    """Programs with a gateway are the first maker's, all others and blank slots the second's.

    One pool over both, so that what waits shares one bound of memory.
    """

    def __init__(self, gateway: Maker, others: Maker) -> None:
        self._gateway, self._others = gateway, others
        self.blanks = others.blanks

    async def make(self, program: Program | None) -> Tree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        return await self._of(program).make(program)

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        self._of(program).direct(tree, program, mode)

    def watch(self, program: Program) -> Watch | None:
        """What watches a tree of this program."""
        return self._of(program).watch(program)

    def _of(self, program: Program | None) -> Maker:
        return self._gateway if program is not None and program.gateway else self._others


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots there are: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int
