"""Provide `domain.ports.Sandbox` with warm slots for runs, and choose their backend."""

from pathlib import Path
from typing import Literal

import structlog

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
from infra.sandbox.backend import SlotCounts
from infra.sandbox.bubblewrap import UPLOAD_ARCHIVE_LIMITS, BubblewrapSandbox
from infra.sandbox.forkserver import ForkServerBackend
from infra.sandbox.pool import SlotPool
from infra.sandbox.self_test import run_self_test

_log = structlog.get_logger("paddock.sandbox")


class WarmSandbox:
    """Run programs in slots of a pool, and do everything else cold with bubblewrap. `close` leaves no process behind.

    `problem` is why the fork server failed its self-test; it is tested again when the status is asked for.
    """

    def __init__(
        self, base: BubblewrapSandbox, server: ForkServerBackend | None, warm_memory_mb: int, problem: str | None = None
    ) -> None:
        self._base, self._server, self._problem = base, server, problem
        self.pool = SlotPool(server or base, warm_memory_mb)

    @property
    def counts(self) -> SlotCounts:
        """Return how many slots there are, for metrics."""
        return self.pool.counts

    async def get_status(self) -> SandboxStatus:
        """Return whether code can be isolated here."""
        status = await self._base.get_status()
        if status.available and self._server is not None and self._problem is not None:
            self._problem = await run_self_test(self._server)
            if self._problem is not None:
                return SandboxStatus(available=False, reason=f"The fork server does not work: {self._problem}")
        return status

    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, hooks: ProgramHooks = NO_HOOKS
    ) -> SandboxOutcome:
        """Call the entrypoint with a payload, in a warm slot if there is one."""
        return await self.pool.run_program(program, payload, on_output, hooks)

    def retire_slots(self, code: Path) -> None:
        """Drop the slots that wait with the code of this folder imported."""
        self.pool.retire_slots(code)

    async def check_entrypoint(self, program: SandboxProgram, on_output: OutputCallback) -> SandboxOutcome:
        """Import the entrypoint."""
        return await self._base.check_entrypoint(program, on_output)

    async def unpack_archive(
        self, archive: Path, into: Path, limits: ArchiveLimits = UPLOAD_ARCHIVE_LIMITS
    ) -> UnpackedArchive:
        """Unpack an untrusted archive into an empty folder."""
        return await self._base.unpack_archive(archive, into, limits)

    async def compile_bytecode(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode; returns a message for each file that does not compile."""
        return await self._base.compile_bytecode(folder, shown_as)

    async def close(self) -> None:
        """Kill every slot and the fork server."""
        await self.pool.close()
        if self._server is not None:
            await self._server.close()


async def open_run_sandbox(
    backend: Literal["auto", "forkserver", "bubblewrap"], bwrap: str | None, warm_memory_mb: int
) -> WarmSandbox:
    """Open the sandbox of a run worker. `auto` takes the fork server if it works here, and logs why if it does not."""
    base = BubblewrapSandbox(bwrap=bwrap)
    server = problem = None
    if backend != "bubblewrap":
        server = ForkServerBackend()
        problem = await run_self_test(server)
        if problem is not None:
            _log.warning("the fork server does not work here", reason=problem)
            if backend == "auto":
                await server.close()
                server = None
    sandbox = WarmSandbox(base, server, warm_memory_mb, problem)
    sandbox.pool.start_refilling()
    return sandbox
