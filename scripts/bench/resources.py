"""Measure the memory and processor time of the processes of a running system."""

import contextlib
import os
from pathlib import Path

from scripts.system import System

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def measure_system_memory(system: System) -> dict[str, float]:
    """Return the MiB that each process and its children hold, shared pages counted once (`Pss` of smaps_rollup)."""
    roots = {process.name: process.pid for process in system.processes}
    for part in system.services:
        if part is not None and part.child is not None:
            roots[part.child.name] = part.child.process.pid
    return {name: measure_memory_mib(pid) for name, pid in roots.items() if pid is not None}


def measure_memory_mib(pid: int) -> float:
    """Return the MiB that a process and everything below it hold, shared pages counted once."""
    return sum(map(_read_memory_mib, _list_tree(pid, _map_children())))


def measure_cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time of a process and everything below it so far, ended children included."""
    return sum(map(_read_cpu_seconds, _list_tree(pid, _map_children())))


def _map_children() -> dict[int, list[int]]:
    children = dict[int, list[int]]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(words[1]), []).append(int(stat.parent.name))
    return children


def _list_tree(pid: int, children: dict[int, list[int]]) -> list[int]:
    return [pid, *(below for child in children.get(pid, ()) for below in _list_tree(child, children))]


def _read_memory_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _read_cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, words[11:15])) / _TICKS_PER_SECOND
    return 0.0
