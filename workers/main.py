"""Start worker processes: one lane each, or upkeep."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog
import uvloop

from domain.costs import BilledCall
from domain.executions import LaneShare, RunLane, count_reserved_slots
from domain.ports import Sandbox, Store
from domain.queues import WorkerInfo
from domain.shared.errors import DomainError
from domain.shared.jobs import Lane
from infra import notifications
from infra.build_cache import BundleCache, EnvironmentCache, FolderCache
from infra.credentials import Keyring
from infra.embeddings import WordLlamaSimilarity
from infra.http import Outbound
from infra.llm import GenaiPrices, PydanticLlm
from infra.llm.local_model import LocalModelClient
from infra.notifications import BellWorker, create_arq_client
from infra.otlp import TraceCollector
from infra.sandbox import BubblewrapSandbox, SlotCounts, open_run_sandbox
from infra.settings import Settings, build_worker_id, parse_headers
from infra.telemetry import open_telemetry
from infra.wiring import Resources, open_resources
from infra.worker_metrics import WorkerMetrics
from workers.agent import AgentRunner, ToolDependencies
from workers.build import BuildDependencies, VersionBuilder
from workers.cache_cleanup import clean_cache
from workers.claimer import Claimer
from workers.descriptors import prepare_descriptors
from workers.event_writer import EventWriter
from workers.health import WorkerHealth
from workers.heartbeat import NO_SANDBOXES, Heartbeat, export_sandbox_metrics
from workers.lane_runner import LaneContext
from workers.leases import LeaseKeeper
from workers.lifecycle import Drain, run_with_background
from workers.model_calls import ModelAccess, ModelCalls
from workers.plan import PlanAdvancer
from workers.record import (
    RecordWork,
    TraceExporter,
    forward_rings,
    list_record_works,
    poll_records,
)
from workers.run import (
    CodeDependencies,
    CodeRunner,
    NamedModelCalls,
    ReasoningSealer,
    WorkFiles,
    WorkLimits,
    open_egress,
)
from workers.upkeep import GateKeeper, RetentionSweeper, ScheduleStarter, Upkeep

_log = structlog.get_logger("paddock.workers")

# Seconds that what was deleted may stay in the caches of a machine.
CACHE_CLEANUP_SECONDS: Final = 30.0
# Plans that are advanced at once: each takes a connection for some milliseconds.
PLAN_SLOTS: Final = 4


def run_worker(process: str, settings: Settings, once_idle: float | None = None) -> None:
    """Run a worker process (`build`, `run`, `llm`, `plan`, `record` or `upkeep`) until SIGTERM or SIGINT.

    With `once_idle` it also ends after so many seconds without any work.
    """
    open_telemetry(settings, process)
    prepare_descriptors(process, settings)
    uvloop.run(_serve(process, settings, once_idle))


async def _serve(process: str, settings: Settings, once_idle: float | None) -> None:
    drain = Drain(settings.drain_seconds, once_idle)
    await drain.run(SERVE_BY_PROCESS[process](settings, drain))


# processes that hold leases


class LaneResources:
    """Hold what a process of the lanes `build`, `run` and `llm` has, and do what it does besides its work."""

    def __init__(
        self, parts: Resources, lease_store: Store, drain: Drain, lane: Lane, slots: int, sandbox: Sandbox
    ) -> None:
        settings = parts.settings
        self.parts, self.drain, self.slots, self.sandbox = parts, drain, slots, sandbox
        self.cache = FolderCache(settings.cache_dir, settings.cache_max_bytes)
        self.environments = EnvironmentCache(self.cache, parts.blobs, sandbox)
        self.bundles = BundleCache(self.cache, parts.blobs, sandbox, self.environments)
        lease = timedelta(seconds=settings.lease_seconds)
        self.leases = LeaseKeeper(lease_store, parts.bell, parts.clock, lane, lease, drain)
        info = describe_worker(parts, lane, slots)
        self.heartbeat = Heartbeat(
            parts.store, info, settings.data_dir, count_busy=lambda: self.leases.lease_count, sandbox=sandbox
        )

    def create_context(self, lane: RunLane) -> LaneContext:
        """Return what the runner of this lane works with."""
        settings = self.parts.settings
        return LaneContext(
            worker_id=self.heartbeat.info.id,
            store=self.parts.store,
            leases=self.leases,
            clock=self.parts.clock,
            share=LaneShare(
                lane=lane,
                max_running=settings.tenant_max_concurrency or None,
                reserved_slots=count_reserved_slots(self.slots),
            ),
            drain=self.drain,
        )

    async def serve(
        self, work: Coroutine[Any, Any, None], count_sandboxes: Callable[[], SlotCounts] = lambda: NO_SANDBOXES
    ) -> None:
        """Work to the end, while leases are extended, heartbeats sent and the cache kept clean."""
        self.heartbeat.export_metrics(self.drain)
        export_sandbox_metrics(self.drain, count_sandboxes)
        await run_with_background(
            work,
            self.leases.extend_leases(),
            self.heartbeat.run(count_sandboxes),
            self._keep_cache_clean(),
            self.drain.end_when_idle(lambda: self.leases.lease_count, self.parts.store.check_health),
        )

    async def _keep_cache_clean(self) -> None:
        """Keep the caches of this machine within their limits, and without what was deleted."""
        while True:
            try:
                removed = await clean_cache(self.cache, self.parts.store, self.parts.settings.cache_days * 86400)
                self.bundles.forget_versions(removed)
            except (DomainError, OSError) as error:
                _log.warning("cannot clean the cache", error=str(error))
            await asyncio.sleep(CACHE_CLEANUP_SECONDS)


@contextlib.asynccontextmanager
async def open_lane(
    settings: Settings, drain: Drain, lane: Lane, slots: int, sandbox: Sandbox
) -> AsyncIterator[LaneResources]:
    """Open the resources of a lane's process, and serve its health."""
    async with (
        open_resources(settings, f"paddock {lane}", lanes=(lane,), revocations=(lane,)) as parts,
        parts.open_dedicated_store() as lease_store,
    ):
        resources = LaneResources(parts, lease_store, drain, lane, slots, sandbox)
        try:
            async with WorkerHealth(settings, parts.store, parts.redis, drain, resources.heartbeat).serve():
                yield resources
        finally:
            await resources.heartbeat.remove()


