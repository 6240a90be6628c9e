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

from domain.executions import DEFAULT_MEMORY_MB
from domain.ports import Program
from infra.sandbox import seccomp
from infra.sandbox.cgroups import Cgroups, Group
from infra.sandbox.exit_report import StartFailed
from infra.sandbox.fence import (
    CODE,
    EMPTY_FILES,
    EMPTY_FOLDERS,
    ENVIRONMENT,
    SHM_BYTES,
    TMP,
    TMP_BYTES,
    Fence,
    guest_mounts,
    interpreter,
    interpreter_root,
    python_links,
    system_mounts,
)
from infra.sandbox.guest_protocol import ANSWER_BYTES, head, unavailable, watch
from infra.sandbox.process import stage_folder
from infra.sandbox.process_tree import Pipes, Tree
from infra.sandbox.users import free_uid, take_uid
from infra.sandbox.watchdog import Watch

# All slots of a server share one layout of memory and one hash seed: a server is replaced after so many.
ROTATE_SLOTS: Final = 5000
ROTATE_SECONDS: Final = 900.0
START_SECONDS: Final = 20.0
LOST: Final = "The sandbox's fork server ended while the agent ran."
_BEGIN: Final = Path(__file__).with_name("begin.py")
_GUEST: Final = Path(__file__).parents[1] / "guest"

_log = structlog.get_logger("paddock.sandbox")


class _Answer(msgspec.Struct, kw_only=True):
    """What the server says: that it is ready, that a slot is made or could not be, or how one ended."""

    ready: bool = False
    slot: int = -1
    made: bool = False
    status: int | None = None
    error: str | None = None


class Forked:
    """The first process of a slot: a child of the server, known here by its pidfd."""

    def __init__(self, uid: int | None) -> None:
        self._uid = uid
        self._pidfd: int | None = None
        self._ended: Callable[[int | None, str | None], None] | None = None
        self._unwanted = False
        self.made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid1: int | None = None

    def begin(self, ended: Callable[[int | None, str | None], None]) -> None:
        """Remember whom to tell; the server says when."""
        self._ended = ended

    def known(self, pidfd: int) -> None:
        """The server has made it."""
        self._pidfd, self.pid1 = pidfd, _pid(pidfd)
        if self._unwanted:
            self.kill()
        if not self.made.done():
            self.made.set_result(None)

    def exited(self, status: int | None, lost: str | None = None) -> None:
        """It has ended, or was never made."""
        if not self.made.done():
            self.made.set_result(None)
        if self._ended is not None:
            self._ended(status, lost)

    def orphaned(self) -> None:
        """Its server is gone and takes it along, but nobody will tell when."""
        if self._pidfd is None:
            self.exited(None, LOST)
            return
        self.kill()
        loop, pidfd = asyncio.get_running_loop(), self._pidfd

        def over() -> None:
            loop.remove_reader(pidfd)
            self.exited(None, LOST)

        loop.add_reader(pidfd, over)

    def kill(self) -> None:
        """SIGKILL to the first process, which takes its whole namespace along."""
        self._unwanted = True
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
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
            free_uid(self._uid)


