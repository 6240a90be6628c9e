"""The worker's side of the fork server: starts it, asks it for slots, replaces it, and outlives it."""

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import SandboxProgram
from infra.sandbox import seccomp
from infra.sandbox.cgroups import ControlGroup, ControlGroupFactory
from infra.sandbox.exit_report import SandboxStartError
from infra.sandbox.fence import (
    CODE_FOLDER,
    EMPTY_FILES,
    EMPTY_FOLDERS,
    GUEST_ENVIRONMENT,
    SHM_BYTES,
    TMP_BYTES,
    TMP_FOLDER,
    Fence,
    find_interpreter,
    find_interpreter_root,
    list_guest_mounts,
    list_python_links,
    list_system_mounts,
)
from infra.sandbox.guest_protocol import MAX_ANSWER_BYTES, create_unavailable_error, create_watchdog, encode_head
from infra.sandbox.process import find_stage_folder
from infra.sandbox.process_tree import GuestPipes, ProcessTree
from infra.sandbox.users import release_uid, reserve_uid
from infra.sandbox.watchdog import ResourceWatchdog

# All slots of a server share one layout of memory and one hash seed: a server is replaced after so many.
MAX_SERVER_SLOTS: Final = 5000
MAX_SERVER_AGE_SECONDS: Final = 900.0
START_TIMEOUT_SECONDS: Final = 20.0
SERVER_LOST_MESSAGE: Final = "The sandbox's fork server ended while the agent ran."
_LAUNCHER_PATH: Final = Path(__file__).with_name("begin.py")
_GUEST_FOLDER: Final = Path(__file__).parents[1] / "guest"

_log = structlog.get_logger("paddock.sandbox")


class _ServerMessage(msgspec.Struct, kw_only=True):
    """What the server says: that it is ready, that a slot is made or could not be, or how one ended."""

    is_ready: bool = False
    slot: int = -1
    is_started: bool = False
    status: int | None = None
    error: str | None = None


class ForkedLeader:
    """The first process of a slot: a child of the server, known here by its pidfd."""

    def __init__(self, uid: int | None) -> None:
        self._uid = uid
        self._pidfd: int | None = None
        self._on_exit: Callable[[int | None, str | None], None] | None = None
        self._is_killed = False
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid1: int | None = None

    def watch_exit(self, ended: Callable[[int | None, str | None], None]) -> None:
        """Remember whom to tell; the server says when."""
        self._on_exit = ended

    def on_started(self, pidfd: int) -> None:
        """The server has made it."""
        self._pidfd, self.pid1 = pidfd, _read_pid(pidfd)
        if self._is_killed:
            self.kill()
        if not self.started.done():
            self.started.set_result(None)

    def on_exited(self, status: int | None, lost: str | None = None) -> None:
        """It has ended, or was never made."""
        if not self.started.done():
            self.started.set_result(None)
        if self._on_exit is not None:
            self._on_exit(status, lost)

    def on_server_lost(self) -> None:
        """Its server is gone and takes it along, but nobody will tell when."""
        if self._pidfd is None:
            self.on_exited(None, SERVER_LOST_MESSAGE)
            return
        self.kill()
        loop, pidfd = asyncio.get_running_loop(), self._pidfd

        def over() -> None:
            loop.remove_reader(pidfd)
            self.on_exited(None, SERVER_LOST_MESSAGE)

        loop.add_reader(pidfd, over)

    def kill(self) -> None:
        """SIGKILL to the first process, which takes its whole namespace along."""
        self._is_killed = True
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """A signal to the first process inside."""
        if self._pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Free its descriptor and its user id."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._uid is not None:
            release_uid(self._uid)


