"""Control groups around sandboxes: everything of a sandbox is in its group before it runs, or does not run."""

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

SLEEP = "import os, time\ntime.sleep(0.3)\ndef handle(p):\n    os.fork()\n    time.sleep(0.3)\n    return 1\n"
UNIFIED = next(
    (path for path in (cgroups.CGROUP_ROOT, cgroups.CGROUP_ROOT / "unified") if (path / "cgroup.procs").exists()), None
)


def _ignore(_: str, __: bytes) -> None:
    return None


@pytest.fixture
def code(readable: Path) -> Path:
    (readable / "agent.py").write_text(SLEEP)
    return readable


def _program(code: Path, gateway: bool = False) -> SandboxProgram:
    return SandboxProgram(
        code=code,
        environment=None,
        entrypoint="agent:handle",
        timeout=20,
        memory_mb=128,
        network=ProgramNetwork(gateway=True) if gateway else None,
    )


async def _unpack(sandbox: BubblewrapSandbox, code: Path) -> None:
    archive, out = code / "archive.tar.gz", code / "out"
    with tarfile.open(archive, "w:gz") as packed:
        for number in range(2000):
            packed.addfile(tarfile.TarInfo(f"{number}.py"), io.BytesIO())
    out.mkdir()
    assert (await sandbox.unpack_archive(archive, out)).error is None


async def _compile(sandbox: BubblewrapSandbox, code: Path) -> None:
    for number in range(200):
        (code / f"module_{number}.py").write_text("x = 1\n" * 50)
    assert await sandbox.compile_bytecode(code, "/agent") == []


KINDS: dict[str, Callable[[BubblewrapSandbox, Path], Any]] = {
    "run": lambda sandbox, code: sandbox.run_program(_program(code), b"{}", _ignore),
    "check": lambda sandbox, code: sandbox.check_entrypoint(_program(code), _ignore),
    "gateway": lambda sandbox, code: sandbox.run_program(_program(code, gateway=True), b"{}", _ignore),
    "unpack": _unpack,
    "compile": _compile,
}


@pytest.mark.skipif(not ControlGroupFactory().bounds_memory, reason="this host gives this user no control groups")
@pytest.mark.parametrize("kind", KINDS)
async def test_every_process_that_bubblewrap_makes_is_in_the_group(
    monkeypatch: pytest.MonkeyPatch, code: Path, kind: str
) -> None:
    sandbox, looks = BubblewrapSandbox(), list[tuple[set[int], set[int]]]()
    make = sandbox._start_tree

    async def observe(tree: ProcessTree) -> None:
        while not tree.is_gone:
            if (pid := tree.pid) is not None and tree._group is not None:
                # Before its members: whoever is born in between is a member and not among these.
                born = {pid, *list_descendants(pid)}
                members = tree._group.list_members()
                # One that has ended is no member any more.
                looks.append(({one for one in born if not has_ended(f"/proc/{one}")}, members))
            await asyncio.sleep(0.002)

    observers = []

    async def made(*arguments: Any) -> ProcessTree:
        tree = await make(*arguments)
        observers.append(asyncio.create_task(observe(tree)))
        return tree

    monkeypatch.setattr(sandbox, "_start_tree", made)
    await KINDS[kind](sandbox, code)
    await asyncio.gather(*observers)
    assert looks, "there was nothing to look at"
    for born, members in looks:
        assert born <= members


@pytest.fixture
def closed(tmp_path: Path) -> ControlGroup:
    """A group that nobody can join."""
    (tmp_path / "cgroup.procs").symlink_to("/dev/full")
    return ControlGroup((tmp_path,), None, 1)


@pytest.mark.parametrize("way", ["bubblewrap", "forkserver"])
async def test_without_its_group_a_sandbox_does_not_start(
    monkeypatch: pytest.MonkeyPatch, code: Path, closed: ControlGroup, way: str
) -> None:
    server = ForkServerBackend() if way == "forkserver" else None
    base = BubblewrapSandbox()
    sandbox = WarmSandbox(base, server, 0)
    monkeypatch.setattr((server or base)._cgroups, "create_group", lambda _: closed)
    with pytest.raises(DomainError) as caught:
        await sandbox.run_program(_program(code), b"{}", _ignore)
    assert caught.value.code == "sandbox_unavailable"
    assert "No space left on device" in caught.value.detail
    if server is None:
        assert not (await sandbox.get_status()).available

    def no_more(_: int) -> ControlGroup:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr((server or base)._cgroups, "create_group", no_more)
    with pytest.raises(DomainError) as caught:
        await sandbox.run_program(_program(code), b"{}", _ignore)
    assert caught.value.code == "sandbox_unavailable"
    await sandbox.close()


@pytest.mark.skipif(UNIFIED is None or os.geteuid() != 0, reason="this host lets this user make no version 2 groups")
def test_a_child_joins_a_version_2_group_before_it_is_a_program() -> None:
    assert UNIFIED is not None
    folder = UNIFIED / f"paddock-{os.getpid()}-test"
    folder.mkdir()
    group = ControlGroup((folder,), None, 2)
    try:
        with group.open_entries() as entrances:
            told = subprocess.run(
                ["/bin/cat", "/proc/self/cgroup"],
                preexec_fn=functools.partial(join_group, entrances),
                capture_output=True,
                text=True,
                check=True,
            )
        assert f"0::/{folder.name}" in told.stdout.splitlines()
        assert group.list_members() == set()
    finally:
        assert group.remove()


@pytest.mark.parametrize(
    ("enabled", "memory", "cpu"), [("memory cpu pids", True, True), ("memory", True, False), ("pids", False, False)]
)
def test_version_2_groups_are_made_where_controllers_are_delegated(
    tmp_path: Path, enabled: str, memory: bool, cpu: bool
) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory cpu pids io\n")
    (tmp_path / "cgroup.subtree_control").write_text(enabled + "\n")
    places = cgroups._find_candidates(tmp_path)
    assert (places.version, places.memory, places.cpu) == (
        2,
        tmp_path if memory else None,
        tmp_path if cpu else None,
    )
    # The kernel does not make the files of a group here, so that it turns out that there are none.
    found = ControlGroupFactory(tmp_path)
    assert (found.bounds_memory, found.shares_processors) == (False, False)


@pytest.mark.skipif(not ControlGroupFactory().bounds_memory, reason="this host gives this user no control groups")
async def test_groups_go_with_their_sandboxes(code: Path) -> None:
    """One that was still emptying is removed before the next is made."""
    made = ControlGroupFactory().create_group(64)
    assert made is not None
    with subprocess.Popen(["/bin/sleep", "60"]) as holding:
        made.add_process(holding.pid)
        assert not made.remove()
        holding.kill()
    sandbox = BubblewrapSandbox()
    for _ in range(3):
        await sandbox.run_program(msgspec.structs.replace(_program(code), entrypoint="json:dumps"), b"{}", _ignore)
    left = [path for folder in made._folders for path in folder.parent.glob(f"paddock-{os.getpid()}-*")]
    assert left == []
