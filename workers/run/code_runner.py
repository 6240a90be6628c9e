"""Runs executions: each in the sandbox; and dealing out slots to runs."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog

from domain import executions
from domain.builds import AgentVersion
from domain.events import ExecutionEvent
from domain.executions import Execution, LaneShare
from domain.ports import Clock, Sandbox, SandboxOutcome, Store
from domain.shared.errors import DomainError, NotFound
from infra.build_cache import BundleCache
from infra.outage_log import log_outage
from infra.polling import retry_through_outage
from workers.lane_runner import LaneRunner
from workers.leases import LeaseKeeper, claim_or_release
from workers.lifecycle import Drain
from workers.run.gateway import GatewayCalls, serve_gateway
from workers.run.output import OutputLog

_log = structlog.get_logger("paddock.executions")

# Whoever is not rung looks this often, in seconds: for rings that Redis lost.
CLAIM_POLL_SECONDS: Final = 5.0
_MAX_CACHED_VERSIONS: Final = 1000


class CodeRunner(LaneRunner):
    """The run lane of one worker process. `calls_for` makes what calls models for a run whose version names some."""

    def __init__(
        self,
        name: str,
        store: Store,
        sandbox: Sandbox,
        bundles: BundleCache,
        holder: LeaseKeeper,
        clock: Clock,
        share: LaneShare,
        make_calls: Callable[[Execution], GatewayCalls] | None = None,
    ) -> None:
        super().__init__(name, store, holder, "run", share)
        self._sandbox, self._bundles, self._clock, self._make_calls = sandbox, bundles, clock, make_calls
        self._versions: OrderedDict[str, AgentVersion] = OrderedDict()

    def list_ready_versions(self) -> frozenset[str]:
        """The versions that were run here and are known."""
        return frozenset(self._bundles.local_version_ids & self._versions.keys())

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Run it in the sandbox and settle it with what that left behind."""
        output = OutputLog(lambda batch: self._record_events(execution, batch), self._clock)
        stop = asyncio.Event()
        flushing = asyncio.create_task(output.flush_until(stop))
        running = asyncio.create_task(self._run_in_sandbox(execution, output))
        try:
            await asyncio.wait((running, flushing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Without an outcome the run is to be stopped: the row was lost, or this process shall end.
            stop.set()
            if not running.done():
                running.cancel()
            await asyncio.wait((running, flushing))
        flushing.result()
        outcome, rest = running.result(), output.take_rest()
        await retry_through_outage(lambda: self.settle_execution(execution, outcome, rest))
        return outcome.error_type

    async def _run_in_sandbox(self, execution: Execution, output: OutputLog) -> SandboxOutcome:
        try:
            version = await retry_through_outage(lambda: self._get_version(execution))
            if version.models and self._make_calls is None:
                told = "The version calls models, and this worker was started without any way to call them."
                return SandboxOutcome(error_type="model_unavailable", error_message=told)
            async with contextlib.AsyncExitStack() as held:
                opening = self._bundles.open_program
                program = await retry_through_outage(
                    lambda: held.enter_async_context(opening(version, execution.timeout))
                )
                if execution.status == "preparing":
                    await retry_through_outage(lambda: self._mark_running(execution))
                calls = self._make_calls(execution) if self._make_calls and version.models else None
                serve = serve_gateway(calls, version.models or []) if calls is not None else None
                return await self._sandbox.run_program(
                    program, msgspec.json.encode(execution.input_data), output.add_output, serve
                )
        except DomainError as error:
            if error.code not in ("sandbox_unavailable", "storage_unavailable", "not_found"):
                raise
            kind = error.code if error.code == "sandbox_unavailable" else "version_unavailable"
            return SandboxOutcome(error_type=kind, error_message=error.detail)

    async def _get_version(self, execution: Execution) -> AgentVersion:
        """The version to run. A ready one never changes, so it is asked for once."""
        version_id = execution.agent_version_id or ""
        known = self._versions.get(version_id)
        if known is not None:
            self._versions.move_to_end(version_id)
            return known
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            found = await tx.builds.get(version_id)
        if found is None:
            raise NotFound("version", version_id)
        self._versions[version_id] = found
        if len(self._versions) > _MAX_CACHED_VERSIONS:
            self._versions.popitem(last=False)
        return found

    async def _mark_running(self, execution: Execution) -> None:
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            await executions.begin_running(tx, execution)

    async def _record_events(self, execution: Execution, batch: list[ExecutionEvent]) -> None:
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            await executions.append_agent_events(tx, execution, batch)


class Claimer:
    """Takes executions as slots come free: at once when rung, and several with one statement under load."""

    def __init__(self, runner: LaneRunner, slots: int, rung: asyncio.Event, drain: Drain | None = None) -> None:
        self._drain = drain or Drain()
        self._runner, self._slots, self._wake = runner, slots, self._drain.wake_on_drain(rung)
        self._running: set[asyncio.Task[None]] = set()
        # Rung while every slot was taken.
        self._was_rung_while_full = False

    async def run(self) -> None:
        """Take executions until draining begins, then wait for those that run. If cancelled, hand over what is held."""
        try:
            while not self._drain.has_begun():
                self._wake.clear()
                free = self._slots - len(self._running)
                claimed = await self._claim_and_start(free) if free else 0
                if not free:
                    self._drain.note_round("claim", True)
                self._was_rung_while_full = claimed == free
                if (claimed < free or not free) and not self._drain.has_begun():
                    await self._wait_for_wake()
            while self._running:
                await asyncio.wait(self._running)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _claim_and_start(self, free: int) -> int:
        try:
            claimed = await claim_or_release(self._runner.claim_executions(free), self._runner.hand_over_execution)
        except DomainError as error:
            self._drain.note_round("claim", None)
            log_outage(_log, "cannot take runs", error)
            await asyncio.sleep(0.5)
            return free
        self._drain.note_round("claim", bool(claimed))
        for execution in claimed:
            task = asyncio.create_task(self._runner(execution))
            self._running.add(task)
            task.add_done_callback(self._on_execution_end)
        return len(claimed)

    def _on_execution_end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._was_rung_while_full or self._runner.may_have_pending:
            self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a run's end could not be written; its lease will run out", error=str(task.exception()))

    async def _wait_for_wake(self) -> None:
        try:
            async with asyncio.timeout(CLAIM_POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            pass