async def serve_runs(settings: Settings, drain: Drain) -> None:
    """Run executions of uploaded agents until draining ends them."""
    sandbox = await open_run_sandbox(settings.sandbox, settings.bwrap or None, settings.warm_memory_mb)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(sandbox.close)
        lane = await stack.enter_async_context(open_lane(settings, drain, "run", settings.run_slots, sandbox))
        access = await stack.enter_async_context(_open_model_access(lane.parts, drain))
        reasoning_keyring = Keyring(settings.encryption_keys, settings.secret_key.reveal(), b"paddock reasoning")
        work_limits = WorkLimits.from_settings(settings)
        dependencies = CodeDependencies(
            sandbox=sandbox,
            bundles=lane.bundles,
            keyring=lane.parts.keyring,
            open_files=lambda execution: WorkFiles(lane.parts.store, lane.parts.blobs, execution, work_limits),
            make_calls=lambda execution: NamedModelCalls(
                ModelCalls(access, execution), ReasoningSealer(reasoning_keyring, execution.tenant_id)
            ),
            egress_access=stack.enter_context(open_egress(settings, drain.metrics)),
        )
        runner = CodeRunner(lane.create_context("run"), dependencies)
        lane.parts.bell.listen_to_changes(runner.slots.retire_changed)
        claimer = Claimer(runner, settings.run_slots, lane.parts.bell.get_lane_event("run"), drain)
        await lane.serve(claimer.run(), lambda: sandbox.counts)


