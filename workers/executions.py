"""Runs executions: claim as many as there are slots, run each in the sandbox, settle together."""

import asyncio
from collections import OrderedDict
from typing import Final

import msgspec
import structlog

from domain import executions
from domain.builds import Version
from domain.errors import DomainError, not_found
from domain.events import Event
from domain.executions import Ended, Execution
from domain.leases import LostLease
from domain.ports import Clock, Outcome, Sandbox, Store
from infra.batches import Batches
from infra.bundles import Bundles
from workers.leases import Holder, persist, taken
from workers.output import Output

_log = structlog.get_logger("paddock.executions")

# Whoever is not rung looks this often, in seconds: for rings that Redis lost.
LOOK: Final = 5.0
_KNOWN_VERSIONS: Final = 1000


class Runner:
    """The run lane of one worker process."""

    def __init__(
        self,
        name: str,
        store: Store,
        sandbox: Sandbox,
        bundles: Bundles,
        holder: Holder,
        clock: Clock,
        most: int | None = None,
    ) -> None:
        self._name, self._store, self._sandbox = name, store, sandbox
        self._bundles, self._holder, self._clock, self._most = bundles, holder, clock, most
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._endings = Batches(self._settle)
        # Whether executions may have waited when the last one was settled.
        self.waiting = True

    async def claim(self, slots: int) -> list[Execution]:
        """Claim up to `slots` executions, of whichever tenants are next."""
        at_hand = self._bundles.at_hand & self._versions.keys()
        async with self._store.begin_single() as tx:
            return await executions.claim(tx, self._name, self._holder.lease, slots, frozenset(at_hand), self._most)

    async def __call__(self, execution: Execution) -> None:
        """Run a claimed execution to its end."""
        log = _log.bind(execution_id=execution.id, attempt=execution.attempt)
        log.info("run started", version_id=execution.agent_version_id)
        settled = await self._holder.attend(
            log,
            execution.id,
            execution.attempt,
            self._work(execution),
            lambda: self.give_back(execution),
            lambda told: self._end(execution, Outcome(error_type="internal_error", error_message=told), []),
        )
        # Whoever ended it instead may have made room for one that waits.
        self.waiting = self.waiting or not settled

    async def give_back(self, execution: Execution) -> None:
        """Hand a claimed execution back to the queue."""
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.give_back(tx, execution)

    async def _work(self, execution: Execution) -> str | None:
        output = Output(lambda batch: self._record(execution, batch), self._clock)
        stop = asyncio.Event()
        flushing = asyncio.create_task(output.flush_until(stop))
        running = asyncio.create_task(self._run(execution, output))
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
        await persist(lambda: self._end(execution, outcome, rest))
        return outcome.error_type

    async def _run(self, execution: Execution, output: Output) -> Outcome:
        try:
            version = await persist(lambda: self._version(execution))
            program = await persist(lambda: self._bundles.program(version, execution.timeout))
            if execution.status == "preparing":
                await persist(lambda: self._begin(execution))
            return await self._sandbox.run(program, msgspec.json.encode(execution.input_data), output.take)
        except DomainError as error:
            if error.code not in ("sandbox_unavailable", "storage_unavailable", "not_found"):
                raise
            kind = error.code if error.code == "sandbox_unavailable" else "version_unavailable"
            return Outcome(error_type=kind, error_message=error.detail)

    async def _version(self, execution: Execution) -> Version:
        """The version to run. A ready one never changes, so it is asked for once."""
        version_id = execution.agent_version_id or ""
        known = self._versions.get(version_id)
        if known is not None:
            self._versions.move_to_end(version_id)
            return known
        async with self._store.begin_for(execution.tenant_id) as tx:
            found = await tx.builds.get(version_id)
        if found is None:
            raise not_found("version", version_id)
        self._versions[version_id] = found
        if len(self._versions) > _KNOWN_VERSIONS:
            self._versions.popitem(last=False)
        return found

    async def _begin(self, execution: Execution) -> None:
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.begin_running(tx, execution)

    async def _record(self, execution: Execution, batch: list[Event]) -> None:
        async with self._store.begin_for(execution.tenant_id) as tx:
            await executions.record(tx, execution, batch)

    async def _end(self, execution: Execution, outcome: Outcome, rest: list[Event]) -> None:
        """Settle. Errors: `LostLease`."""
        if not await self._endings.add(Ended(execution=execution, outcome=outcome, written=rest)):
            raise LostLease(execution.id)

    async def _settle(self, ended: list[Ended]) -> list[bool]:
        async with self._store.begin_single() as tx:
            settled = await executions.finish(tx, ended)
        self.waiting = settled.waiting
        return [(one.execution.id, one.execution.attempt) in settled.held for one in ended]


class Dispatcher:
    """Takes executions as slots come free: at once when rung, and several with one statement under load."""

    def __init__(self, runner: Runner, slots: int, rung: asyncio.Event) -> None:
        self._runner, self._slots, self._wake = runner, slots, rung
        self._running: set[asyncio.Task[None]] = set()
        # Rung while every slot was taken.
        self._owed = False

    async def run(self) -> None:
        """Take executions until cancelled; then give back what is held."""
        try:
            while True:
                self._wake.clear()
                free = self._slots - len(self._running)
                claimed = await self._take(free) if free else 0
                self._owed = claimed == free
                if claimed < free or not free:
                    await self._woken()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self, free: int) -> int:
        try:
            claimed = await taken(self._runner.claim(free), self._runner.give_back)
        except DomainError as error:
            _log.warning("cannot take runs", error=error.detail)
            await asyncio.sleep(0.5)
            return free
        for execution in claimed:
            task = asyncio.create_task(self._runner(execution))
            self._running.add(task)
            task.add_done_callback(self._freed)
        return len(claimed)

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._owed or self._runner.waiting:
            self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a run's end could not be written; its lease will run out", error=str(task.exception()))

    async def _woken(self) -> None:
        try:
            async with asyncio.timeout(LOOK):
                await self._wake.wait()
        except TimeoutError:
            pass
