"""What the pool of warm slots asks of whoever makes sandboxes."""

from typing import Literal, Protocol

import msgspec

from domain.ports import Program
from infra.sandbox.tree import Tree
from infra.sandbox.watch import Watch


class Maker(Protocol):
    """A way of making sandboxes. `blanks` says whether it can make them before it is known for what."""

    blanks: bool

    async def make(self, program: Program | None) -> Tree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        ...

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        ...

    def watch(self, memory_mb: int) -> Watch | None:
        """What watches a tree with this much memory."""
        ...


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots there are: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int
