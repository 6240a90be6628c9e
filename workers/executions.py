"""Runs executions: claim, run in the sandbox, settle."""

import asyncio
import contextlib

import msgspec
import structlog

from domain import executions
from domain.errors import DomainError
from domain.events import Event
from domain.executions import Claimed, Execution
from domain.leases import LostLease
from domain.ports import Clock, Outcome, Sandbox, Store
from infra.bundles import Bundles
from workers.leases import Holder, persist
from workers.output import Output

_log = structlog.get_logger("paddock.executions")


class Runner:
    """The run lane of one worker process."""

    def __init__(
        self, name: str, store: Store, sandbox: Sandbox, bundles: Bundles, holder: Holder, clock: Clock
    ) -> None:
        self._name, self._store, self._sandbox = name, store, sandbox
        self._bundles, self._holder, self._clock = bundles, holder, clock

    async def __call__(self, execution_id: str, tenant_id: str) -> None:
        """Run one execution, if it is still pending."""
        async with self._store.begin_for(tenant_id) as tx:
            claimed = await executions.claim(tx, execution_id, self._name, self._holder.lease, self._bundles.at_hand)
        if claimed is None:
            return
        execution = claimed.execution
        log = _log.bind(execution_id=execution_id, attempt=execution.attempt)
        log.info("run started", version_id=claimed.version.id)
        try:
            outcome = await self._holder.hold(execution_id, execution.attempt, self._work(claimed))
        except LostLease:
            log.info("run stopped: the execution was cancelled or taken back")
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(execution))
            raise
        except Exception as error:
            # A mistake of ours. Better a failure that says so now than three leases that run out.
            log.exception("run failed unexpectedly")
            outcome = Outcome(error_type="internal_error", error_message=f"The worker failed: {type(error).__name__}.")
            with contextlib.suppress(LostLease):
                await persist(lambda: self._finish(execution, outcome, []))
        else:
            log.info("run ended", error_type=outcome.error_type)

    async def _work(self, claimed: Claimed) -> Outcome:
        execution = claimed.execution
        output = Output(lambda batch: self._record(execution, batch), self._clock)
        stop = asyncio.Event()
        flushing = asyncio.create_task(output.flush_until(stop))
        running = asyncio.create_task(self._run(claimed, output))
        try:
            await asyncio.wait((running, flushing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Without an outcome the run is to be stopped: the row was lost, or this process shall end.
            stop.set()
            if not running.done():
                running.cancel()
            await asyncio.wait((running, flushing))
        flushing.result()
        outcome, rest = running.result(), output.rest()
        await persist(lambda: self._finish(execution, outcome, rest))
        return outcome

    async def _run(self, claimed: Claimed, output: Output) -> Outcome:
        execution = claimed.execution
        try:
            program = await persist(lambda: self._bundles.program(claimed.version, execution.timeout))
            if execution.status == "preparing":
                await persist(lambda: self._begin(execution))
            return await self._sandbox.run(program, msgspec.json.encode(execution.input_data), output.take)
        except DomainError as error:
            if error.code not in ("sandbox_unavailable", "storage_unavailable", "not_found"):
                raise
            kind = error.code if error.code == "sandbox_unavailable" else "version_unavailable"
            return Outcome(error_type=kind, error_message=error.detail)

    async def _begin(self, execution: Execution) -> None:
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.begin_running(tx, execution)

    async def _record(self, execution: Execution, batch: list[Event]) -> None:
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.record(tx, execution, batch)

    async def _finish(self, execution: Execution, outcome: Outcome, rest: list[Event]) -> None:
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.finish(tx, execution, outcome, rest)

    async def _give_back(self, execution: Execution) -> None:
        try:
            async with self._store.begin_for(execution.tenant_id) as tx:
                await executions.give_back(tx, execution)
        except DomainError as error:
            _log.warning("could not give an execution back; its lease will run out", error=error.detail)