async def serve_llms(settings: Settings, drain: Drain) -> None:
    """Run model agents until draining ends them, which is after their step."""
    sandbox = BubblewrapSandbox(bwrap=settings.bwrap or None)
    async with contextlib.AsyncExitStack() as stack:
        lane = await stack.enter_async_context(open_lane(settings, drain, "llm", settings.llm_slots, sandbox))
        access = await stack.enter_async_context(_open_model_access(lane.parts, drain))
        parts, events = lane.parts, EventWriter(lane.parts.store, lane.parts.clock)
        dependencies = ToolDependencies(
            store=parts.store,
            blobs=parts.blobs,
            sandbox=sandbox,
            outbound=Outbound(settings.private_hosts),
            keyring=parts.keyring,
            sandbox_slots=asyncio.Semaphore(settings.run_slots),
            similarity=WordLlamaSimilarity(),
            quota=settings.tenant_max_stored_bytes,
        )
        runner = AgentRunner(lane.create_context("llm"), dependencies, access, events)
        claimer = Claimer(runner, settings.llm_slots, parts.bell.get_lane_event("llm"), drain)
        await lane.serve(run_with_background(claimer.run(), events.run()))


@contextlib.asynccontextmanager
async def _open_model_access(parts: Resources, drain: Drain) -> AsyncIterator[ModelAccess]:
    settings = parts.settings
    key = settings.local_model_key if settings.local_model_key.reveal() else None
    local = LocalModelClient(settings.local_model_door or None, settings.local_model_url or None, key)
    llm = PydanticLlm(Outbound(settings.private_hosts), local)
    try:
        yield ModelAccess(
            store=parts.store,
            llm=llm,
            prices=GenaiPrices(),
            keyring=parts.keyring,
            on_call=lambda call: _count_call(drain.metrics, call),
        )
    finally:
        await llm.close()


def _count_call(metrics: WorkerMetrics, call: BilledCall) -> None:
    metrics.model_calls.labels(call.provider, call.status).inc()
    metrics.model_seconds.labels(call.provider).observe(call.duration_ms / 1000)
    metrics.model_tokens.labels(call.provider, "prompt").inc(call.usage.prompt_tokens)
    metrics.model_tokens.labels(call.provider, "completion").inc(call.usage.completion_tokens)


async def serve_builds(settings: Settings, drain: Drain) -> None:
    """Build versions until draining ends them."""
    sandbox = BubblewrapSandbox(bwrap=settings.bwrap or None)
    async with open_lane(settings, drain, "build", settings.build_slots, sandbox) as lane:
        parts, slots = lane.parts, settings.build_slots
        dependencies = BuildDependencies(
            store=parts.store,
            sandbox=sandbox,
            blobs=parts.blobs,
            bundles=lane.bundles,
            environments=lane.environments,
            leases=lane.leases,
            drain=drain,
        )
        quota = settings.tenant_max_stored_bytes
        builder = VersionBuilder(dependencies, lane.heartbeat.info.id, quota=quota, slots=slots)
        jobs = create_arq_client(settings.redis_url.reveal())
        try:
            drain.wake_on_drain(parts.bell.get_lane_event("build"))

            def is_draining() -> bool:
                # Called in each round of the loop that takes jobs. Their work is counted where their leases are held.
                drain.note_round("jobs", False)
                return drain.has_begun()

            worker = notifications.create_lane_worker(
                jobs, parts.bell, "build", slots, builder.build_pending, is_draining
            )
            await lane.serve(_take_jobs(worker))
        finally:
            await jobs.aclose()


async def _take_jobs(worker: BellWorker) -> None:
    """Take arq's jobs until draining begins. If cancelled, each hands its row over before it ends."""
    try:
        await worker.main()
    finally:
        tasks = [*worker.job_tasks.values(), *worker.tasks.values()]
        for task in worker.job_tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


# processes that hold no leases


