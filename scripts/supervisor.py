"""Our own processes under `paddock up`: forked from one that has imported everything once.

Importing takes a second of CPU per process, and five processes on two cores would make everybody
wait for it. Production starts the same functions by `paddock api` and `paddock worker`.
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

from infra.embedded.children import create_parent_bond

RESTART_SECONDS: Final = 0.5
# Seconds beyond its own draining that a process has to end.
GRACE_SECONDS: Final = 8.0
_context = multiprocessing.get_context("forkserver")
_PR_SET_NAME: Final = 15


def start_fork_server() -> None:
    """Start the mother of all processes, who begins to import. Call it from the main thread: she dies with it."""
    _context.set_forkserver_preload(["scripts.fork_server_lifetime", "scripts.roles", "scripts.fork_server_heap"])
    forkserver.ensure_running()


def _run_child(role: str, environment: dict[str, str], output: Connection) -> None:
    """What a fresh child does: it becomes `role`, and dies with whoever asked for it."""
    # The mother ends when the one that started her does, and the child ends with its mother.
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
    """One of our own processes. `keep` starts it again whenever it ends by itself."""

    def __init__(self, name: str, role: str, environment: dict[str, str], say: Callable[[bytes], None]) -> None:
        self.name, self._role, self._environment, self._say = name, role, environment, say
        self._grace = GRACE_SECONDS + float(environment.get("PADDOCK_DRAIN_SECONDS") or 0)
        self.pid: int | None = None
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    async def supervise(self, ended: Callable[[int], None]) -> None:
        """Run it until `stop`, telling `ended` each status it ends with by itself."""
        while not self._stopping.is_set():
            status = await self.run()
            if not self._stopping.is_set():
                ended(status)
                await asyncio.sleep(RESTART_SECONDS)

    async def run(self) -> int:
        """Run it once; returns its exit status, negative for a signal."""
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
        """Ask it to end, and end it if it does not."""
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
                self._say(line)
        except ValueError:
            self._say(b"(a line of more than a megabyte was dropped)\n")
        finally:
            transport.close()
