"""Looking at a whole process tree while it runs: memory, and files in memory-backed folders."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

# Counting shared pages once is costly, so it is not done more often than this, in seconds.
EXACT: Final = 0.3


class Watch:
    """Looks at the whole tree while it runs: memory in MiB and files in memory-backed folders.

    Limits of single processes do not add up to a limit of the tree, and the size of a tmpfs does
    not bound its inodes. A look costs a fraction of a millisecond; the first is to come after one interval.
    """

    def __init__(self, memory_mb: int, max_files: int, interval: float = 0.05) -> None:
        self._memory = memory_mb << 20
        self._files = max_files
        self.interval = interval
        self._looked = 0.0

    def look(self, pid: int) -> str | None:
        """The limit that the tree of this process has passed, as the reason to kill it, or None."""
        files, in_files = _files(pid)
        if files > self._files:
            return f"too_many_files:{files}"
        used = _resident(pid, False) + in_files
        if used <= self._memory:
            return None
        if time.monotonic() - self._looked < EXACT:
            return None
        self._looked = time.monotonic()
        used = _resident(pid, True) + in_files
        return f"out_of_memory:{used >> 20}" if used > self._memory else None


def _files(pid: int) -> tuple[int, int]:
    """How many files lie in the memory-backed folders of a sandbox, and how many bytes."""
    count = size = 0
    for folder in ("tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            usage = os.statvfs(f"/proc/{pid}/root/{folder}")
            count += usage.f_files - usage.f_ffree
            size += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    return count, size


def _resident(pid: int, exact: bool) -> int:
    """Bytes of memory a tree holds. `exact` counts shared pages once, and costs more to know."""
    total = 0
    for here in (pid, *descendants(pid)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += _proportional(here) if exact else int(Path(f"/proc/{here}/statm").read_text().split()[1]) * 4096
    return total


def descendants(pid: int) -> list[int]:
    """Every process below one, as far as this process may see."""
    found, unseen = [], [pid]
    while unseen:
        here = unseen.pop()
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{here}/task"):
                children = [int(child) for child in Path(f"/proc/{here}/task/{task}/children").read_text().split()]
                found += children
                unseen += children
    return found


def _proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