async def serve_records(settings: Settings, drain: Drain) -> None:
    """Fold, store, score, capture and export records until draining begins; rounds under way end first."""
    async with (
        open_resources(settings, "paddock record", lanes=("record",)) as parts,
        _open_trace_export(parts) as export,
    ):
        works = [*list_record_works(parts.store, parts.blobs, settings.environment), *export]
        wakes = [asyncio.Event() for _ in works]
        loops = [poll_records(work, wake, drain) for work, wake in zip(works, wakes, strict=True)]
        work = run_with_background(_run_all(loops), forward_rings(parts.bell.get_lane_event("record"), wakes, drain))
        await _serve_without_leases(parts, "record", drain, work)


@contextlib.asynccontextmanager
async def _open_trace_export(parts: Resources) -> AsyncIterator[list[RecordWork]]:
    """Return the export of traces, if a collector of them is configured."""
    settings = parts.settings
    if not settings.otlp_endpoint:
        yield []
        return
    collector = TraceCollector(settings.otlp_endpoint, parse_headers(settings.otlp_headers, "otlp_headers"))
    try:
        yield [RecordWork("export", TraceExporter(parts.store, collector).export_traces, 0.05)]
    finally:
        await collector.close()


async def serve_plans(settings: Settings, drain: Drain) -> None:
    """Advance plans until draining begins; those that are being advanced are finished, which takes no time."""
    async with open_resources(settings, "paddock plan", lanes=("plan",)) as parts:
        advancer = PlanAdvancer(parts.store, PLAN_SLOTS, parts.bell.get_lane_event("plan"), drain)
        await _serve_without_leases(
            parts, "plan", drain, advancer.run(), slots=PLAN_SLOTS, count_busy=lambda: advancer.busy_count
        )


async def serve_upkeep(settings: Settings, drain: Drain) -> None:
    """Recover lost jobs, start schedules and remove what is too old until draining begins."""
    async with open_resources(settings, "paddock upkeep") as parts:
        loops = [
            Upkeep(settings, parts.store, parts.queue, parts.blobs, parts.clock, drain).run(),
            # A loop of its own: deleting what is too old may take long, and leases run out meanwhile.
            RetentionSweeper(parts.store, drain, settings.retention_days, settings.event_retention_days).run(),
            ScheduleStarter(parts.store, drain).run(),
            GateKeeper(parts.store, drain).run(),
        ]
        await _serve_without_leases(parts, "upkeep", drain, _run_all(loops))


async def _serve_without_leases(
    parts: Resources,
    lane: str,
    drain: Drain,
    work: Coroutine[Any, Any, None],
    *,
    slots: int = 0,
    count_busy: Callable[[], int] = lambda: 0,
) -> None:
    """Work to the end in a process that holds no leases, while heartbeats are sent and health is served."""
    settings = parts.settings
    heartbeat = Heartbeat(parts.store, describe_worker(parts, lane, slots), settings.data_dir, count_busy=count_busy)
    heartbeat.export_metrics(drain)
    try:
        async with WorkerHealth(settings, parts.store, parts.redis, drain, heartbeat).serve():
            idle = drain.end_when_idle(count_busy, parts.store.check_health)
            await run_with_background(work, heartbeat.run(), idle)
    finally:
        await heartbeat.remove()


async def _run_all(loops: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run loops until all have ended."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop)


def describe_worker(parts: Resources, lane: str, slots: int) -> WorkerInfo:
    """Return what the list of workers shows of this process."""
    now = parts.clock()
    return WorkerInfo(
        id=build_worker_id(lane),
        lane=lane,
        host=socket.gethostname(),
        pid=os.getpid(),
        slots=slots,
        busy=0,
        warm=0,
        blank=0,
        problem=None,
        metrics_port=parts.settings.worker_port or None,
        started_at=now,
        seen_at=now,
    )


SERVE_BY_PROCESS: Final = {
    "build": serve_builds,
    "run": serve_runs,
    "llm": serve_llms,
    "plan": serve_plans,
    "record": serve_records,
    "upkeep": serve_upkeep,
}
