"""Watch a whole process tree while it runs: memory, files in memory-backed folders, sessions."""

import contextlib
import os
import time
from typing import Final

from infra.sandbox.proc import (
    PAGE_BYTES,
    UnmeasurableProcess,
    find_sharers,
    find_thread,
    has_ended,
    list_processes,
    list_threads,
    measure_process,
    read_stat,
)

# Counting shared pages once is costly, so it is not done more often than this, in seconds.
EXACT_COUNT_SECONDS: Final = 0.3
# A process that forks and ends while it is counted is missing in the sum: then the tree is counted anew, so often at
# once, and after that with pauses of so many times what the count took.
MAX_EXACT_COUNTS: Final = 3
PAUSE_FACTOR: Final = 2
# A tree over a limit is checked again after this many seconds: a starting or ending process is counted wrongly.
RECHECK_SECONDS: Final = 0.01
# A process may take this long to stop: on a busy machine it must be scheduled first.
STOP_TIMEOUT_SECONDS: Final = 2.0

# An empty socket counts as this many bytes. While all sockets of the host hold less than `SOCKET_SCAN_BYTES` in the
# kernel, those of a sandbox are not counted one by one, which takes milliseconds.
EMPTY_SOCKET_BYTES: Final = 4096
SOCKET_SCAN_BYTES: Final = 32 << 20

# A run may create this many files in memory; the size of a tmpfs does not bound its inodes.
MAX_FILES: Final = 20_000
# Where no control group shares the processors, each session gets as much of them as any other session of the host.
MAX_SESSIONS: Final = 8
# Then a sandbox's session gets a smaller share, by this nice value.
_AUTOGROUP_NICE: Final = 5


class ResourceWatchdog:
    """Check a whole tree while it runs: memory in MiB, files in memory-backed folders, and sessions.

    Limits of single processes do not add up to a limit of the tree, and the size of a tmpfs does not bound its inodes.
    Data in TCP sockets, where a program may have some, belongs to no process, and to no group in version 1. A check
    takes a fraction of a millisecond; the first is due after one interval. A tree that cannot be measured is ended.
    """

    def __init__(
        self,
        memory_mb: int,
        max_files: int,
        has_sockets: bool = False,
        *,
        interval_seconds: float = 0.05,
        max_sessions: int | None = None,
    ) -> None:
        self._memory_limit_bytes = memory_mb << 20
        self._max_files, self._has_sockets, self._max_sessions = max_files, has_sockets, max_sessions
        self.interval_seconds = interval_seconds
        self._next_exact_count = 0.0
        self._is_priority_lowered = False

    def find_excess(self, pid: int) -> str | None:
        """Return the limit that the tree of this process has passed, as the reason to kill it, or None. Blocks."""
        reason = self._check_limits(pid, throttled=True)
        if reason is None:
            return None
        time.sleep(RECHECK_SECONDS)
        return self._check_limits(pid, throttled=False)

    def _check_limits(self, pid: int, throttled: bool) -> str | None:
        try:
            return self._measure_tree(pid, throttled)
        except UnmeasurableProcess as error:
            return f"not_measurable:{error}"

    def _measure_tree(self, pid: int, throttled: bool) -> str | None:
        processes = list_processes(pid)
        files, in_files = _measure_files(pid)
        if files > self._max_files:
            return f"too_many_files:{files}"
        if self._has_sockets:
            in_files += _measure_sockets(pid)
        if self._max_sessions is not None:
            self._lower_priority(pid)
            sessions = _count_sessions(processes)
            if sessions > self._max_sessions:
                return f"too_many_sessions:{sessions}"
        sizes = _measure_resident(processes)
        if in_files + sum(sizes.values()) <= self._memory_limit_bytes:
            return None
        if throttled and time.monotonic() < self._next_exact_count:
            return None
        return self._check_exactly(pid, in_files, list(sizes))

    def _check_exactly(self, pid: int, in_files: int, processes: list[str]) -> str | None:
        begun = time.monotonic()
        for _ in range(MAX_EXACT_COUNTS):
            used, is_complete = _count_exactly(pid, processes)
            used += in_files
            if used > self._memory_limit_bytes:
                return f"out_of_memory:{used >> 20}"
            if is_complete:
                self._next_exact_count = time.monotonic() + EXACT_COUNT_SECONDS
                return None
            processes = list(_measure_resident(list_processes(pid)))
        now = time.monotonic()
        self._next_exact_count = now + min(EXACT_COUNT_SECONDS, PAUSE_FACTOR * (now - begun))
        return None

    def _lower_priority(self, pid: int) -> None:
        """Lower the processor share of the tree's first session, once, where sessions share the processors."""
        if not self._is_priority_lowered:
            # The kernel refuses ordinary users who write too often; then the next check tries again.
            with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as file:
                file.write(str(_AUTOGROUP_NICE))
                self._is_priority_lowered = True


