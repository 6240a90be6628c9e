"""Describe the context of an entrypoint: `def handle(payload: dict, context: Context)`.

In Paddock's sandbox this module is always there. For an editor and for tests elsewhere, copy the file beside the code.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol


class Context(Protocol):
    """Describe what an entrypoint is given besides its payload."""

    execution_id: str
    # The thread that the run goes on with, if it has one.
    thread_id: str | None
    # The conversation before the payload, oldest first: dicts with `role` and `content`, maybe `tool_calls`. Of a long
    # one the newest turns.
    messages: list[dict[str, Any]]
    # 1, and more after a worker was lost.
    attempt: int
    # Input files by name, each as a path below /work.
    files: Mapping[str, str]
    # JSON that completed runs of the agent leave for the next ones, in a thread for those of the thread; an empty dict
    # at first.
    state: Any

    @property
    def deadline(self) -> datetime:
        """The time at which the run is ended, with its time zone."""
        ...

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Report how far the run has come: a fraction from 0 to 1, if it is known, and what it does."""
        ...

    def emit(self, data: Any) -> None:
        """Send a JSON value to those who follow the run, as a `yield` does. Errors: `ValueError`."""
        ...
