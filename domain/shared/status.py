"""The states of an execution, shared by the execution itself and by its event log."""

from typing import Final, Literal

ExecutionStatus = Literal["pending", "preparing", "running", "waiting", "completed", "failed", "cancelled"]

TERMINAL_STATUSES: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
LEASED_STATUSES: Final[tuple[ExecutionStatus, ...]] = ("preparing", "running")
