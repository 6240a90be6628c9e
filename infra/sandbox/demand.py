"""Decide how many slots a version gets, and which runs are runs of the same code. Pure: the time is an argument."""

import os
from pathlib import Path
from typing import Final

from domain.ports import ProgramNetwork, SandboxProgram

# Concurrency is remembered for one to two windows.
DEMAND_WINDOW_SECONDS: Final = 30.0
# A version that was not used for this long keeps one slot, and after `COLD_AFTER_SECONDS` none.
COOL_AFTER_SECONDS: Final = 30.0
COLD_AFTER_SECONDS: Final = 300.0
# Runs that follow each other closely need a second slot while the successor of the first is being made.
# A version that ran once, and perhaps never will again, is not worth more than one.
MIN_WARM_SLOTS: Final = 2
MAX_VERSION_SLOTS: Final = 16

# The first part names the code, the second all settings that what was imported may have read.
VersionKey = tuple[tuple[str, str | None, str], tuple[int, ProgramNetwork | None, tuple[tuple[str, str], ...]]]
FolderIdentity = tuple[tuple[int, int], ...]


def get_version_key(program: SandboxProgram) -> VersionKey:
    """Return all that decides what is imported: the code by name, and its settings. The timeout does not."""
    environment = str(program.environment) if program.environment is not None else None
    settings = program.memory_mb, program.network, tuple(sorted(program.variables.items()))
    return (str(program.code), environment, program.entrypoint), settings


def read_folder_identity(program: SandboxProgram) -> FolderIdentity | None:
    """Return device and inode of the folders that have these names now; None if one is gone."""
    try:
        return tuple(_read_inode(folder) for folder in (program.code, program.environment) if folder is not None)
    except OSError:
        return None


def _read_inode(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


class SlotDemand:
    """Track the recent use of a version. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.last_used = float("-inf")
        self.running_count = 0
        self._window_start = float("-inf")
        self._peak = self._peak_before = 0
        self._uses = self._uses_before = 0

    def record_start(self, now: float) -> None:
        """Record that a run starts."""
        self.last_used = now
        self.running_count += 1
        self._roll_window(now)
        self._peak = max(self._peak, self.running_count)
        self._uses += 1

    def record_end(self, now: float) -> None:
        """Record that a run has ended."""
        self.last_used = now
        self.running_count -= 1

    def count_wanted_slots(self, now: float) -> int:
        """Return how many slots are to wait for the next runs."""
        self._roll_window(now)
        idle = 0.0 if self.running_count else now - self.last_used
        if idle >= COLD_AFTER_SECONDS:
            return 0
        if idle >= COOL_AFTER_SECONDS:
            return 1
        least = max(1, min(MIN_WARM_SLOTS, self._uses + self._uses_before))
        return min(MAX_VERSION_SLOTS, max(least, self._peak, self._peak_before))

    def _roll_window(self, now: float) -> None:
        if now - self._window_start >= DEMAND_WINDOW_SECONDS:
            recent = now - self._window_start < 2 * DEMAND_WINDOW_SECONDS
            self._peak_before, self._uses_before = (self._peak, self._uses) if recent else (0, 0)
            self._window_start, self._peak, self._uses = now, self.running_count, 0
