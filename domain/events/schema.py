"""Define the event log: append-only, numbered from 1 without gaps, one per execution.

Logs, SSE and WebSocket are views of it. The last event of an ended execution is its terminal one.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.shared.pages import Listing, Page
from domain.shared.status import TERMINAL_STATUSES, ExecutionStatus

EventType = Literal[
    "status",
    "log",
    "token",
    "thinking",
    "model_call",
    "tool_call",
    "tool_result",
    "cost",
    "approval",
    "warning",
    "step",
    "output",
    "progress",
    "egress",
]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

MAX_LINE_BYTES: Final = 8 * 1024
MAX_EVENT_BATCH: Final = 500


class ExecutionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one entry of the log. `data` is `{status, …}` for `status`, `{level, stream, message}` for `log`.

    Of model agents: `token` and `thinking` are `{content, step}`, `tool_call` `{tool, args, call_id, step}`,
    `tool_result` `{tool, result | error, call_id, step}`, `model_call` `{model, provider, status, …}`, `cost`
    `{cost_usd, total_tokens, …}`, `approval` `{status, calls}`, `warning` `{message, …}`. Of crews and
    workflows: `step` is `{step, item, status, tries, execution_id, error_type, error_message, due_at}`. Of uploaded
    code: `output` is `{number, value}` for each value that it streams, from 1 in each attempt, `progress` `{fraction,
    message}`, with the `stream` of a line that it redraws.

    `seq` is 0 until the event is appended.
    """

    type: EventType
    data: dict[str, Any]
    at: datetime
    seq: int = 0

    @property
    def is_terminal(self) -> bool:
        """Tell whether this is the last event of its execution."""
        return self.type == "status" and self.data.get("status") in TERMINAL_STATUSES


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one line of a log, as people read it. `source` tells a build's lines from a run's."""

    timestamp: datetime
    level: LogLevel
    message: str
    source: Literal["build", "runtime"]
    metadata: dict[str, Any]


class AttemptEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Carry events of one execution, to be appended if its attempt still holds the lease."""

    execution_id: str
    attempt: int
    events: list[ExecutionEvent]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Ask, for a tenant, for the events after number `seq` in the log of an execution."""

    tenant_id: str
    execution_id: str
    seq: int


class EventSlice(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the events after a number.

    `last_seq` is the number of the log's last event; `is_complete` tells that no event will follow these.
    """

    events: list[ExecutionEvent]
    last_seq: int
    is_complete: bool


class Events(Protocol):
    """Store the logs of the bound tenant's executions."""

    async def append_if_leased(self, execution_id: str, attempt: int, events: list[ExecutionEvent]) -> bool: ...
    async def append_while_waiting(self, execution_id: str, events: list[ExecutionEvent]) -> None: ...
    async def append_batches(self, batches: list[AttemptEvents]) -> set[tuple[str, int]]:
        """Append to the logs of executions of any tenants. Returns the attempts that still hold their lease."""
        ...

    async def find_slices(self, queries: list[EventQuery], limit: int) -> list[EventSlice | None]:
        """Return up to `limit` events after each number; None where the execution is not the asking tenant's."""
        ...

    async def get_state(self, execution_id: str) -> tuple[ExecutionStatus, int] | None: ...
    async def list_logs(self, execution_id: str, page: Page) -> Listing[LogEntry]: ...
    async def list_agent_logs(self, agent_id: str, page: Page) -> Listing[LogEntry]: ...