class ForkServerProcess:
    """One server process and the slots it made."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, ForkedLeader] = {}
        self._is_retired = False
        self._started_at = time.monotonic()
        self._slot_count = 0
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        told = msgspec.json.encode(build_configuration(fence))
        try:
            self._process = subprocess.Popen(
                [find_interpreter(), "-I", "-S", str(_LAUNCHER_PATH), str(theirs.fileno())],
                env={**({} if fence.has_guard("environment") else os.environ), **GUEST_ENVIRONMENT, "PWD": CODE_FOLDER},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                close_fds=fence.has_guard("descriptors"),
                start_new_session=fence.has_guard("session"),
                cwd="/",
            )
            # Once for the process that begins, once for the server that it becomes.
            self._socket.send(told)
            self._socket.send(told)
        except OSError as error:
            self._socket.close()
            raise SandboxStartError(f"fork server: {error}") from error
        finally:
            theirs.close()
        self._loop.add_reader(self._socket, self._receive_message)

    @property
    def pid(self) -> int:
        """The process to kill when the server shall end: its parent, which it does not outlive."""
        return self._process.pid

    @property
    def is_worn_out(self) -> bool:
        """Whether it has made enough slots, or for long enough."""
        return self._slot_count >= MAX_SERVER_SLOTS or time.monotonic() - self._started_at > MAX_SERVER_AGE_SECONDS

    async def wait_until_ready(self) -> None:
        """Wait until it can make slots. Errors: `StartFailed`."""
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._ready
        except TimeoutError:
            raise SandboxStartError("the fork server does not start") from None

    def request_slot(self, slot: int, forked: ForkedLeader, uid: int, pipes: GuestPipes) -> None:
        """Ask for a slot with these pipes. Errors: `OSError`."""
        self._slot_count += 1
        self._slots[slot] = forked
        try:
            socket.send_fds(self._socket, [msgspec.json.encode({"slot": slot, "uid": uid})], pipes.guest_ends)
        except OSError:
            del self._slots[slot]
            raise

    def retire(self) -> None:
        """End it when its slots have ended."""
        self._is_retired = True
        if not self._slots:
            self.kill()

    def kill(self) -> None:
        """End it, and with it every slot it made."""
        if not self.gone.done():
            self._process.kill()

    def _receive_message(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._on_connection_lost()
            return
        answer = msgspec.json.decode(data, type=_ServerMessage)
        if answer.is_ready:
            if not self._ready.done():
                self._ready.set_result(None)
        elif answer.is_started:
            self._slots[answer.slot].on_started(fds[0])
        elif answer.error is not None:
            self._slots.pop(answer.slot).on_exited(None, answer.error)
        else:
            self._slots.pop(answer.slot).on_exited(answer.status)
        if self._is_retired and not self._slots:
            self.kill()

    def _on_connection_lost(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._process.kill()
        status = self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(SandboxStartError(f"the fork server ended with status {status}"))
            self._ready.exception()
        slots, self._slots = self._slots, {}
        for forked in slots.values():
            forked.on_server_lost()
        self.gone.set_result(None)


class ForkServerBackend:
    """Makes slots by fork, blank ones too. A `Maker` for the pool; one per worker process."""

    supports_blanks = True

    def __init__(self, fence: Fence | None = None) -> None:
        self.fence = fence or Fence()
        self._cgroups = ControlGroupFactory(memory=self.fence.has_guard("cgroup"), cpu=self.fence.has_guard("cpu"))
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()
        self._server: ForkServerProcess | None = None
        self._replacement: asyncio.Task[None] | None = None
        self._retired_servers: list[ForkServerProcess] = []
        self._is_closed = False

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """A fresh blank slot, whatever the program. Errors: `sandbox_unavailable`."""
        try:
            return await self._start_slot(program.memory_mb if program is not None else DEFAULT_MEMORY_MB)
        except (SandboxStartError, OSError, seccomp.UnknownMachine) as error:
            raise create_unavailable_error(str(error)) from error

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Tell a slot which code it is for and what to import."""
        environment = str(program.environment) if program.environment is not None else None
        told = encode_head(program, mode, self.fence, code=str(program.code), environment=environment)
        tree.configure_guest(told, program.memory_mb, self.create_watchdog(program))

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """What watches a tree of this program."""
        return create_watchdog(program.memory_mb, self.fence, sessions=not self._cgroups.shares_processors)

    @property
    def pid(self) -> int | None:
        """The server's process, or rather the parent that it does not outlive; None while there is none."""
        return self._server.pid if self._server is not None else None

    async def close(self) -> None:
        """End every server and every slot."""
        self._is_closed = True
        if self._replacement is not None:
            self._replacement.cancel()
            await asyncio.wait([self._replacement])
        async with self._lock:
            servers = [*self._retired_servers, *([self._server] if self._server else [])]
        for server in servers:
            server.kill()
        for server in servers:
            await asyncio.shield(server.gone)

    async def _start_slot(self, memory_mb: int) -> ProcessTree:
        server = await self._ensure_server()
        uid = reserve_uid() if os.geteuid() == 0 and self.fence.has_guard("uid") else None
        forked = ForkedLeader(uid)
        try:
            pipes = GuestPipes()
        except OSError:
            forked.close()
            raise
        try:
            server.request_slot(next(self._numbers), forked, uid or 0, pipes)
        except OSError:
            GuestPipes.close_ends(pipes.worker_ends)
            forked.close()
            raise
        finally:
            GuestPipes.close_ends(pipes.guest_ends)
        tree = ProcessTree(forked, pipes, MAX_ANSWER_BYTES)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await forked.started
            if forked.pid1 is not None:
                joining = asyncio.get_running_loop().run_in_executor(None, self._add_to_group, memory_mb, forked.pid1)
                joining.add_done_callback(functools.partial(_on_group_joined, tree))
                # Whoever is cancelled meanwhile leaves a group that goes with the tree all the same.
                await asyncio.shield(joining)
        except TimeoutError:
            # It hangs, and with it everything that comes after.
            server.kill()
            await tree.kill_and_wait()
            raise SandboxStartError("the fork server does not answer") from None
        except BaseException:
            await tree.kill_and_wait()
            raise
        return tree

    def _add_to_group(self, memory_mb: int, pid: int) -> ControlGroup | None:
        """Put a slot that nothing untrusted has touched into a group of its own. Errors: `OSError`."""
        group = self._cgroups.create_group(memory_mb)
        if group is not None:
            try:
                group.add_process(pid)
            except OSError:
                group.remove()
                raise
        return group

    async def _ensure_server(self) -> ForkServerProcess:
        async with self._lock:
            if self._is_closed:
                raise SandboxStartError("the worker is ending")
            if self._server is not None and self._server.gone.done():
                _log.warning("the fork server is gone and is started again")
                self._server = None
            if self._server is None:
                self._server = await self._start_server()
            elif self._server.is_worn_out and self._replacement is None:
                self._replacement = asyncio.create_task(self._replace_server(self._server))
            return self._server

    async def _start_server(self) -> ForkServerProcess:
        started = ForkServerProcess(self.fence)
        try:
            await started.wait_until_ready()
        except BaseException:
            started.kill()
            await asyncio.shield(started.gone)
            raise
        return started

    async def _replace_server(self, worn: ForkServerProcess) -> None:
        """Put a new server in the place of a worn one, which ends when its slots have."""
        try:
            started = await self._start_server()
        except SandboxStartError as error:
            _log.warning("the fork server cannot be renewed", reason=str(error))
            return
        finally:
            self._replacement = None
        self._server = started
        self._retired_servers = [old for old in self._retired_servers if not old.gone.done()] + [worn]
        worn.retire()


