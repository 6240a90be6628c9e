"""Control groups of sandboxes: every process of a sandbox is in its group before it runs, or does not run."""

import asyncio
import functools
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.ports import ProgramNetwork, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox import cgroups
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.cgroups import ControlGroup, ControlGroupFactory, join_group
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.proc import has_ended, list_descendants
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.sandbox_runs import ignore_output

SLEEPING_PROGRAM = (
    "import os, time\ntime.sleep(0.3)\ndef handle(p):\n    os.fork()\n    time.sleep(0.3)\n    return 1\n"
)
UNIFIED_ROOT = next(
    (path for path in (cgroups.CGROUP_ROOT, cgroups.CGROUP_ROOT / "unified") if (path / "cgroup.procs").exists()), None
)


@pytest.fixture
def code_folder(readable_folder: Path) -> Path:
    (readable_folder / "agent.py").write_text(SLEEPING_PROGRAM)
    return readable_folder


def _build_program(code_folder: Path, gateway: bool = False) -> SandboxProgram:
    return SandboxProgram(
        code=code_folder,
        environment=None,
        entrypoint="agent:handle",
        timeout=20,
        memory_mb=128,
        network=ProgramNetwork(gateway=True) if gateway else None,
    )


async def _unpack_archive(sandbox: BubblewrapSandbox, code_folder: Path) -> None:
    archive, out = code_folder / "archive.tar.gz", code_folder / "out"
    with tarfile.open(archive, "w:gz") as archive_file:
        for number in range(2000):
            archive_file.addfile(tarfile.TarInfo(f"{number}.py"), io.BytesIO())
    out.mkdir()
    assert (await sandbox.unpack_archive(archive, out)).error is None


async def _compile_modules(sandbox: BubblewrapSandbox, code_folder: Path) -> None:
    for number in range(200):
        (code_folder / f"module_{number}.py").write_text("x = 1\n" * 50)
    assert await sandbox.compile_bytecode(code_folder, "/agent") == []


OPERATIONS: dict[str, Callable[[BubblewrapSandbox, Path], Any]] = {
    "run": lambda sandbox, code_folder: sandbox.run_program(_build_program(code_folder), b"{}", ignore_output),
    "check": lambda sandbox, code_folder: sandbox.check_entrypoint(_build_program(code_folder), ignore_output),
    "gateway": lambda sandbox, code_folder: sandbox.run_program(
        _build_program(code_folder, gateway=True), b"{}", ignore_output
    ),
    "unpack": _unpack_archive,
    "compile": _compile_modules,
}


@pytest.mark.skipif(not ControlGroupFactory().bounds_memory, reason="this host gives this user no control groups")
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_bubblewrap_process_is_in_the_group(
    monkeypatch: pytest.MonkeyPatch, code_folder: Path, operation: str
) -> None:
    sandbox, observations = BubblewrapSandbox(), list[tuple[set[int], set[int]]]()
    start_tree = sandbox._start_tree

    async def observe(tree: ProcessTree) -> None:
        while not tree.is_gone:
            if (pid := tree.pid) is not None and tree._group is not None:
                # List these before the members: a process born in between is a member and not among these.
                descendants = {pid, *list_descendants(pid)}
                members = tree._group.list_members()
                # A process that has ended is no member any more.
                observations.append(({pid for pid in descendants if not has_ended(f"/proc/{pid}")}, members))
            await asyncio.sleep(0.002)

    observers = []

    async def start_observed_tree(*arguments: Any) -> ProcessTree:
        tree = await start_tree(*arguments)
        observers.append(asyncio.create_task(observe(tree)))
        return tree

    monkeypatch.setattr(sandbox, "_start_tree", start_observed_tree)
    await OPERATIONS[operation](sandbox, code_folder)
    await asyncio.gather(*observers)
    assert observations, "no process was observed"
    for descendants, members in observations:
        assert descendants <= members


