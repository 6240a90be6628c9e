"""Start bubblewrap, and know and kill its process tree from outside."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from infra.sandbox import linux, network
from infra.sandbox.cgroups import ControlGroup, join_group
from infra.sandbox.exit_report import SandboxStartError
from infra.sandbox.fence import NICE_INCREMENT, Fence, HostMount
from infra.sandbox.guest_pipes import GuestPipes
from infra.sandbox.listener import SandboxListeners
from infra.sandbox.proc import list_descendants
from infra.sandbox.user_ids import release_uid

# How often, half a millisecond apart, to check whether a bwrap has stopped and can create no more children.
MAX_STOP_CHECKS: Final = 100


class BubblewrapCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Describe how to start bubblewrap: its arguments, what it inherits, and what its process does before the exec.

    `passed_fds` are inherited besides the pipes. `network_setup` makes the network, and `user_setup` then turns the
    process of a root worker into user `uid`.
    """

    args: list[str]
    passed_fds: list[int]
    fence: Fence
    uid: int | None = None
    network_setup: Callable[[], None] | None = None
    user_setup: Callable[[], None] | None = None
    group: ControlGroup | None = None


def create_user_setup(uid: int, stage: str, mounts: list[HostMount]) -> Callable[[], None]:
    """Create the function by which a child of a root worker becomes a user without rights.

    In a mount namespace of its own the child shows what the sandbox needs beneath `stage`, where that user can reach
    it, and then turns into the user.
    """
    sources = [(mount.source, mount.target, os.path.isdir(mount.source)) for mount in mounts]

    def set_up_user() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("tmpfs", stage, "tmpfs", 0, "mode=755,size=1m")
        for source, target, is_folder in sources:
            os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
            if not is_folder:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            linux.mount(source, target, None, linux.MS_BIND)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return set_up_user


def create_network_setup(fence: Fence, listeners: SandboxListeners) -> Callable[[], None]:
    """Create the function by which a child enters a network of its own, with these listeners and nothing else."""
    as_root, is_separate = os.geteuid() == 0, fence.has_guard("network")
    maker_end, places = listeners.maker_end, listeners.places

    def set_up_network() -> None:
        if is_separate:
            network.create_network(as_root)
        network.send_listeners(maker_end, places, is_separate=is_separate)

    return set_up_network


def _create_child_setup(command: BubblewrapCommand, entry_fds: list[int]) -> Callable[[], None]:
    """Create the function that a child runs before it becomes bwrap. It writes its error to stderr."""

    def set_up_child() -> None:
        try:
            # First of all: everything that follows must be inside the group.
            join_group(entry_fds)
            if command.fence.has_guard("cpu"):
                os.nice(NICE_INCREMENT)
            # When the host runs out of memory, the kernel must take an agent and not Postgres.
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
            for set_up in (command.network_setup, command.user_setup):
                if set_up is not None:
                    set_up()
            linux.set_parent_death_signal()
        except OSError as error:
            os.write(2, str(error).encode())
            raise

    return set_up_child


class BubblewrapProcess:
    """Control a started bwrap and, once bwrap has reported it, the first process inside."""

    def __init__(self, process: subprocess.Popen[bytes], info_fd: int, uid: int | None) -> None:
        self._process, self._info_fd, self._uid = process, info_fd, uid
        self._pidfd = os.pidfd_open(process.pid)
        self._info_bytes = b""
        self._pid1_fd: int | None = None
        self.pid = process.pid
        self.pid1: int | None = None

    def watch_exit(self, on_exit: Callable[[int | None, str | None], None]) -> None:
        """Read what bwrap reports of the process inside, and call `on_exit` at bwrap's own end."""
        loop = asyncio.get_running_loop()

        def reap_process() -> None:
            loop.remove_reader(self._pidfd)
            self._process.wait()
            on_exit(self._process.returncode, None)

        loop.add_reader(self._info_fd, self._read_info)
        loop.add_reader(self._pidfd, reap_process)

    def kill(self) -> None:
        """Kill the first process inside, and with it its whole namespace; bwrap then reaps it and ends.

        While that process is not known yet, bwrap is stopped, so that it creates no more children, and killed after
        those it has: a child that waits for bwrap's go-ahead would never end.
        """
        with contextlib.suppress(OSError):
            if self._pid1_fd is not None:
                signal.pidfd_send_signal(self._pid1_fd, signal.SIGKILL)
                return
            signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
            # On another core it may be in the middle of creating a child just now.
            for _ in range(MAX_STOP_CHECKS):
                if not _is_running(self._process.pid):
                    break
                time.sleep(0.0005)
            for child in list_descendants(self._process.pid):
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal to the first process inside."""
        if self._pid1_fd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pid1_fd, number)

    def close(self) -> None:
        """Close its descriptors and release its user id."""
        self._close_info()
        if self._uid is not None:
            release_uid(self._uid)
        os.close(self._pidfd)
        if self._pid1_fd is not None:
            os.close(self._pid1_fd)
            self._pid1_fd = None

    def _read_info(self) -> None:
        part = os.read(self._info_fd, 4096)
        self._info_bytes += part
        if part:
            return
        self._close_info()
        with contextlib.suppress(msgspec.DecodeError, KeyError, OSError):
            pid = msgspec.json.decode(self._info_bytes)["child-pid"]
            self._pid1_fd = os.pidfd_open(pid)
            self.pid1 = pid

    def _close_info(self) -> None:
        if self._info_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._info_fd)
            os.close(self._info_fd)
            self._info_fd = -1


def _is_running(pid: int) -> bool:
    """Return whether a process is neither stopped nor ended."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("T", "t", "Z", "X")
    return False


def _read_available(fd: int) -> str:
    with contextlib.suppress(OSError):
        return os.read(fd, 4096).decode(errors="replace")
    return ""


def start_bubblewrap(command: BubblewrapCommand, pipes: GuestPipes, info: tuple[int, int]) -> BubblewrapProcess:
    """Start bwrap with an empty environment, as the command's user and within its group. `info` is (ours, bwrap's).

    The guest's ends of the pipes are closed here, and all ends if it fails. The calling thread is the parent: bwrap
    ends with that thread. Errors: `SandboxStartError`.
    """
    feed, answer, stdout, stderr = pipes.guest_ends
    fence, group = command.fence, command.group
    passed_fds = [*command.passed_fds, feed, answer, info[1]]
    if not fence.has_guard("descriptors"):
        for fd in passed_fds:
            os.set_inheritable(fd, True)
    try:
        with contextlib.ExitStack() as stack:
            entry_fds = stack.enter_context(group.open_entries()) if group is not None else []
            process = subprocess.Popen(
                command.args,
                env={} if fence.has_guard("environment") else None,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=passed_fds if fence.has_guard("descriptors") else (),
                close_fds=fence.has_guard("descriptors"),
                preexec_fn=_create_child_setup(command, entry_fds),
                cwd="/",
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = _read_available(pipes.worker_ends[3])
        GuestPipes.close_ends([*pipes.worker_ends, info[0]])
        raise SandboxStartError(f"{Path(command.args[0]).name}: {reason or error}") from error
    finally:
        GuestPipes.close_ends([*pipes.guest_ends, info[1]])
    os.set_blocking(info[0], False)
    return BubblewrapProcess(process, info[0], command.uid)
