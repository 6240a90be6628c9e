"""Describe leases: one worker at a time owns a row, and the rows of a dead worker are claimed again.

Claiming increments `attempt`, the fencing token. Every later write names the attempt that it belongs to.
"""

from datetime import datetime

import msgspec


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Name the worker that claims a row, and when the claim expires without a heartbeat."""

    worker_id: str
    claimed_at: datetime
    expires_at: datetime


class LostLease(Exception):
    """Signal that this attempt no longer owns the row: it was cancelled, requeued or settled. Stop working on it."""

    def __init__(self, row_id: str) -> None:
        super().__init__(f"{row_id} is no longer owned by this attempt")
        self.row_id = row_id


class HandoverRequested(Exception):
    """Signal that the worker is stopping at a point where another worker can continue the work."""
