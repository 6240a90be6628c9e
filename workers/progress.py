"""Report how far a run has come: at most once a second, and its last state in any case."""

import re
from datetime import datetime, timedelta
from typing import Final

import msgspec

from domain.events import ExecutionEvent
from domain.ports import Clock, OutputStream

PROGRESS_PAUSE: Final = timedelta(seconds=1)
# One percentage, as progress bars show it: ` 37%|███▋      | 37/100`.
_PERCENTAGE_PATTERN: Final = re.compile(r"(?<![\w.,-])(\d{1,3}(?:\.\d{1,9})?) ?%")


class ProgressState(msgspec.Struct, frozen=True):
    """Hold a state of a run: a fraction from 0 to 1, if it is known, and what the run does.

    `stream` is set for a line that the run redraws there.
    """

    fraction: float | None
    message: str | None
    stream: OutputStream | None = None


class ProgressReporter:
    """Turn the states of one run into events."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: ProgressState | None = None
        self._reported: ProgressState | None = None
        self._due: datetime | None = None

    @property
    def is_due(self) -> bool:
        """Return whether there is a state to report now."""
        return self._latest != self._reported and (self._due is None or self._clock() >= self._due)

    def update(self, state: ProgressState) -> None:
        """Replace the state."""
        self._latest = state

    def take_event(self, last: bool = False) -> ExecutionEvent | None:
        """Return the event that is due, or with `last` the one that is left."""
        state = self._latest
        if state is None or state == self._reported or not (last or self.is_due):
            return None
        now = self._clock()
        self._reported, self._due = state, now + PROGRESS_PAUSE
        data = {"fraction": state.fraction, "message": state.message}
        if state.stream is not None:
            data["stream"] = state.stream
        return ExecutionEvent(type="progress", data=data, at=now)


def parse_fraction(line: str) -> float | None:
    """Return the fraction that a line shows, if it shows one percentage: 0.37 for ` 37%|███▋  | 37/100`."""
    percentages = _PERCENTAGE_PATTERN.findall(line)
    if len(percentages) != 1 or float(percentages[0]) > 100:
        return None
    return float(percentages[0]) / 100