def _measure_files(pid: int) -> tuple[int, int]:
    """Return number and bytes of the files in a sandbox's memory-backed folders. Errors: `UnmeasurableProcess`."""
    thread = find_thread(f"/proc/{pid}")
    if thread is None:
        return 0, 0
    count = size = 0
    try:
        for folder in ("tmp", "dev/shm"):
            usage = os.statvfs(f"{thread}/root/{folder}")
            count += usage.f_files - usage.f_ffree
            size += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    except OSError as error:
        if has_ended(f"/proc/{pid}"):
            return 0, 0
        raise UnmeasurableProcess(f"its files cannot be counted ({error.strerror})") from error
    return count, size


def _measure_resident(processes: list[str]) -> dict[str, int]:
    """Return the bytes in memory of each process that has not ended. Errors: `UnmeasurableProcess`."""
    sizes = {process: measure_process(process, "statm", _parse_resident) for process in processes}
    return {process: size for process, size in sizes.items() if size}


def _count_exactly(pid: int, processes: list[str]) -> tuple[int, bool]:
    """Return the bytes that processes hold, with shared pages counted once, and whether none ended meanwhile.

    Errors: `UnmeasurableProcess`.
    """
    sharers = find_sharers(pid)
    sizes = {process: measure_process(process, "smaps_rollup", _parse_proportional) for process in processes}
    # Sharing before and after means sharing in between: a process with memory of its own never begins to share.
    counted_twice = sharers & find_sharers(pid) if sharers else sharers
    used = sum(size for process, size in sizes.items() if process.rpartition("/")[2] not in counted_twice)
    return used, all(sizes.values())


def _count_sessions(processes: list[str]) -> int:
    return len({stat[3] for process in processes if (stat := read_stat(process)) and stat[0] not in ("Z", "X")})


def _measure_sockets(pid: int) -> int:
    """Return the bytes that a sandbox's TCP sockets hold in the kernel. Errors: `UnmeasurableProcess`."""
    return measure_process(f"/proc/{pid}", "net/sockstat", lambda text: _parse_sockets(pid, text))


def _parse_sockets(pid: int, sockstat: str) -> int | None:
    words = next((line for line in sockstat.splitlines() if line.startswith("TCP:")), "").split()
    if not words:
        return None
    # `inuse` is this network's, `mem` the whole host's, in pages.
    count, pages = int(words[2]), int(words[10])
    queued = (
        measure_process(f"/proc/{pid}", "net/tcp", _parse_queues)
        if count and pages * PAGE_BYTES > SOCKET_SCAN_BYTES
        else 0
    )
    return count * EMPTY_SOCKET_BYTES + queued


def _parse_queues(table: str) -> int | None:
    lines = table.splitlines()
    total = 0
    for line in lines[1:]:
        _, _, _, state, queues, *_ = line.split()
        if state != "0A":  # of a listener it is the length of its queue
            total += sum(int(part, 16) for part in queues.split(":"))
    return total if lines else None


def _parse_resident(statm: str) -> int | None:
    size, resident, *_ = statm.split()
    return int(resident) * PAGE_BYTES if int(size) else None


def _parse_proportional(rollup: str) -> int | None:
    """Return the bytes that a process holds, with its part of the pages that it shares."""
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), None)


def _parse_private(rollup: str) -> int | None:
    """Return the bytes that a process shares with no other."""
    lines = [line.split() for line in rollup.splitlines()]
    private = [int(line[1]) for line in lines if line[0].startswith("Private_")]
    return sum(private) * 1024 if private else None


def measure_stopped(pid: int | None, fenced: bool) -> int | None:
    """Return the bytes that one process alone holds, files in memory included, once all its threads have stopped.

    None if it is not alone, has made more files than a run may, or cannot be measured. Before it is `fenced`, the
    folders and processes that it sees are the host's, and nothing runs in it but our own code. Blocks.
    """
    if pid is None or not wait_until_stopped(pid):
        return None
    process = f"/proc/{pid}"
    try:
        if not fenced:
            return measure_process(process, "smaps_rollup", _parse_private)
        if len(list_processes(pid)) != 1:
            return None
        files, in_files = _measure_files(pid)
        if files > MAX_FILES:
            return None
        return in_files + _measure_sockets(pid) + measure_process(process, "smaps_rollup", _parse_private)
    except UnmeasurableProcess:
        return None


def is_awake(pid: int, fenced: bool) -> bool:
    """Return whether a stopped process runs again, or has started others, or cannot be inspected.

    As for `measure_stopped`, what it sees before it is `fenced` is the host's.
    """
    try:
        return not _is_stopped(pid) or (fenced and len(list_processes(pid)) > 1)
    except (OSError, UnmeasurableProcess):
        return True


def wait_until_stopped(pid: int) -> bool:
    """Return whether a process and all its threads stop, or end, within `STOP_TIMEOUT_SECONDS`. Blocks."""
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        with contextlib.suppress(OSError):
            if _is_stopped(pid):
                return True
        time.sleep(0.0005)
    return False


def _is_stopped(pid: int) -> bool:
    stats = [read_stat(thread) for thread in list_threads(f"/proc/{pid}")]
    return all(not stat or stat[0] in ("T", "t", "Z", "X") for stat in stats)
