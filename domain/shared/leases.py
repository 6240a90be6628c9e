"""Leases: how exactly one worker at a time owns a row, and how a dead one's rows come back.

Claiming bumps `attempt`, the fencing token; every later write names the attempt it belongs to.
"""

from datetime import datetime

import msgspec


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who claims a row, when, and until when without a sign of life."""

    worker_id: str
    claimed_at: datetime
    expires_at: datetime


class LostLease(Exception):
    """The row is not held by this attempt any more: it was cancelled, taken back or settled. Stop working on it."""

    def __init__(self, row_id: str) -> None:
        super().__init__(f"{row_id} is not held by this attempt any more")
        self.row_id = row_id


class HandoverRequested(Exception):
    """The worker is about to end, and its work stands at a step where another worker can go on."""
