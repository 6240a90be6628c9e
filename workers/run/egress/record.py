"""Record the connections of one run as events, within a limit."""

from collections.abc import Callable
from typing import Any

from workers.run.egress.schema import EgressConnection

AddEvent = Callable[[dict[str, Any]], None]


class EgressRecord:
    """Pass on an event for each of the first connections of a run, and one that counts the others."""

    def __init__(self, add_event: AddEvent, max_events: int) -> None:
        self._add_event, self._max_events = add_event, max_events
        self._count = self._sent_bytes = self._received_bytes = 0

    def add(self, connection: EgressConnection) -> None:
        """Record a connection that has ended, or was not made."""
        self._count += 1
        if self._count <= self._max_events:
            self._add_event(connection.build_event_data())
            return
        self._sent_bytes += connection.sent_bytes
        self._received_bytes += connection.received_bytes

    def finish(self) -> None:
        """Record how many connections have no event of their own."""
        if self._count > self._max_events:
            left_out = self._count - self._max_events
            self._add_event(
                {"left_out": left_out, "sent_bytes": self._sent_bytes, "received_bytes": self._received_bytes}
            )
