"""Define what a run may use of the network outside, and what is recorded of it."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from workers.run.egress.lookups import TenantLookups

# `closed` by one of its ends; `broken` off by one of them; `refused`, for a reason that the agent or its owner can
# change; `unreachable` host; `limit` of the run; `run_ended` while it was open.
EgressOutcome = Literal["closed", "broken", "refused", "unreachable", "limit", "run_ended"]


class EgressLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit the connections of one run. Sizes in bytes, for each direction; times in seconds."""

    max_open: int = 64
    max_connections: int = 10_000
    max_bytes: int = 1 << 30
    max_events: int = 200
    connect_seconds: float = 10.0
    head_seconds: float = 10.0
    idle_seconds: float = 900.0
    total_seconds: float = 3600.0


class EgressConnection(msgspec.Struct, kw_only=True):
    """Describe one connection. `reason` says in words why it was not made, or was ended."""

    host: str
    port: int
    sent_bytes: int = 0
    received_bytes: int = 0
    duration_ms: int = 0
    outcome: EgressOutcome = "closed"
    reason: str | None = None
    is_proxied: bool = False

    def build_event_data(self) -> dict[str, Any]:
        """Return the data of its event."""
        data = {
            "host": self.host,
            "port": self.port,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "duration_ms": self.duration_ms,
            "outcome": self.outcome,
        }
        if self.reason is not None:
            data["reason"] = self.reason
        if self.is_proxied:
            data["via"] = "proxy"
        return data


class EgressEnd(Exception):
    """Report why a connection is not made, or ended: its outcome, a sentence, and the status of a proxy's answer."""

    def __init__(self, outcome: EgressOutcome, reason: str, status: int) -> None:
        super().__init__(reason)
        self.outcome: EgressOutcome = outcome
        self.reason, self.status = reason, status


class EgressAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the connections of all runs of a process have in common. `on_closed` counts each."""

    lookups: TenantLookups
    limits: EgressLimits
    on_closed: Callable[[EgressConnection], None]
