"""Render events as lines of a log, and lines of output as events."""

from datetime import datetime
from typing import Any, Final

from domain.events.schema import ExecutionEvent, LogEntry, LogLevel

_LEVEL_WORDS: Final[dict[str, LogLevel]] = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARNING": "WARNING",
    "WARN": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "ERROR",
}
_OUTCOME_WORDS: Final = {
    "broken": "broke off",
    "unreachable": "failed",
    "limit": "ended at a limit",
    "run_ended": "ended with the run",
}


def parse_level(line: str) -> LogLevel:
    """Return the level that a line of output begins with (`WARNING:app:…`), else INFO."""
    word = line[:10].lstrip("[ ").split(":", 1)[0].split("]", 1)[0].split(" ", 1)[0]
    return _LEVEL_WORDS.get(word, "INFO")


def build_log_event(level: LogLevel, message: str, at: datetime, stream: str) -> ExecutionEvent:
    """Build a log event. NUL, which text columns cannot hold, becomes U+FFFD."""
    data = {"level": level, "stream": stream, "message": message.replace("\0", "\ufffd")}
    return ExecutionEvent(type="log", data=data, at=at)


def render_log_entry(event: ExecutionEvent, execution_id: str) -> LogEntry:
    """Render an event as a line of its execution's log."""
    metadata = {**event.data, "execution_id": execution_id, "seq": event.seq, "type": event.type}
    if event.type == "step":
        # In the event itself, `execution_id` is the step's.
        metadata["child_id"] = event.data.get("execution_id")
    message = metadata.pop("message", None)
    level = metadata.pop("level", "ERROR" if event.data.get("status") == "failed" else "INFO")
    if event.type == "status":
        message = f"Execution {event.data['status']}"
        if event.data.get("error_message"):
            message += f": {event.data['error_message']}"
    elif event.type != "log":
        message = _describe_event(event)
        level = "WARNING" if event.type == "warning" or _is_refused(event) else level
    return LogEntry(timestamp=event.at, level=level, message=str(message), source="runtime", metadata=metadata)


def _describe_event(event: ExecutionEvent) -> str:
    data = event.data
    if event.type == "model_call":
        return f"Called the model {data.get('model')}: {data.get('status')}"
    if event.type == "tool_call":
        return f"Calls the tool {data.get('tool')}"
    if event.type == "tool_result":
        return f"The tool {data.get('tool')} " + (f"failed: {data['error']}" if data.get("error") else "answered")
    if event.type == "cost":
        return f"Used {data.get('total_tokens')} tokens for ${data.get('cost_usd'):.6f}"
    if event.type == "approval":
        calls = ", ".join(str(call.get("tool") or call.get("step")) for call in data.get("calls", ()))
        return f"Approval {data.get('status')}: {calls}"
    if event.type == "step":
        step = data.get("step") if data.get("item") is None else f"{data.get('step')}[{data['item']}]"
        reason = f": {data['error_message']}" if data.get("error_message") else ""
        return f"The step {step} is {data.get('status')}{reason}"
    if event.type == "output":
        return f"Output {data.get('number')}"
    if event.type == "progress":
        percentage = None if data.get("fraction") is None else f"{data['fraction']:.0%}"
        return ": ".join(part for part in (percentage, data.get("message")) if part) or "Progress"
    if event.type == "egress":
        return _describe_connection(data)
    return str(data.get("message", event.type))


def _is_refused(event: ExecutionEvent) -> bool:
    return event.type == "egress" and event.data.get("outcome") in ("refused", "unreachable", "limit")


def _describe_connection(data: dict[str, Any]) -> str:
    size = f"{data.get('sent_bytes', 0):,} bytes sent, {data.get('received_bytes', 0):,} received"
    if "left_out" in data:
        return f"{data['left_out']:,} more connections: {size}"
    outcome = _OUTCOME_WORDS.get(str(data.get("outcome")), data.get("outcome"))
    words = f"Connection to {data.get('host')}:{data.get('port')} {outcome}"
    return f"{words}: {data['reason']}" if data.get("reason") else f"{words}: {size}"
