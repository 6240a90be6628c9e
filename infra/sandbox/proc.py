"""Read a guest's processes in `/proc`, where each process influences what can be read.

The first thread of a process may have ended while others live: then the files of the process are empty and those of
its threads are not. A process may fork and exit at any moment. A file that should be readable and is not raises
`UnmeasurableProcess`, and never counts as nothing; a process that has ended holds nothing.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from infra.sandbox import linux

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Reads are repeated this often when a thread ends between two of them.
_MAX_READ_ATTEMPTS: Final = 4
_PF_EXITING: Final = 0x4  # PF_EXITING
_GONE_ERRORS: Final = (FileNotFoundError, ProcessLookupError)


class UnmeasurableProcess(Exception):
    """Report that something of a living guest could not be read. The message names it."""


def list_processes(pid: int) -> list[str]:
    """Return the folders in `/proc` of every process of the tree whose first process this is, itself included.

    A tree with a process namespace is asked through its own `/proc`, which shows all of it and nothing else, however
    quickly its processes start and exit; without one, the tree is what can be reached from parent to child.
    Errors: `UnmeasurableProcess`.
    """
    process = f"/proc/{pid}"
    thread = find_thread(process)
    if thread is None:
        return []
    try:
        if os.stat(f"{thread}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino:
            return [process, *(f"/proc/{child}" for child in list_descendants(pid))]
        inside = f"{thread}/root/proc"
        return [f"{inside}/{name}" for name in os.listdir(inside) if name.isdigit()]
    except OSError as error:
        if has_ended(process):
            return []
        raise UnmeasurableProcess(f"its processes cannot be listed ({error.strerror})") from error


def list_descendants(pid: int) -> list[int]:
    """Return every process below one, as far as this process may see."""
    processes, unseen = list[int](), [pid]
    while unseen:
        children = _list_children(unseen.pop())
        processes += children
        unseen += children
    return processes


def find_sharers(pid: int) -> set[str]:
    """Return the processes below one that share all their memory with their parent, by their number in its namespace.

    A program that is being started does, until its exec. Where the kernel does not say, the set is empty.
    """
    sharers = set()
    for parent in (pid, *list_descendants(pid)):
        for child in _list_children(parent):
            if linux.is_sharing_memory(parent, child):
                with contextlib.suppress(OSError, StopIteration):
                    lines = _read_file(f"/proc/{child}/status").splitlines()
                    sharers.add(next(line.split()[-1] for line in lines if line.startswith("NSpid:")))
    return sharers


def _list_children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children += map(int, _read_file(f"/proc/{pid}/task/{task}/children").split())
    return children


def find_thread(process: str) -> str | None:
    """Return the folder of a thread that lives, or None once all have ended. Errors: `UnmeasurableProcess`."""
    try:
        for thread in list_threads(process):
            if _is_alive(read_stat(thread)):
                return thread
    except OSError as error:
        raise UnmeasurableProcess(f"its threads cannot be read ({error.strerror})") from error
    return None


def has_ended(process: str) -> bool:
    """Return whether no thread of a process lives. Errors: `UnmeasurableProcess`."""
    return find_thread(process) is None


def list_threads(process: str) -> Iterator[str]:
    """Yield the folders of a process' threads, the first thread first; nothing once it has gone."""
    try:
        names = os.listdir(f"{process}/task")
    except _GONE_ERRORS:
        return
    for name in names:
        yield f"{process}/task/{name}"


def read_stat(thread: str) -> list[str]:
    """Return the fields of `stat` behind the name, from the state on; empty once the thread has gone."""
    try:
        return _read_file(f"{thread}/stat").rpartition(")")[2].split()
    except _GONE_ERRORS:
        return []


def measure_process(process: str, file: str, parse: Callable[[str], int | None]) -> int:
    """Return what `parse` makes of a file of the process or, once its first thread has ended, of one that lives.

    `parse` answers None for a thread without memory of its own. 0 once the process has ended.
    Errors: `UnmeasurableProcess`.
    """
    thread: str | None = process
    for _ in range(_MAX_READ_ATTEMPTS):
        try:
            value = parse(_read_file(f"{thread}/{file}"))
        except _GONE_ERRORS:
            value = None
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it has another form"
            raise UnmeasurableProcess(f"{file} cannot be read ({reason})") from error
        if value is not None:
            return value
        thread = find_thread(process)
        if thread is None:
            return 0
    raise UnmeasurableProcess(f"{file} of a process that lives is empty")


def _is_alive(stat: list[str]) -> bool:
    # An exiting thread has released its memory already, and looks alive until it is scheduled.
    return bool(stat) and stat[0] not in ("Z", "X", "x") and not int(stat[6]) & _PF_EXITING


def _read_file(path: str) -> str:
    with open(path) as file:
        return file.read()
