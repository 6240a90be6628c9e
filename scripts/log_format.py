"""Format the processes' log lines for people, and write them to the screen or to a file.

Log lines contain text from agents, tenants and providers. That text must not start a line of its own or steer the
terminal, so control characters are escaped.
"""

import contextlib
import os
from pathlib import Path
from typing import IO, Final

import msgspec

from infra.telemetry import escape_controls

_HIDDEN_FIELDS: Final = (
    "component",
    "level",
    "timestamp",
    "event",
    "logger",
    "exception",
    "request_id",
    "tenant_id",
)


def format_log_line(component: str, line: bytes) -> str:
    """Return a JSON log line as `12:00:01 api     info  request method=GET path=/health status=200`.

    Lines that are not JSON keep their text.
    """
    text = line.decode(errors="replace").rstrip()
    try:
        entry = msgspec.json.decode(text, type=dict[str, object])
        clock, level, event = str(entry["timestamp"])[11:19], str(entry["level"]), str(entry["event"])
    except (msgspec.MsgspecError, KeyError):
        return f"{'':8} {component:<8}{'':6}{escape_controls(text)}"
    fields = " ".join(f"{name}={value}" for name, value in entry.items() if name not in _HIDDEN_FIELDS)
    formatted = escape_controls(f"{clock} {component:<8}{level:<8}{event} {fields}".rstrip())
    if entry.get("exception"):
        trace = str(entry["exception"]).splitlines()
        formatted += "\n" + "\n".join("    " + escape_controls(part) for part in trace)
    return formatted


class LogOutput:
    """Write log lines to the screen, or to a file if one is named.

    The file is opened with the first line. The file of the run before is kept with the ending `.old`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._stream: IO[str] | None = None

    def write_line(self, line: str) -> None:
        """Write one line. A full disk loses lines of the file, but does not stop the installation."""
        if self.file is None:
            print(line, flush=True)
            return
        with contextlib.suppress(OSError):
            if self._stream is None:
                self._stream = self._open_file(self.file)
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()

    def _open_file(self, file: Path) -> IO[str]:
        if file.exists():
            file.replace(file.with_name(f"{file.name}.old"))
        # Log lines hold what tenants wrote: only the owner of the installation may read them.
        return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")
