"""Describe how a process tree controls its first process."""

from collections.abc import Callable
from typing import Protocol


class TreeLeader(Protocol):
    """Describe a tree's first process, as the backend that started it knows it."""

    pid1: int | None

    def watch_exit(self, on_exit: Callable[[int | None, str | None], None]) -> None:
        """Call `on_exit` once it has ended: with its status, or with the reason why that is unknown."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to the tree; it may be called any number of times."""
        ...

    def send_signal(self, number: int) -> None:
        """Send another signal to the first process inside."""
        ...

    def close(self) -> None:
        """Close its descriptors; called once, after its end."""
        ...
