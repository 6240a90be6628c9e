"""How many slots a version deserves, and what makes two runs runs of the same code. Pure: the time is an argument."""

import os
from pathlib import Path
from typing import Final

from domain.ports import Program

# Concurrency is remembered for one to two windows; seconds.
WINDOW: Final = 30.0
# A version that was not used for this long keeps one slot, and after `COLD` none; seconds.
COOL: Final = 30.0
COLD: Final = 300.0
# Runs that follow each other closely meet the next slot while the first one's successor is being made.
# A version that ran once, and perhaps never will again, is not worth more than one.
LEAST: Final = 2
MOST_PER_VERSION: Final = 16

Key = tuple[str, str | None, str, int, bool]
Identity = tuple[tuple[int, int], ...]


def key(program: Program) -> Key:
    """All that decides what is imported, by name. The timeout does not."""
    environment = str(program.environment) if program.environment is not None else None
    return str(program.code), environment, program.entrypoint, program.memory_mb, program.gateway


def identity(program: Program) -> Identity | None:
    """Device and inode of the folders behind the names now; None if one is gone."""
    try:
        return tuple(_place(folder) for folder in (program.code, program.environment) if folder is not None)
    except OSError:
        return None


def _place(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


class Demand:
    """The recent use of one version. Times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.used = float("-inf")
        self.running = 0
        self._window = float("-inf")
        self._peak = self._peak_before = 0
        self._uses = self._uses_before = 0

    def begin(self, now: float) -> None:
        """A run begins."""
        self.used = now
        self.running += 1
        self._turn(now)
        self._peak = max(self._peak, self.running)
        self._uses += 1

    def end(self, now: float) -> None:
        """A run has ended."""
        self.used = now
        self.running -= 1

    def wanted(self, now: float) -> int:
        """How many slots shall wait for the next runs."""
        self._turn(now)
        idle = 0.0 if self.running else now - self.used
        if idle >= COLD:
            return 0
        if idle >= COOL:
            return 1
        least = max(1, min(LEAST, self._uses + self._uses_before))
        return min(MOST_PER_VERSION, max(least, self._peak, self._peak_before))

    def _turn(self, now: float) -> None:
        if now - self._window >= WINDOW:
            recent = now - self._window < 2 * WINDOW
            self._peak_before, self._uses_before = (self._peak, self._uses) if recent else (0, 0)
            self._window, self._peak, self._uses = now, self.running, 0
