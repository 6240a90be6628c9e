"""Trying out a way of making sandboxes: whether one can be made here, imports, and can be looked into."""

import asyncio
from pathlib import Path
from typing import Final

from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import OutputStream, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox.backend import SandboxBackend
from infra.sandbox.exit_report import GuestStage, SandboxStartError
from infra.sandbox.guest_protocol import encode_frame, outcome_from_report

TRIAL_PROGRAM: Final = SandboxProgram(
    code=Path(__file__).parent / "guest",
    environment=None,
    entrypoint="json:dumps",
    timeout=20,
    memory_mb=DEFAULT_MEMORY_MB,
)


async def run_self_test(maker: SandboxBackend) -> str | None:
    """Return why a trial sandbox fails, or None."""
    try:
        tree = await maker.start_tree(TRIAL_PROGRAM)
    except DomainError as error:
        return error.detail
    try:
        maker.assign_program(tree, TRIAL_PROGRAM, "run")
        watch, reason = maker.create_watchdog(TRIAL_PROGRAM), None
        if (
            await tree.wait_for_stage(GuestStage.IMPORTED, TRIAL_PROGRAM.timeout)
            and watch is not None
            and tree.pid is not None
        ):
            reason = await asyncio.to_thread(watch.find_excess, tree.pid)
        ending = await tree.run(encode_frame(b"{}"), TRIAL_PROGRAM.timeout, _ignore_output)
        # Its own watch may have been quicker.
        kind, _, told = (ending.kill_reason or reason or "").partition(":")
        if kind == "not_measurable":
            return (
                f"it cannot be looked into: {told}. A worker that is root needs the capability SYS_PTRACE; one that is "
                "not root needs none."
            )
        result = outcome_from_report(ending, TRIAL_PROGRAM.timeout, TRIAL_PROGRAM.memory_mb)
    except SandboxStartError as error:
        return str(error)
    finally:
        await tree.kill_and_wait()
    return None if result.error_type is None else f"a trial run failed: {result.error_message}"


def _ignore_output(_: OutputStream, __: bytes) -> None:
    return None
