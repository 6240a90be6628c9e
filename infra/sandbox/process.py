"""A process tree made by bubblewrap: how it is started, and how it is known and killed from outside."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from infra.sandbox.cgroups import ControlGroup, join_group
from infra.sandbox.exit_report import SandboxStartError
from infra.sandbox.fence import Fence, HostMount
from infra.sandbox.proc import list_descendants
from infra.sandbox.process_tree import GuestPipes
from infra.sandbox.users import release_uid

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS: Final = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_PR_SET_PDEATHSIG: Final = 1
_STAGES: Final = ("/run", "/mnt", "/opt")
# How often, half a millisecond apart, to look whether a bwrap that shall make no more children has stopped.
MAX_STOP_CHECKS: Final = 100
# How much less important than the worker a sandbox is, where processors are shared by process.
NICE_INCREMENT: Final = 5


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def find_stage_folder() -> str:
    """A folder that every host has, to be covered by the stage in a mount namespace of its own."""
    return next(folder for folder in _STAGES if os.path.isdir(folder))


def create_user_setup(uid: int, stage: str, mounts: list[HostMount]) -> Callable[[], None]:
    """Return what a child of a root worker does before it becomes bwrap.

    In a mount namespace of its own it shows what the sandbox needs beneath `stage`, where a user
    without rights can reach it, and then turns into that user.
    """
    encoded = [(mount.source.encode(), mount.target.encode(), os.path.isdir(mount.source)) for mount in mounts]

    def before_exec() -> None:
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")
        _checked(_libc.mount(b"tmpfs", stage.encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=755,size=1m"), stage)
        for source, target, is_folder in encoded:
            os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
            if not is_folder:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            _checked(_libc.mount(source, target, None, ctypes.c_ulong(_MS_BIND), None), source.decode())
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return before_exec


def _create_child_setup(entrances: list[int], nice: bool, before_exec: Callable[[], None] | None) -> Callable[[], None]:
    """Return what a child does before it becomes bwrap. What goes wrong is its last word on stderr."""

    def prepare() -> None:
        try:
            # First of all: nothing that comes after may be outside of its group.
            join_group(entrances)
            if nice:
                os.nice(NICE_INCREMENT)
            # When the host runs out of memory it shall take an agent, not Postgres.
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
            if before_exec is not None:
                before_exec()
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        except OSError as error:
            os.write(2, str(error).encode())
            raise

    return prepare


class BubblewrapProcess:
    """A started bwrap, and once it has said so the first process inside."""

    def __init__(self, process: subprocess.Popen[bytes], info: int, uid: int | None) -> None:
        self._process, self._info, self._uid = process, info, uid
        self._pidfd = os.pidfd_open(process.pid)
        self._info_bytes = b""
        self._pid1_fd: int | None = None
        self.pid = process.pid
        self.pid1: int | None = None

    def watch_exit(self, ended: Callable[[int | None, str | None], None]) -> None:
        """Listen for what bwrap tells of the process inside, and for its own end."""
        loop = asyncio.get_running_loop()

        def exited() -> None:
            loop.remove_reader(self._pidfd)
            self._process.wait()
            ended(self._process.returncode, None)

        loop.add_reader(self._info, self._read_info)
        loop.add_reader(self._pidfd, exited)

    def kill(self) -> None:
        """SIGKILL to the first process inside, which takes its whole namespace along; bwrap then reaps it and ends.

        While that process is not known yet, bwrap is stopped, so that it makes no more children, and
        killed after those it has: a child that waits for bwrap's word would wait for ever.
        """
        with contextlib.suppress(OSError):
            if self._pid1_fd is not None:
                signal.pidfd_send_signal(self._pid1_fd, signal.SIGKILL)
                return
            signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
            # On another core it may be in the middle of making a child just now.
            for _ in range(MAX_STOP_CHECKS):
                if not _is_running(self._process.pid):
                    break
                time.sleep(0.0005)
            for child in list_descendants(self._process.pid):
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """A signal to the first process inside."""
        if self._pid1_fd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pid1_fd, number)

    def close(self) -> None:
        """Free its descriptors and its user id."""
        self._close_info()
        if self._uid is not None:
            release_uid(self._uid)
        os.close(self._pidfd)
        if self._pid1_fd is not None:
            os.close(self._pid1_fd)
            self._pid1_fd = None

    def _read_info(self) -> None:
        part = os.read(self._info, 4096)
        self._info_bytes += part
        if part:
            return
        self._close_info()
        with contextlib.suppress(msgspec.DecodeError, KeyError, OSError):
            pid = msgspec.json.decode(self._info_bytes)["child-pid"]
            self._pid1_fd = os.pidfd_open(pid)
            self.pid1 = pid

    def _close_info(self) -> None:
        if self._info >= 0:
            asyncio.get_running_loop().remove_reader(self._info)
            os.close(self._info)
            self._info = -1


def _is_running(pid: int) -> bool:
    """Whether a process is neither stopped nor ended."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("T", "t", "Z", "X")
    return False


def _read_available(fd: int) -> str:
    with contextlib.suppress(OSError):
        return os.read(fd, 4096).decode(errors="replace")
    return ""


def start_bubblewrap(
    args: list[str],
    passed: list[int],
    pipes: GuestPipes,
    info: tuple[int, int],
    before_exec: Callable[[], None] | None,
    fence: Fence,
    uid: int | None,
    group: ControlGroup | None,
) -> BubblewrapProcess:
    """Start bwrap with an empty environment, as `uid` if there is one, within its group.

    Their ends of the pipes are closed here, and all of them if it fails. Whoever calls this is the parent: should
    that thread end, bwrap ends as well. Errors: `StartFailed`.
    """
    feed, answer, out, err = pipes.guest_ends
    given = [*passed, feed, answer, info[1]]
    if not fence.has_guard("descriptors"):
        for fd in given:
            os.set_inheritable(fd, True)
    try:
        with contextlib.ExitStack() as stack:
            entrances = stack.enter_context(group.open_process_lists()) if group is not None else []
            process = subprocess.Popen(
                args,
                env={} if fence.has_guard("environment") else None,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=given if fence.has_guard("descriptors") else (),
                close_fds=fence.has_guard("descriptors"),
                preexec_fn=_create_child_setup(entrances, fence.has_guard("cpu"), before_exec),
                cwd="/",
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = _read_available(pipes.worker_ends[3])
        GuestPipes.close_ends([*pipes.worker_ends, info[0]])
        raise SandboxStartError(f"{Path(args[0]).name}: {told or error}") from error
    finally:
        GuestPipes.close_ends([*pipes.guest_ends, info[1]])
    os.set_blocking(info[0], False)
    return BubblewrapProcess(process, info[0], uid)
