"""Events are rendered as lines of a log that a person can read."""

from datetime import UTC, datetime
from typing import Any

import pytest

from domain.events import ExecutionEvent, render_log_entry

CONNECTION = {"host": "api.example.com", "port": 443, "sent_bytes": 1200, "received_bytes": 3400, "duration_ms": 5}


@pytest.mark.parametrize(
    ("data", "level", "message"),
    [
        (
            {**CONNECTION, "outcome": "closed"},
            "INFO",
            "Connection to api.example.com:443 closed: 1,200 bytes sent, 3,400 received",
        ),
        (
            {**CONNECTION, "outcome": "refused", "reason": "It is not public."},
            "WARNING",
            "Connection to api.example.com:443 refused: It is not public.",
        ),
        (
            {**CONNECTION, "outcome": "limit", "reason": "The run sent 1 GiB."},
            "WARNING",
            "Connection to api.example.com:443 ended at a limit: The run sent 1 GiB.",
        ),
        (
            {"left_out": 1200, "sent_bytes": 1, "received_bytes": 2},
            "INFO",
            "1,200 more connections: 1 bytes sent, 2 received",
        ),
    ],
)
def test_connections_are_lines_that_name_the_host(data: dict[str, Any], level: str, message: str) -> None:
    event = ExecutionEvent(type="egress", data=data, at=datetime(2026, 1, 1, tzinfo=UTC))
    entry = render_log_entry(event, "exec_1")
    assert (entry.level, entry.message) == (level, message)