def build_configuration(fence: Fence) -> dict[str, Any]:
    """What a server must know of the fence, in plain words."""
    root = find_interpreter_root()
    own = ["/usr", *([root] if root is not None else [])]
    mounts = [*list_system_mounts(fence), *list_python_links()]
    mounts += [("--ro-bind", mount.source, mount.target) for mount in list_guest_mounts(fence)]
    return {
        "stage": find_stage_folder(),
        "without": sorted(fence.without),
        "as_root": os.geteuid() == 0,
        "system": mounts,
        "kept_read_only": own,
        "empty_folders": [folder for folder in EMPTY_FOLDERS if os.path.isdir(folder)],
        "empty_files": [file for file in EMPTY_FILES if os.path.exists(file)],
        "sizes": {TMP_FOLDER: TMP_BYTES, "/dev/shm": SHM_BYTES},  # noqa: S108 - inside the sandbox
        "filter": seccomp.build_filter().hex(),
        "guest": str(_GUEST_FOLDER / "main.py"),
    }


def _on_group_joined(tree: ProcessTree, joining: "asyncio.Future[ControlGroup | None]") -> None:
    if not joining.cancelled() and joining.exception() is None:
        tree.set_group(joining.result())


def _read_pid(pidfd: int) -> int | None:
    """The number of a process on this host."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            number = int(line.split()[1])
            return number if number > 0 else None
    return None
