"""Start child processes that do not outlive their parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

import msgspec

from infra.sandbox import linux

NOBODY_UID: Final = 65534
_POLL_SECONDS: Final = 0.02


class EmbeddedServiceError(Exception):
    """Report that an embedded service did not start or failed. The message names it and ends with its output."""


def create_parent_bond(death: signal.Signals) -> Callable[[], None]:
    """Create a `preexec_fn` by which the kernel sends `death` to the child when its parent dies, for any reason."""

    def bind_to_parent() -> None:
        linux.set_parent_death_signal(death)

    return bind_to_parent


def create_nobody_setup(death: signal.Signals, *owned: Path) -> Callable[[], None]:
    """Create a `preexec_fn` like `create_parent_bond`'s, by which root also drops to an unprivileged user.

    Postgres refuses to run as root. In a user namespace that maps root to 65534 it is not root, while its files stay
    root's and folders closed to others stay usable. Where there are no user namespaces, the child becomes that user for
    real, keeps the one capability that passes closed folders, and owns `owned`.
    """
    if os.geteuid() != 0:
        return create_parent_bond(death)

    def set_up_nobody() -> None:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
        except OSError:
            for folder in owned:
                linux.change_owner(folder, NOBODY_UID)
            _switch_to_nobody()
        else:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{NOBODY_UID} 0 1")
            Path("/proc/self/gid_map").write_text(f"{NOBODY_UID} 0 1")
        # After the change of user, which clears it.
        linux.set_parent_death_signal(death)

    return set_up_nobody


def _switch_to_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
    linux.keep_capabilities()
    os.setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
    linux.retain_capability(linux.CAP_DAC_OVERRIDE)


class ChildProcess:
    """Control a running child process. It prints to the file `log`, and has `stop_seconds` to end after a signal."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, stop_seconds: float) -> None:
        self.name, self.process, self.log, self.stop_seconds = name, process, log, stop_seconds

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self.process.poll() is None

    def raise_if_ended(self) -> None:
        """Raise `EmbeddedServiceError` with its last output if it has ended."""
        if not self.is_alive():
            raise EmbeddedServiceError(
                f"{self.name} ended with status {self.process.returncode}.\n{self.read_log_tail()}"
            )

    async def wait_until(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `is_ready` returns True. Errors: `EmbeddedServiceError`."""
        for _ in range(int(seconds / _POLL_SECONDS)):
            self.raise_if_ended()
            if is_ready():
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise EmbeddedServiceError(f"{self.name} was not ready after {seconds:g} s.\n{self.read_log_tail()}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal, and kill it if it does not end in time."""
        if not self.is_alive():
            return
        self.process.send_signal(number)
        for _ in range(int(self.stop_seconds / _POLL_SECONDS)):
            if not self.is_alive():
                return
            await asyncio.sleep(_POLL_SECONDS)
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def read_log_tail(self) -> str:
        """Return the last 2000 characters of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:]
        return ""


class ChildCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Describe how to start a child. It has `stop_seconds` to end after a signal, and is killed then."""

    name: str
    args: list[str]
    log: Path
    cwd: Path
    environment: Mapping[str, str]
    before_exec: Callable[[], None]
    stop_seconds: float = 10.0


def start_child(command: ChildCommand) -> ChildProcess:
    """Start a child in a session of its own, so that Ctrl-C reaches its parent alone."""
    output: IO[bytes]
    with command.log.open("ab") as output:
        process = subprocess.Popen(
            command.args,
            cwd=command.cwd,
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=command.before_exec,
        )
    return ChildProcess(command.name, process, command.log, command.stop_seconds)
