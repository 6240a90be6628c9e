"""Test a sandbox backend on this host: a sandbox can be made, imports its code, has a network, and can be measured."""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import ProgramNetwork, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox.backend import SandboxBackend
from infra.sandbox.exit_report import GuestStage, SandboxStartError
from infra.sandbox.guest_protocol import encode_request, ignore_output, outcome_from_report
from infra.sandbox.tree_request import TreeRequest

TRIAL_PROGRAM: Final = SandboxProgram(
    code=Path(__file__).parent / "guest",
    environment=None,
    entrypoint="json:dumps",
    timeout=20,
    memory_mb=DEFAULT_MEMORY_MB,
)


async def run_self_test(backend: SandboxBackend) -> str | None:
    """Return why a trial sandbox fails, without a network or with one; None if neither does."""
    for network in (None, ProgramNetwork(gateway=True)):
        problem = await _try_program(backend, msgspec.structs.replace(TRIAL_PROGRAM, network=network))
        if problem is not None:
            return problem
    return None


async def _try_program(backend: SandboxBackend, program: SandboxProgram) -> str | None:
    try:
        tree = await backend.start_tree(program)
    except DomainError as error:
        return error.detail
    try:
        backend.assign_program(tree, program, "run")
        watchdog, reason = backend.create_watchdog(program), None
        is_imported = await tree.wait_for_stage(GuestStage.IMPORTED, program.timeout)
        if is_imported and watchdog is not None and tree.pid is not None:
            reason = await asyncio.to_thread(watchdog.find_excess, tree.pid)
        request = TreeRequest(data=encode_request(b"{}", b"{}"), on_output=ignore_output)
        report = await tree.run(request, program.timeout)
        # The tree's own watchdog may have been quicker.
        kind, _, problem = (report.kill_reason or reason or "").partition(":")
        if kind == "not_measurable":
            return (
                f"it cannot be measured: {problem}. A worker that is root needs the capability SYS_PTRACE; one that is "
                "not root needs none."
            )
        outcome = outcome_from_report(report, program.timeout, program.memory_mb)
    except SandboxStartError as error:
        return str(error)
    finally:
        await tree.kill_and_wait()
    return None if outcome.error_type is None else f"a trial run failed: {outcome.error_message}"
