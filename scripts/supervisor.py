"""Supervise the processes of `paddock up`, which are forked from a server that has imported everything once.

Importing takes a second of CPU per process, and with five processes on two cores all of them would wait for it. In
production, `paddock api` and `paddock worker` start the same functions.
"""

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Final

from infra.embedded import create_parent_bond

RESTART_SECONDS: Final = 0.5
# A process gets this long to end, in addition to its own time for draining.
GRACE_SECONDS: Final = 8.0
_context = multiprocessing.get_context("forkserver")
_PR_SET_NAME: Final = 15


def start_fork_server() -> None:
    """Start the fork server, which begins to import the application.

    Call this from the main thread: the fork server ends when the thread that started it ends.
    """
    _context.set_forkserver_preload(["scripts.fork_server_lifetime", "scripts.roles", "scripts.fork_server_heap"])
    forkserver.ensure_running()


def _run_child(role: str, environment: dict[str, str], output: Connection) -> None:
    """Turn a new child process into `role`. It ends when the fork server ends, which ends with `paddock up`."""
    create_parent_bond(signal.SIGKILL)()
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"paddock-{role}"[:15].encode())
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    from scripts import roles

    roles.run_role(role)


class SupervisedProcess:
    """Run one process of the installation and pass each line of its output to `on_line`."""

    def __init__(self, name: str, role: str, environment: dict[str, str], on_line: Callable[[bytes], None]) -> None:
        self.name, self._role, self._environment, self._on_line = name, role, environment, on_line
        self._grace = GRACE_SECONDS + float(environment.get("PADDOCK_DRAIN_SECONDS") or 0)
        self.pid: int | None = None
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    async def supervise(self, on_exit: Callable[[int], None]) -> None:
        """Run the process until `stop`, and restart it when it ends before. `on_exit` receives each exit status."""
        while not self._stopping.is_set():
            status = await self.run()
            if not self._stopping.is_set():
                on_exit(status)
                await asyncio.sleep(RESTART_SECONDS)

    async def run(self) -> int:
        """Run the process once. Returns its exit status, which is negative for a signal."""
        reader, writer = _context.Pipe(duplex=False)
        process = _context.Process(target=_run_child, args=(self._role, self._environment, writer), daemon=True)
        await asyncio.to_thread(process.start)
        self.pid = process.pid
        self._ended.clear()
        writer.close()
        await self._forward_output(reader)
        await asyncio.to_thread(process.join)
        self._ended.set()
        return process.exitcode or 0

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the process does not end in time."""
        self._stopping.set()
        if self._ended.is_set() or self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), self._grace)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def _forward_output(self, reader: Connection) -> None:
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=1 << 20)
        file = os.fdopen(os.dup(reader.fileno()), "rb", buffering=0)
        reader.close()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), file)
        try:
            async for line in stream:
                self._on_line(line)
        except ValueError:
            self._on_line(b"(a line of more than a megabyte was dropped)\n")
        finally:
            transport.close()
