"""Turn the events of a run into progress notifications of MCP."""

from typing import Any, Final

import msgspec

from domain.events import ExecutionEvent
from domain.executions import Execution

MAX_PROGRESS_CHARACTERS: Final = 2000
# By how much a notification grows that measures nothing: each must be larger than the one before.
_MIN_PROGRESS_STEP: Final = 1e-6


class ProgressNote(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one notification: how far the run is, of how much if that is known, and what happened."""

    progress: float
    total: float | None
    message: str | None


class ProgressReader:
    """Read progress from the events of one run.

    Steps count those of a crew or a workflow, the fraction that uploaded code reports goes to 1, and what a model agent
    does is counted without a total. A repeated attempt never lets the progress sink.
    """

    def __init__(self, execution: Execution) -> None:
        self._lane = execution.lane
        self._total: float | None = float(execution.steps_total) if execution.lane == "plan" else None
        self._ended_steps: set[tuple[Any, Any]] = set()
        self._progress = 0.0

    def read_event(self, event: ExecutionEvent) -> ProgressNote | None:
        """Return the notification of an event, None for one that shows nothing."""
        message = _describe_event(event)
        if message is None:
            return None
        measured = 0.0
        if self._lane == "llm":
            measured = float(int(self._progress) + 1)
        elif event.type == "step" and event.data.get("status") in ("completed", "failed", "skipped"):
            self._ended_steps.add((event.data.get("step"), event.data.get("item")))
            measured = float(len(self._ended_steps))
        elif event.type == "progress" and isinstance(event.data.get("fraction"), int | float):
            self._total, measured = 1.0, float(event.data["fraction"])
        self._progress = max(self._progress + _MIN_PROGRESS_STEP, measured)
        if self._total is not None:
            self._total = max(self._total, self._progress)
        return ProgressNote(progress=self._progress, total=self._total, message=message[:MAX_PROGRESS_CHARACTERS])


def _describe_event(event: ExecutionEvent) -> str | None:
    data = event.data
    match event.type:
        case "status":
            return f"The run is {data.get('status')}."
        case "log" | "warning":
            return str(data.get("message") or "") or None
        case "token":
            return str(data.get("content") or "") or None
        case "progress":
            return str(data.get("message") or "") or _format_fraction(data.get("fraction"))
        case "output":
            value = data.get("value")
            return value if isinstance(value, str) else msgspec.json.encode(value).decode()
        case "tool_call":
            return f"Calls {data.get('tool')}."
        case "step":
            item = "" if data.get("item") is None else f" (item {data['item']})"
            return f"Step {data.get('step')}{item} is {data.get('status')}."
        case _:
            return None


def _format_fraction(fraction: Any) -> str | None:
    return f"{fraction:.0%}" if isinstance(fraction, int | float) else None
