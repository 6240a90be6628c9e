"""Run one fork server process and know the slots that it made."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from infra.sandbox.exit_report import SandboxStartError
from infra.sandbox.fence import CODE_FOLDER, GUEST_ENVIRONMENT, Fence, find_interpreter
from infra.sandbox.forkserver.configuration import build_configuration
from infra.sandbox.user_ids import release_uid

# All slots of a server share one layout of memory and one hash seed: a server is replaced after so many slots.
MAX_SERVER_SLOTS: Final = 5000
MAX_SERVER_AGE_SECONDS: Final = 900.0
START_TIMEOUT_SECONDS: Final = 20.0
SERVER_LOST_MESSAGE: Final = "The sandbox's fork server ended while the agent ran."
_LAUNCHER_PATH: Final = Path(__file__).with_name("launcher.py")


class _ServerMessage(msgspec.Struct, kw_only=True):
    """Report that the server is ready, that a slot was started or could not be, or how one ended."""

    is_ready: bool = False
    slot: int = -1
    is_started: bool = False
    status: int | None = None
    error: str | None = None


class ForkedLeader:
    """Control the first process of a slot: a child of the server, known to the worker by its pidfd."""

    def __init__(self, uid: int | None) -> None:
        self._uid = uid
        self._pidfd: int | None = None
        self._on_exit: Callable[[int | None, str | None], None] | None = None
        self._is_killed = False
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid1: int | None = None

    def watch_exit(self, on_exit: Callable[[int | None, str | None], None]) -> None:
        """Call `on_exit` when the server reports the exit."""
        self._on_exit = on_exit

    def on_started(self, pidfd: int) -> None:
        """Take the pidfd of the process that the server has started."""
        self._pidfd, self.pid1 = pidfd, _read_pid(pidfd)
        if self._is_killed:
            self.kill()
        if not self.started.done():
            self.started.set_result(None)

    def on_exited(self, status: int | None, lost_reason: str | None = None) -> None:
        """Report that the process has ended, or was never started."""
        if not self.started.done():
            self.started.set_result(None)
        if self._on_exit is not None:
            self._on_exit(status, lost_reason)

    def on_server_lost(self) -> None:
        """Kill the process, whose server is gone and will not report its exit, and wait for its pidfd."""
        if self._pidfd is None:
            self.on_exited(None, SERVER_LOST_MESSAGE)
            return
        self.kill()
        loop, pidfd = asyncio.get_running_loop(), self._pidfd

        def report_exit() -> None:
            loop.remove_reader(pidfd)
            self.on_exited(None, SERVER_LOST_MESSAGE)

        loop.add_reader(pidfd, report_exit)

    def kill(self) -> None:
        """Kill the first process, and with it its whole namespace."""
        self._is_killed = True
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal to the first process inside."""
        if self._pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Close its descriptor and release its user id."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._uid is not None:
            release_uid(self._uid)


class ForkServerProcess:
    """Control one server process and the slots that it made."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, ForkedLeader] = {}
        self._is_retired = False
        self._started_at = time.monotonic()
        self._slot_count = 0
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._socket, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        configuration = msgspec.json.encode(build_configuration(fence))
        try:
            self._process = subprocess.Popen(
                [find_interpreter(), "-I", "-S", str(_LAUNCHER_PATH), str(server_end.fileno())],
                env={
                    **({} if fence.has_guard("environment") else os.environ),
                    **GUEST_ENVIRONMENT,
                    "PWD": CODE_FOLDER,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(server_end.fileno(),),
                close_fds=fence.has_guard("descriptors"),
                start_new_session=fence.has_guard("session"),
                cwd="/",
            )
            # Once for the launcher, once for the server that it becomes.
            self._socket.send(configuration)
            self._socket.send(configuration)
        except OSError as error:
            self._socket.close()
            raise SandboxStartError(f"fork server: {error}") from error
        finally:
            server_end.close()
        self._loop.add_reader(self._socket, self._receive_message)

    @property
    def pid(self) -> int:
        """Return the process to kill to end the server: its parent, which the server does not outlive."""
        return self._process.pid

    @property
    def is_worn_out(self) -> bool:
        """Return whether it has made enough slots, or is old enough, to be replaced."""
        return self._slot_count >= MAX_SERVER_SLOTS or time.monotonic() - self._started_at > MAX_SERVER_AGE_SECONDS

    async def wait_until_ready(self) -> None:
        """Wait until it can make slots. Errors: `SandboxStartError`."""
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._ready
        except TimeoutError:
            raise SandboxStartError("the fork server does not start") from None

    def request_slot(self, slot: int, leader: ForkedLeader, uid: int, fds: list[int]) -> None:
        """Request a slot with these descriptors: the guest's ends of its pipes, and where it sends its listeners.

        Errors: `OSError`.
        """
        self._slot_count += 1
        self._slots[slot] = leader
        try:
            socket.send_fds(self._socket, [msgspec.json.encode({"slot": slot, "uid": uid})], fds)
        except OSError:
            del self._slots[slot]
            raise

    def retire(self) -> None:
        """End the server when its slots have ended."""
        self._is_retired = True
        if not self._slots:
            self.kill()

    def kill(self) -> None:
        """Kill the server, and with it every slot that it made."""
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
        message = msgspec.json.decode(data, type=_ServerMessage)
        if message.is_ready:
            if not self._ready.done():
                self._ready.set_result(None)
        elif message.is_started:
            self._slots[message.slot].on_started(fds[0])
        elif message.error is not None:
            self._slots.pop(message.slot).on_exited(None, message.error)
        else:
            self._slots.pop(message.slot).on_exited(message.status)
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
        for leader in slots.values():
            leader.on_server_lost()
        self.gone.set_result(None)


def _read_pid(pidfd: int) -> int | None:
    """Return the number of a process on this host; None if it has ended."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            number = int(line.split()[1])
            return number if number > 0 else None
    return None
