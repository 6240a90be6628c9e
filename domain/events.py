"""The event log: append-only, numbered from 1 without gaps, one per execution.

Logs, SSE and WebSocket are views of it. The last event of an ended execution is its terminal one.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain import agents
from domain.errors import invalid, not_found
from domain.pages import Listing, Page
from domain.ports import Tx
from domain.states import TERMINAL, Status

EventType = Literal["status", "log"]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

MAX_LINE: Final = 8 * 1024
BATCH: Final = 500

_LEVELS: Final[dict[str, Level]] = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARNING": "WARNING",
    "WARN": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "ERROR",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the log. `data` is `{status, …}` for `status`, `{level, stream, message}` for `log`.

    `seq` is 0 until the event is appended.
    """

    type: EventType
    data: dict[str, Any]
    at: datetime
    seq: int = 0

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows this event."""
        return self.type == "status" and self.data.get("status") in TERMINAL


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a log, as people read them. `source` tells a build's lines from a run's."""

    timestamp: datetime
    level: Level
    message: str
    source: Literal["build", "runtime"]
    metadata: dict[str, Any]


class Events(Protocol):
    """The logs of the bound tenant's executions."""

    async def append_held(self, execution_id: str, attempt: int, written: list[Event]) -> bool: ...
    async def state(self, execution_id: str) -> tuple[Status, int] | None: ...
    async def after(self, execution_id: str, seq: int, limit: int) -> list[Event]: ...
    async def logs(self, execution_id: str, page: Page) -> Listing[LogEntry]: ...
    async def agent_logs(self, agent_id: str, page: Page) -> Listing[LogEntry]: ...


def level_of(stream: str, line: str) -> Level:
    """The level that a line of output names at its beginning (`WARNING:app:…`), else INFO."""
    word = line[:10].lstrip("[ ").split(":", 1)[0].split("]", 1)[0].split(" ", 1)[0]
    return _LEVELS.get(word, "INFO")


def logged(level: Level, message: str, at: datetime, stream: str) -> Event:
    """A log event. NUL, which text columns cannot hold, is shown as U+FFFD."""
    return Event(type="log", data={"level": level, "stream": stream, "message": message.replace("\0", "\ufffd")}, at=at)


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Events that follow a number. `ended` tells that no event will ever follow these."""

    events: list[Event]
    ended: bool


async def after(tx: Tx, execution_id: str, seq: int) -> Slice:
    """Up to `BATCH` events that follow number `seq`. Errors: `not_found`, `invalid_field` for a number yet to come."""
    # The state first: whatever is terminal now has all its events committed, and the next statement sees them.
    state = await tx.events.state(execution_id)
    if state is None:
        raise not_found("execution", execution_id)
    status, last = state
    if seq > last:
        raise invalid("Last-Event-ID", f"is beyond the last event, which is {last}.")
    found = await tx.events.after(execution_id, seq, BATCH)
    reached = found[-1].seq if found else seq
    return Slice(events=found, ended=status in TERMINAL and reached >= last)


async def logs(tx: Tx, execution_id: str, page: Page) -> Listing[LogEntry]:
    """An execution's log lines, oldest first. Errors: `not_found`."""
    if await tx.events.state(execution_id) is None:
        raise not_found("execution", execution_id)
    return await tx.events.logs(execution_id, page)


async def agent_logs(tx: Tx, reference: str, page: Page) -> Listing[LogEntry]:
    """What an agent's builds and executions came to and wrote, newest first. Errors: `not_found`."""
    agent = await agents.get(tx, reference)
    return await tx.events.agent_logs(agent.id, page)
