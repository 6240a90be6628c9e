"""The event log: append-only, numbered from 1 without gaps, one per execution.

Logs, SSE and WebSocket are views of it. The last event of an ended execution is its terminal one.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain import agents
from domain.ports import Tx
from domain.shared.errors import DomainError, InvalidField, NotFound
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
]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

MAX_LINE_BYTES: Final = 8 * 1024
MAX_EVENT_BATCH: Final = 500

_LEVELS: Final[dict[str, LogLevel]] = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARNING": "WARNING",
    "WARN": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "ERROR",
}


class ExecutionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the log. `data` is `{status, …}` for `status`, `{level, stream, message}` for `log`.

    Of model agents: `token` and `thinking` are `{content, step}`, `tool_call` `{tool, args, call_id, step}`,
    `tool_result` `{tool, result | error, call_id, step}`, `model_call` `{model, provider, status, …}`, `cost`
    `{cost_usd, total_tokens, …}`, `approval` `{status, calls}`, `warning` `{message, …}`. Of crews and
    workflows: `step` is `{step, item, status, tries, execution_id, error_type, error_message, due_at}`.

    `seq` is 0 until the event is appended.
    """

    type: EventType
    data: dict[str, Any]
    at: datetime
    seq: int = 0

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows this event."""
        return self.type == "status" and self.data.get("status") in TERMINAL_STATUSES


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a log, as people read them. `source` tells a build's lines from a run's."""

    timestamp: datetime
    level: LogLevel
    message: str
    source: Literal["build", "runtime"]
    metadata: dict[str, Any]


class AttemptEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one execution, to be appended if its attempt still holds it."""

    execution_id: str
    attempt: int
    events: list[ExecutionEvent]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's question for what follows number `seq` in the log of an execution."""

    tenant_id: str
    execution_id: str
    seq: int


class EventSlice(msgspec.Struct, frozen=True, kw_only=True):
    """Events that follow a number.

    `last` is the number of the log's last one; `ended` tells that none will ever follow these.
    """

    events: list[ExecutionEvent]
    last_seq: int
    is_complete: bool


class Events(Protocol):
    """The logs of the bound tenant's executions."""

    async def append_if_leased(self, execution_id: str, attempt: int, written: list[ExecutionEvent]) -> bool: ...
    async def append_while_waiting(self, execution_id: str, written: list[ExecutionEvent]) -> None: ...
    async def append_batches(self, written: list[AttemptEvents]) -> set[tuple[str, int]]:
        """Append to the logs of executions of any tenants. Returns those that their attempt still holds."""
        ...

    async def find_slices(self, asked: list[EventQuery], limit: int) -> list[EventSlice | None]:
        """What follows in the logs of executions of any tenants; None for one that is not the asking tenant's."""
        ...

    async def get_state(self, execution_id: str) -> tuple[ExecutionStatus, int] | None: ...
    async def list_logs(self, execution_id: str, page: Page) -> Listing[LogEntry]: ...
    async def list_agent_logs(self, agent_id: str, page: Page) -> Listing[LogEntry]: ...


def parse_level(stream: str, line: str) -> LogLevel:
    """The level that a line of output names at its beginning (`WARNING:app:…`), else INFO."""
    word = line[:10].lstrip("[ ").split(":", 1)[0].split("]", 1)[0].split(" ", 1)[0]
    return _LEVELS.get(word, "INFO")


def build_log_event(level: LogLevel, message: str, at: datetime, stream: str) -> ExecutionEvent:
    """A log event. NUL, which text columns cannot hold, is shown as U+FFFD."""
    return ExecutionEvent(
        type="log", data={"level": level, "stream": stream, "message": message.replace("\0", "\ufffd")}, at=at
    )


async def read_event_slices(tx: Tx, asked: list[EventQuery]) -> list[EventSlice | DomainError]:
    """Up to `BATCH` events that follow in each log, fewer where they are large.

    Or `not_found`, or `invalid_field` for a number yet to come.
    """
    found = await tx.events.find_slices(asked, MAX_EVENT_BATCH)
    return [_answer(one, slice_) for one, slice_ in zip(asked, found, strict=True)]


def _answer(asked: EventQuery, found: EventSlice | None) -> EventSlice | DomainError:
    if found is None:
        return NotFound("execution", asked.execution_id)
    if asked.seq > found.last_seq:
        return InvalidField("Last-Event-ID", f"is beyond the last event, which is {found.last_seq}.")
    return found


async def list_logs(tx: Tx, execution_id: str, page: Page) -> Listing[LogEntry]:
    """An execution's log lines, oldest first. Errors: `not_found`."""
    if await tx.events.get_state(execution_id) is None:
        raise NotFound("execution", execution_id)
    return await tx.events.list_logs(execution_id, page)


async def list_agent_logs(tx: Tx, reference: str, page: Page) -> Listing[LogEntry]:
    """What an agent's builds and executions came to and wrote, newest first. Errors: `not_found`."""
    agent = await agents.get_agent(tx, reference)
    return await tx.events.list_agent_logs(agent.id, page)
