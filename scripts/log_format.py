"""JSON log lines in a form for people.

They hold what agents, tenants and providers wrote: nothing of it begins a line of its own or steers the terminal.
"""

from typing import Final

import msgspec

from infra.telemetry import escape_controls

_HIDDEN_FIELDS: Final = ("component", "level", "timestamp", "event", "logger", "exception", "request_id", "tenant_id")


def format_log_line(component: str, line: bytes) -> str:
    """`12:00:01 api     info  request method=GET path=/health status=200`; other lines pass as they are."""
    text = line.decode(errors="replace").rstrip()
    try:
        entry = msgspec.json.decode(text, type=dict[str, object])
        clock, level, event = str(entry["timestamp"])[11:19], str(entry["level"]), str(entry["event"])
    except (msgspec.MsgspecError, KeyError):
        return f"{'':8} {component:<8}{'':6}{escape_controls(text)}"
    fields = " ".join(f"{name}={value}" for name, value in entry.items() if name not in _HIDDEN_FIELDS)
    shown = escape_controls(f"{clock} {component:<8}{level:<8}{event} {fields}".rstrip())
    if entry.get("exception"):
        shown += "\n" + "\n".join("    " + escape_controls(part) for part in str(entry["exception"]).splitlines())
    return shown
