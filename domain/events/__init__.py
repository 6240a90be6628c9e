"""Keep one append-only event log per execution, and show it as streams and as lines of a log."""

from domain.events.renderer import build_log_event, parse_level, render_log_entry
from domain.events.schema import (
    MAX_EVENT_BATCH,
    MAX_LINE_BYTES,
    AttemptEvents,
    EventQuery,
    Events,
    EventSlice,
    EventType,
    ExecutionEvent,
    LogEntry,
    LogLevel,
)
from domain.events.service import list_agent_logs, list_logs, read_event_slices

__all__ = [
    "MAX_EVENT_BATCH",
    "MAX_LINE_BYTES",
    "AttemptEvents",
    "EventQuery",
    "EventSlice",
    "EventType",
    "Events",
    "ExecutionEvent",
    "LogEntry",
    "LogLevel",
    "build_log_event",
    "list_agent_logs",
    "list_logs",
    "parse_level",
    "read_event_slices",
    "render_log_entry",
]
