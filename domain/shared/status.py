"""The states of an execution, shared by the execution itself and by its event log."""

from typing import Final, Literal

Status = Literal["pending", "preparing", "running", "waiting", "completed", "failed", "cancelled"]

TERMINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
HELD: Final[tuple[Status, ...]] = ("preparing", "running")
