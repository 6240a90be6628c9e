"""Control groups for sandboxes, where the worker may make them: version 2 delegated to it, or version 1 as root.

They bound what no process limit sees: memory that the kernel holds for a tree, sockets' buffers, files in memory.
They share processors by sandbox rather than by session, at a lower weight than the API and the workers have. Where
there are none, the other guards stand alone; where there are some, a sandbox that cannot join its own is not started.
"""

import contextlib
import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
# Processor time of a sandbox where others want it too: a quarter of what a session outside gets. Version 1 counts
# from 1024, version 2 from 100.
CPU_SHARES: Final = 256
CPU_WEIGHT: Final = 25

_log = structlog.get_logger("paddock.sandbox")


class ControlGroup:
    """One sandbox's group: a folder in each hierarchy, of which `memory` bounds the memory, if any does."""

    def __init__(self, folders: tuple[Path, ...], memory: Path | None, version: int) -> None:
        self._folders, self._memory, self._version = folders, memory, version
        self.memory_mb = 0

    @contextlib.contextmanager
    def open_process_lists(self) -> Iterator[list[int]]:
        """Yield descriptors through which a child puts itself into the group, by `enter`. Errors: `OSError`."""
        with contextlib.ExitStack() as stack:
            entrances = []
            for folder in self._folders:
                entrances.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                stack.callback(os.close, entrances[-1])
            yield entrances

    def add_process(self, pid: int) -> None:
        """Put a process into the group; what it starts from then on belongs to it as well. Errors: `OSError`."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def list_members(self) -> set[int]:
        """Return the processes that are in all of its folders. Errors: `OSError`."""
        found = [set(map(int, (folder / "cgroup.procs").read_text().split())) for folder in self._folders]
        return set.intersection(*found)

    def limit_memory(self, memory_mb: int) -> None:
        """Bound its memory, in MiB. Errors: `OSError`."""
        self.memory_mb = memory_mb
        if self._memory is not None:
            # Some room above the watch's limit, which gives the better message; this one cannot be outrun.
            file = "memory.max" if self._version == 2 else "memory.limit_in_bytes"
            (self._memory / file).write_text(str((memory_mb + 32) << 20))

    def has_run_out(self) -> bool:
        """Whether the kernel killed something in it for memory."""
        if self._memory is None:
            return False
        file = "memory.events" if self._version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            words = dict(line.split() for line in (self._memory / file).read_text().splitlines())
            return int(words.get("oom_kill", "0")) > 0
        return False

    def remove(self) -> bool:
        """Remove the group. False if it is still emptying: then `Cgroups.make` tries again."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                try:
                    folder.rmdir()
                except OSError:
                    _unremoved_groups.add(self)
                    return False
        _unremoved_groups.discard(self)
        return True


# Groups that were not empty yet when their sandbox had ended.
_unremoved_groups: set[ControlGroup] = set()
_group_numbers = itertools.count()


def join_group(entrances: list[int]) -> None:
    """Put this process into the groups whose entrances these are. Errors: `OSError`."""
    for entrance in entrances:
        os.write(entrance, b"0")


class ControlGroupFactory:
    """Where this process may make groups, found out once per process by making one.

    `memory` and `cpu` say which of the two are wanted; only the attack suite wants less than both.
    """

    def __init__(self, root: Path = CGROUP_ROOT, memory: bool = True, cpu: bool = True) -> None:
        self._parents = _find_parents(root)
        self.bounds_memory = memory and self._parents.memory is not None
        self.shares_processors = cpu and self._parents.cpu is not None

    def create_group(self, memory_mb: int) -> ControlGroup | None:
        """Return a group with a limit in MiB, or None where there are no groups. Errors: `OSError`."""
        for left in list(_unremoved_groups):
            left.remove()
        memory = self._parents.memory if self.bounds_memory else None
        cpu = self._parents.cpu if self.shares_processors else None
        return _create_group(memory, cpu, self._parents.version, memory_mb)


class _GroupParents:
    """The folders in which groups can be made, per kind."""

    def __init__(self, version: int, memory: Path | None = None, cpu: Path | None = None) -> None:
        self.version, self.memory, self.cpu = version, memory, cpu


def _create_group(memory: Path | None, cpu: Path | None, version: int, memory_mb: int) -> ControlGroup | None:
    parents = list(dict.fromkeys(parent for parent in (memory, cpu) if parent is not None))
    if not parents:
        return None
    name = f"paddock-{os.getpid()}-{next(_group_numbers)}"
    group = ControlGroup(
        tuple(parent / name for parent in parents), memory / name if memory is not None else None, version
    )
    try:
        for parent in parents:
            (parent / name).mkdir()
        group.limit_memory(memory_mb)
        if cpu is not None:
            file, weight = ("cpu.weight", CPU_WEIGHT) if version == 2 else ("cpu.shares", CPU_SHARES)
            (cpu / name / file).write_text(str(weight))
        if memory is not None:
            # Without swap there is nothing to be set; with some, it must not be a second memory.
            for file, value in (
                (("memory.swap.max", "0"), ("memory.oom.group", "1")) if version == 2 else (("memory.swappiness", "0"),)
            ):
                with contextlib.suppress(OSError):
                    (memory / name / file).write_text(value)
    except BaseException:
        group.remove()
        raise
    return group


@functools.cache
def _find_parents(root: Path) -> _GroupParents:
    """Return where groups can be made, each kind tried with a process that does nothing."""
    places = _find_candidates(root)
    for parent in {places.memory, places.cpu} - {None}:
        for left in parent.glob("paddock-*"):  # type: ignore[union-attr]
            if not Path(f"/proc/{left.name.split('-')[1]}").exists():
                with contextlib.suppress(OSError):
                    left.rmdir()
    memory = places.memory if _can_create(places.memory, None, places.version) else None
    cpu = places.cpu if _can_create(None, places.cpu, places.version) else None
    return _GroupParents(places.version, memory, cpu)


def _can_create(memory: Path | None, cpu: Path | None, version: int) -> bool:
    if memory is None and cpu is None:
        return False
    try:
        group = _create_group(memory, cpu, version, 32)
        assert group is not None
        try:
            with group.open_process_lists() as entrances:
                subprocess.run(["/bin/true"], env={}, check=True, preexec_fn=functools.partial(join_group, entrances))
        finally:
            group.remove()
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no control groups for sandboxes", folder=str(memory or cpu), reason=str(error))
        return False
    return True


def _find_candidates(root: Path) -> _GroupParents:
    if (root / "cgroup.controllers").exists():
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        here = root / next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
        # Processes may not live beside groups, so a delegated worker makes its groups beside its own.
        for parent in dict.fromkeys((here.parent, root)):
            with contextlib.suppress(OSError):
                enabled = (parent / "cgroup.subtree_control").read_text().split()
                if {"memory", "cpu"} & set(enabled) and os.access(parent, os.W_OK):
                    return _GroupParents(
                        2, parent if "memory" in enabled else None, parent if "cpu" in enabled else None
                    )
        return _GroupParents(2)
    if os.geteuid() != 0:
        return _GroupParents(1)
    memory, cpu = root / "memory", root / "cpu"
    return _GroupParents(
        1,
        memory if (memory / "memory.limit_in_bytes").exists() else None,
        cpu if (cpu / "cpu.shares").exists() else None,
    )
