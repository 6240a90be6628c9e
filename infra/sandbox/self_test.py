"""Trying out a way of making sandboxes: whether one can be made here, imports, and can be looked into."""

import asyncio
from pathlib import Path
from typing import Final

from domain.executions import DEFAULT_MEMORY_MB
from domain.ports import Program, Stream
from domain.shared.errors import DomainError
from infra.sandbox.backend import Maker
from infra.sandbox.exit_report import Stage, StartFailed
from infra.sandbox.guest_protocol import frame, outcome

TRIAL: Final = Program(
    code=Path(__file__).parent / "guest",
    environment=None,
    entrypoint="json:dumps",
    timeout=20,
    memory_mb=DEFAULT_MEMORY_MB,
)


async def try_out(maker: Maker) -> str | None:
    """Return why a trial sandbox fails, or None."""
    try:
        tree = await maker.make(TRIAL)
    except DomainError as error:
        return error.detail
    try:
        maker.direct(tree, TRIAL, "run")
        watch, reason = maker.watch(TRIAL), None
        if await tree.reach(Stage.IMPORTED, TRIAL.timeout) and watch is not None and tree.pid is not None:
            reason = await asyncio.to_thread(watch.look, tree.pid)
        ending = await tree.run(frame(b"{}"), TRIAL.timeout, _ignore)
        # Its own watch may have been quicker.
        kind, _, told = (ending.killed_for or reason or "").partition(":")
        if kind == "not_measurable":
            return (
                f"it cannot be looked into: {told}. A worker that is root needs the capability SYS_PTRACE; one that is "
                "not root needs none."
            )
        result = outcome(ending, TRIAL.timeout, TRIAL.memory_mb)
    except StartFailed as error:
        return str(error)
    finally:
        await tree.end()
    return None if result.error_type is None else f"a trial run failed: {result.error_message}"


def _ignore(_: Stream, __: bytes) -> None:
    return None