@pytest.fixture
def closed_group(tmp_path: Path) -> ControlGroup:
    """Return a group that no process can join."""
    (tmp_path / "cgroup.procs").symlink_to("/dev/full")
    return ControlGroup((tmp_path,), None, 1)


@pytest.mark.parametrize("backend_name", ["bubblewrap", "forkserver"])
async def test_sandbox_without_its_group_does_not_start(
    monkeypatch: pytest.MonkeyPatch, code_folder: Path, closed_group: ControlGroup, backend_name: str
) -> None:
    server = ForkServerBackend() if backend_name == "forkserver" else None
    base = BubblewrapSandbox()
    sandbox = WarmSandbox(base, server, 0)
    monkeypatch.setattr((server or base)._cgroups, "create_group", lambda _: closed_group)
    with pytest.raises(DomainError) as error:
        await sandbox.run_program(_build_program(code_folder), b"{}", ignore_output)
    assert error.value.code == "sandbox_unavailable"
    assert "No space left on device" in error.value.detail
    if server is None:
        assert not (await sandbox.get_status()).available

    def fail_to_create(_: int) -> ControlGroup:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr((server or base)._cgroups, "create_group", fail_to_create)
    with pytest.raises(DomainError) as error:
        await sandbox.run_program(_build_program(code_folder), b"{}", ignore_output)
    assert error.value.code == "sandbox_unavailable"
    await sandbox.close()


@pytest.mark.skipif(
    UNIFIED_ROOT is None or os.geteuid() != 0, reason="this host lets this user make no version 2 groups"
)
def test_child_joins_a_version_2_group_before_exec() -> None:
    assert UNIFIED_ROOT is not None
    folder = UNIFIED_ROOT / f"paddock-{os.getpid()}-test"
    folder.mkdir()
    group = ControlGroup((folder,), None, 2)
    try:
        with group.open_entries() as entries:
            result = subprocess.run(
                ["/bin/cat", "/proc/self/cgroup"],
                preexec_fn=functools.partial(join_group, entries),
                capture_output=True,
                text=True,
                check=True,
            )
        assert f"0::/{folder.name}" in result.stdout.splitlines()
        assert group.list_members() == set()
    finally:
        assert group.remove()


@pytest.mark.parametrize(
    ("enabled", "memory", "cpu"), [("memory cpu pids", True, True), ("memory", True, False), ("pids", False, False)]
)
def test_version_2_groups_need_delegated_controllers(tmp_path: Path, enabled: str, memory: bool, cpu: bool) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory cpu pids io\n")
    (tmp_path / "cgroup.subtree_control").write_text(enabled + "\n")
    candidates = cgroups._find_candidates(tmp_path)
    assert (candidates.version, candidates.memory, candidates.cpu) == (
        2,
        tmp_path if memory else None,
        tmp_path if cpu else None,
    )
    # The kernel does not create the files of a group here, so no controller works.
    factory = ControlGroupFactory(tmp_path)
    assert (factory.bounds_memory, factory.shares_processors) == (False, False)


@pytest.mark.skipif(not ControlGroupFactory().bounds_memory, reason="this host gives this user no control groups")
async def test_groups_are_removed_with_their_sandboxes(code_folder: Path) -> None:
    """Remove a group that was still in use before the next one is created."""
    group = ControlGroupFactory().create_group(64)
    assert group is not None
    with subprocess.Popen(["/bin/sleep", "60"]) as sleeping:
        group.add_process(sleeping.pid)
        assert not group.remove()
        sleeping.kill()
    sandbox = BubblewrapSandbox()
    for _ in range(3):
        await sandbox.run_program(
            msgspec.structs.replace(_build_program(code_folder), entrypoint="json:dumps"), b"{}", ignore_output
        )
    folders_left = [path for folder in group._folders for path in folder.parent.glob(f"paddock-{os.getpid()}-*")]
    assert folders_left == []