class _Server:
    """One server process and the slots it made."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, Forked] = {}
        self._retired = False
        self._began = time.monotonic()
        self._made = 0
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        told = msgspec.json.encode(configuration(fence))
        try:
            self._process = subprocess.Popen(
                [interpreter(), "-I", "-S", str(_BEGIN), str(theirs.fileno())],
                env={**({} if fence.has("environment") else os.environ), **ENVIRONMENT, "PWD": CODE},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                close_fds=fence.has("descriptors"),
                start_new_session=fence.has("session"),
                cwd="/",
            )
            # Once for the process that begins, once for the server that it becomes.
            self._socket.send(told)
            self._socket.send(told)
        except OSError as error:
            self._socket.close()
            raise StartFailed(f"fork server: {error}") from error
        finally:
            theirs.close()
        self._loop.add_reader(self._socket, self._hear)

    @property
    def pid(self) -> int:
        """The process to kill when the server shall end: its parent, which it does not outlive."""
        return self._process.pid

    @property
    def worn(self) -> bool:
        """Whether it has made enough slots, or for long enough."""
        return self._made >= ROTATE_SLOTS or time.monotonic() - self._began > ROTATE_SECONDS

    async def ready(self) -> None:
        """Wait until it can make slots. Errors: `StartFailed`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            raise StartFailed("the fork server does not start") from None

    def ask(self, slot: int, forked: Forked, uid: int, pipes: Pipes) -> None:
        """Ask for a slot with these pipes. Errors: `OSError`."""
        self._made += 1
        self._slots[slot] = forked
        try:
            socket.send_fds(self._socket, [msgspec.json.encode({"slot": slot, "uid": uid})], pipes.theirs)
        except OSError:
            del self._slots[slot]
            raise

    def retire(self) -> None:
        """End it when its slots have ended."""
        self._retired = True
        if not self._slots:
            self.end()

    def end(self) -> None:
        """End it, and with it every slot it made."""
        if not self.gone.done():
            self._process.kill()

    def _hear(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._over()
            return
        answer = msgspec.json.decode(data, type=_Answer)
        if answer.ready:
            if not self._ready.done():
                self._ready.set_result(None)
        elif answer.made:
            self._slots[answer.slot].known(fds[0])
        elif answer.error is not None:
            self._slots.pop(answer.slot).exited(None, answer.error)
        else:
            self._slots.pop(answer.slot).exited(answer.status)
        if self._retired and not self._slots:
            self.end()

    def _over(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._process.kill()
        status = self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(StartFailed(f"the fork server ended with status {status}"))
            self._ready.exception()
        slots, self._slots = self._slots, {}
        for forked in slots.values():
            forked.orphaned()
        self.gone.set_result(None)


class ForkServer:
    """Makes slots by fork, blank ones too. A `Maker` for the pool; one per worker process."""

    blanks = True

    def __init__(self, fence: Fence | None = None) -> None:
        self.fence = fence or Fence()
        self._cgroups = Cgroups(memory=self.fence.has("cgroup"), cpu=self.fence.has("cpu"))
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()
        self._server: _Server | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._retired: list[_Server] = []
        self._closed = False

    async def make(self, program: Program | None) -> Tree:
        """A fresh blank slot, whatever the program. Errors: `sandbox_unavailable`."""
        try:
            return await self._make(program.memory_mb if program is not None else DEFAULT_MEMORY_MB)
        except (StartFailed, OSError, seccomp.UnknownMachine) as error:
            raise unavailable(str(error)) from error

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell a slot which code it is for and what to import."""
        environment = str(program.environment) if program.environment is not None else None
        told = head(program, mode, self.fence, code=str(program.code), environment=environment)
        tree.direct(told, program.memory_mb, self.watch(program))

    def watch(self, program: Program) -> Watch | None:
        """What watches a tree of this program."""
        return watch(program.memory_mb, self.fence, sessions=not self._cgroups.shares_processors)

    @property
    def pid(self) -> int | None:
        """The server's process, or rather the parent that it does not outlive; None while there is none."""
        return self._server.pid if self._server is not None else None

    async def close(self) -> None:
        """End every server and every slot."""
        self._closed = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        async with self._lock:
            servers = [*self._retired, *([self._server] if self._server else [])]
        for server in servers:
            server.end()
        for server in servers:
            await asyncio.shield(server.gone)

    async def _make(self, memory_mb: int) -> Tree:
        server = await self._running()
        uid = take_uid() if os.geteuid() == 0 and self.fence.has("uid") else None
        forked = Forked(uid)
        try:
            pipes = Pipes()
        except OSError:
            forked.close()
            raise
        try:
            server.ask(next(self._numbers), forked, uid or 0, pipes)
        except OSError:
            Pipes.close(pipes.ours)
            forked.close()
            raise
        finally:
            Pipes.close(pipes.theirs)
        tree = Tree(forked, pipes, ANSWER_BYTES)
        try:
            async with asyncio.timeout(START_SECONDS):
                await forked.made
            if forked.pid1 is not None:
                joining = asyncio.get_running_loop().run_in_executor(None, self._group, memory_mb, forked.pid1)
                joining.add_done_callback(functools.partial(_belongs, tree))
                # Whoever is cancelled meanwhile leaves a group that goes with the tree all the same.
                await asyncio.shield(joining)
        except TimeoutError:
            # It hangs, and with it everything that comes after.
            server.end()
            await tree.end()
            raise StartFailed("the fork server does not answer") from None
        except BaseException:
            await tree.end()
            raise
        return tree

    def _group(self, memory_mb: int, pid: int) -> Group | None:
        """Put a slot that nothing untrusted has touched into a group of its own. Errors: `OSError`."""
        group = self._cgroups.make(memory_mb)
        if group is not None:
            try:
                group.join(pid)
            except OSError:
                group.remove()
                raise
        return group

    async def _running(self) -> _Server:
        async with self._lock:
            if self._closed:
                raise StartFailed("the worker is ending")
            if self._server is not None and self._server.gone.done():
                _log.warning("the fork server is gone and is started again")
                self._server = None
            if self._server is None:
                self._server = await self._started()
            elif self._server.worn and self._renewing is None:
                self._renewing = asyncio.create_task(self._renew(self._server))
            return self._server

    async def _started(self) -> _Server:
        started = _Server(self.fence)
        try:
            await started.ready()
        except BaseException:
            started.end()
            await asyncio.shield(started.gone)
            raise
        return started

    async def _renew(self, worn: _Server) -> None:
        """Put a new server in the place of a worn one, which ends when its slots have."""
        try:
            started = await self._started()
        except StartFailed as error:
            _log.warning("the fork server cannot be renewed", reason=str(error))
            return
        finally:
            self._renewing = None
        self._server = started
        self._retired = [old for old in self._retired if not old.gone.done()] + [worn]
        worn.retire()


def configuration(fence: Fence) -> dict[str, Any]:
    """What a server must know of the fence, in plain words."""
    root = interpreter_root()
    own = ["/usr", *([root] if root is not None else [])]
    mounts = [*system_mounts(fence), *python_links()]
    mounts += [("--ro-bind", mount.source, mount.target) for mount in guest_mounts(fence)]
    return {
        "stage": stage_folder(),
        "without": sorted(fence.without),
        "as_root": os.geteuid() == 0,
        "system": mounts,
        "kept_read_only": own,
        "empty_folders": [folder for folder in EMPTY_FOLDERS if os.path.isdir(folder)],
        "empty_files": [file for file in EMPTY_FILES if os.path.exists(file)],
        "sizes": {TMP: TMP_BYTES, "/dev/shm": SHM_BYTES},  # noqa: S108 - inside the sandbox
        "filter": seccomp.program().hex(),
        "guest": str(_GUEST / "main.py"),
    }


def _belongs(tree: Tree, joining: "asyncio.Future[Group | None]") -> None:
    if not joining.cancelled() and joining.exception() is None:
        tree.belongs_to(joining.result())


def _pid(pidfd: int) -> int | None:
    """The number of a process on this host."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            number = int(line.split()[1])
            return number if number > 0 else None
    return None
