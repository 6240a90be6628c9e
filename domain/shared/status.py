"""Define the statuses of an execution, for the execution itself and for its event log."""

from typing import Final, Literal

ExecutionStatus = Literal["pending", "preparing", "running", "waiting", "completed", "failed", "cancelled"]

TERMINAL_STATUSES: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
LEASED_STATUSES: Final[tuple[ExecutionStatus, ...]] = ("preparing", "running")
