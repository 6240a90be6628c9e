"""Looking at a whole process tree while it runs: memory, and files in memory-backed folders."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

# Counting shared pages once is costly, so it is not done more often than this, in seconds.
EXACT: Final = 0.3
# How long a process may take to stop: on a busy machine it has to get its turn first.
STOP_SECONDS: Final = 2.0

# What a socket without anything in it is taken to hold, and what those of the whole host may hold together in the
# kernel until those of a sandbox are counted one by one, which takes milliseconds; bytes.
SOCKET: Final = 4096
NOTICED: Final = 32 << 20

# What a run may make of files in memory; the size of a tmpfs does not bound its inodes.
MAX_FILES: Final = 20_000


class Watch:
    """Looks at the whole tree while it runs: memory in MiB and files in memory-backed folders.

    Limits of single processes do not add up to a limit of the tree, and the size of a tmpfs does
    not bound its inodes. What lies in TCP sockets, where a program may have some, belongs to no process, and
    to no group in version 1. A look costs a fraction of a millisecond; the first is to come after one interval.
    """

    def __init__(self, memory_mb: int, max_files: int, sockets: bool = False, interval: float = 0.05) -> None:
        self._memory = memory_mb << 20
        self._files, self._sockets = max_files, sockets
        self.interval = interval
        self._looked = 0.0

    def look(self, pid: int) -> str | None:
        """The limit that the tree of this process has passed, as the reason to kill it, or None."""
        files, in_files = _files(pid)
        if files > self._files:
            return f"too_many_files:{files}"
        if self._sockets:
            in_files += _in_sockets(pid)
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


def _in_sockets(pid: int) -> int:
    """Bytes that the TCP sockets of a sandbox's network hold in the kernel."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/net/sockstat").read_text().splitlines()
        words = next((line for line in lines if line.startswith("TCP:")), "").split()
        # `inuse` is this network's, `mem` the whole host's, in pages.
        count, pages = int(words[2]), int(words[10])
        return count * SOCKET + (_queued(pid) if count and pages * 4096 > NOTICED else 0)
    return 0


def _queued(pid: int) -> int:
    total = 0
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, _, _, state, queues, *_ = line.split()
        if state != "0A":  # of a listener it is the length of its queue
            total += sum(int(part, 16) for part in queues.split(":"))
    return total


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


def at_rest(pid: int | None) -> int | None:
    """The bytes that a process alone holds, files in memory included, once it and all its threads have stopped.

    None if it is not alone, or has made more files than a run may.
    """
    if pid is None or not stopped(pid) or descendants(pid):
        return None
    files, in_files = _files(pid)
    return None if files > MAX_FILES else _private(pid) + in_files + _in_sockets(pid)


def awake(pid: int) -> bool:
    """Whether a process that was stopped runs again, or has started others."""
    with contextlib.suppress(OSError):
        return not _rests(pid) or bool(descendants(pid))
    return False


def stopped(pid: int) -> bool:
    """Whether a process and all its threads stop, or end, within `STOP_SECONDS`. Blocks."""
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
        with contextlib.suppress(OSError):
            if _rests(pid):
                return True
        time.sleep(0.0005)
    return False


def _rests(pid: int) -> bool:
    tasks = [Path(f"/proc/{pid}/task/{task}/stat") for task in os.listdir(f"/proc/{pid}/task")]
    return all(stat.read_text().rsplit(")", 1)[1].split()[0] in ("T", "t", "Z", "X") for stat in tasks)


def _private(pid: int) -> int:
    """Bytes of memory that a process shares with no other."""
    with contextlib.suppress(OSError, ValueError):
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        return sum(int(line[1]) for line in lines if line[0].startswith("Private_")) * 1024
    return 0
