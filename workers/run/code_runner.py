"""Run the executions of uploaded agents, each in its own sandbox."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from domain import executions
from domain.builds import AgentVersion
from domain.egress import EgressEntry
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.ports import NetworkServer, Sandbox, SandboxOutcome
from domain.shared.errors import DomainError, NotFound
from infra.build_cache import BundleCache
from infra.credentials import Keyring
from infra.polling import retry_through_outage
from workers.lane_runner import LaneContext, LaneRunner, check_output
from workers.run.code_run import CodeRun
from workers.run.egress import EgressAccess, EgressRecord, serve_egress
from workers.run.gateway import GatewayCalls, serve_gateway
from workers.run.network import serve_together
from workers.run.settings import load_run_settings
from workers.run.warm_settings import WarmSettings
from workers.run.work_files import NoRoomForFiles, WorkFiles

_MAX_CACHED_VERSIONS: Final = 1000
# Errors that are reported as what they are.
_REPORTED_CODES: Final = (
    "egress_not_allowed",
    "file_unavailable",
    "sandbox_unavailable",
    "secret_unavailable",
    "thread_changed",
)


class CodeDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what runs of uploaded code work with in one worker process.

    `open_files` returns the files of a run, and `make_calls` the `GatewayCalls` of one whose version names models;
    `egress_access` is for hosts outside.
    """

    sandbox: Sandbox
    bundles: BundleCache
    keyring: Keyring
    open_files: Callable[[Execution], WorkFiles]
    make_calls: Callable[[Execution], GatewayCalls] | None = None
    egress_access: EgressAccess | None = None


class CodeRunner(LaneRunner):
    """Run the executions of the `run` lane in one worker process."""

    def __init__(self, context: LaneContext, dependencies: CodeDependencies) -> None:
        super().__init__(context)
        self._sandbox, self._bundles = dependencies.sandbox, dependencies.bundles
        self._keyring, self._open_files = dependencies.keyring, dependencies.open_files
        self._make_calls, self._egress_access = dependencies.make_calls, dependencies.egress_access
        self._versions: OrderedDict[str, AgentVersion] = OrderedDict()
        self.slots = WarmSettings(dependencies.sandbox)

    def list_ready_versions(self) -> frozenset[str]:
        """Return the versions whose bundles are on this machine and that were run here before."""
        return frozenset(self._bundles.local_version_ids & self._versions.keys())

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Run an execution in the sandbox, and settle it with the outcome and the last output of the program."""
        run = CodeRun(execution, self._context.clock, lambda events: self._record_events(execution, events))
        flushing = asyncio.create_task(run.output.flush_until_stopped())
        running = asyncio.create_task(self._run_in_sandbox(run))
        try:
            await asyncio.wait((running, flushing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A run without an outcome is stopped: its lease was lost, or this process is ending.
            run.output.stop()
            if not running.done():
                running.cancel()
            await asyncio.wait((running, flushing))
        flushing.result()
        outcome, last_events = await run.mask.mask_outcome(running.result()), run.take_last_events()
        outcome = await self._check_output(run, outcome)
        return await self._settle_run(run, run.keep_turn(run.keep_state(outcome)), last_events)

    async def _check_output(self, run: CodeRun, outcome: SandboxOutcome) -> SandboxOutcome:
        """Return the outcome of a run, or `output_invalid` for a result that breaks its schema."""
        schema, version = run.execution.output_schema, self._versions.get(run.execution.agent_version_id or "")
        if schema is None and version is not None:
            schema = version.output_schema
        return await check_output(outcome, schema, run.execution.tenant_id)

    async def _settle_run(self, run: CodeRun, outcome: SandboxOutcome, events: list[ExecutionEvent]) -> str | None:
        """Settle a run with what it leaves, or without its state as failed. Return the error type."""
        try:
            await retry_through_outage(lambda: self.settle_execution(run.execution, outcome, events, run.write_results))
        except NoRoomForFiles as error:
            return await self._settle_run(run, outcome, [*events, *run.drop_files(error)])
        except DomainError as error:
            failure = run.drop_results(error)
            if failure is None:
                raise
            return await self._settle_run(run, failure, events)
        return outcome.error_type

    async def _run_in_sandbox(self, run: CodeRun) -> SandboxOutcome:
        execution = run.execution
        try:
            version = await self._get_version(execution)
            if version.models and self._make_calls is None:
                message = "The version calls models, and this worker was started without access to any."
                return SandboxOutcome(error_type="model_unavailable", error_message=message)
            loaded_at = self.slots.change_count
            settings = await load_run_settings(self._store, self._keyring, execution, version)
            run.mask.use_mask(settings.mask)
            async with contextlib.AsyncExitStack() as stack:
                opening = self._bundles.open_program
                program = await retry_through_outage(
                    lambda: stack.enter_async_context(opening(version, execution.timeout))
                )
                if execution.status == "preparing":
                    await self._store.run(
                        execution.tenant_id, lambda tx: executions.begin_running(tx, execution), retry=True
                    )
                serve = self._build_server(run, version, settings.egress)
                payload = msgspec.json.encode(execution.input_data)
                program = settings.apply_to(program)
                stack.enter_context(self.slots.watch_run(program.code, settings.sources, loaded_at))
                files = self._open_files(execution)
                await files.load()
                await run.load_conversation(self._store)
                hooks = run.build_hooks(self._store, serve, files)
                outcome = await self._sandbox.run_program(program, payload, run.add_output, hooks)
                run.take_files(files)
                return outcome
        except DomainError as error:
            if error.code not in (*_REPORTED_CODES, "storage_unavailable", "not_found"):
                raise
            error_type = error.code if error.code in _REPORTED_CODES else "version_unavailable"
            return SandboxOutcome(error_type=error_type, error_message=error.detail)

    def _build_server(
        self, run: CodeRun, version: AgentVersion, entries: Sequence[EgressEntry]
    ) -> NetworkServer | None:
        """Return what serves the network of a run, which has models, hosts, both or neither."""
        servers: list[NetworkServer] = []
        if self._make_calls is not None and version.models:
            servers.append(serve_gateway(self._make_calls(run.execution), version.models, egress=entries))
        if self._egress_access is not None and entries:
            access = self._egress_access
            record = EgressRecord(run.add_egress, access.limits.max_events)
            servers.append(serve_egress(access, run.execution.tenant_id, entries, record))
        return serve_together(servers) if servers else None

    async def _get_version(self, execution: Execution) -> AgentVersion:
        """Return the version to run. A ready one never changes, so it is read once. Errors: `NotFound`."""
        version_id = execution.agent_version_id or ""
        version = self._versions.get(version_id)
        if version is not None:
            self._versions.move_to_end(version_id)
            return version
        version = await self._store.run(execution.tenant_id, lambda tx: tx.builds.get(version_id), retry=True)
        if version is None:
            raise NotFound("version", version_id)
        self._versions[version_id] = version
        if len(self._versions) > _MAX_CACHED_VERSIONS:
            self._versions.popitem(last=False)
        return version

    async def _record_events(self, execution: Execution, events: list[ExecutionEvent]) -> None:
        await self._store.run(execution.tenant_id, lambda tx: executions.append_agent_events(tx, execution, events))
