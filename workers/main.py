"""The entry point of worker processes: one lane each, or upkeep."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop
from msgspec.structs import replace

from domain.costs import BilledCall
from domain.executions import LaneShare, count_reserved_slots
from domain.ports import Sandbox, Store
from domain.queues import WorkerInfo
from domain.shared.errors import DomainError
from domain.shared.jobs import Lane
from infra import notifications
from infra.build_cache import BundleCache, EnvironmentCache, FolderCache
from infra.disks import build_full_disk_error, is_full
from infra.embeddings import WordLlamaSimilarity
from infra.http import Outbound
from infra.llm import GenaiPrices, PydanticLlm
from infra.llm.local_model import LocalModelClient
from infra.notifications import BellWorker, create_arq_client
from infra.otlp import TraceCollector
from infra.outage_log import log_outage
from infra.sandbox import BubblewrapSandbox, SlotCounts, open_run_sandbox
from infra.settings import Settings, build_worker_id, parse_headers
from infra.telemetry import open_telemetry
from infra.wiring import Resources, open_resources
from infra.worker_metrics import WorkerMetrics
from workers.agent.runner import AgentRunner, ModelCallFactory
from workers.agent.tools import ToolDependencies
from workers.build.builder import VersionBuilder
from workers.cache_cleanup import clean_cache
from workers.event_writer import EventWriter
from workers.health import WorkerHealth
from workers.leases import LeaseKeeper
from workers.lifecycle import Drain, run_with_background
from workers.plan.advancer import PlanAdvancer
from workers.polling import Work, ring_all, rounds
from workers.record.artifacts import ArtifactCapturer, BodyUploader, ObjectRemover
from workers.record.evaluations import EvaluationScorer
from workers.record.stats import StatsFolder
from workers.record.traces import TraceExporter
from workers.run.code_runner import Claimer, CodeRunner
from workers.run.named_models import NamedModelCalls
from workers.upkeep import Upkeep
from workers.upkeep.retention import RetentionSweeper
from workers.upkeep.schedules import ScheduleStarter

_log = structlog.get_logger("paddock.workers")

HEARTBEAT_SECONDS: Final = 5.0
# How long what was deleted stays in the caches of a machine, at most.
CACHE_CLEANUP_SECONDS: Final = 30.0
# Plans that are advanced at once: each takes a connection for some milliseconds.
PLAN_SLOTS: Final = 4


def run_worker(process: str, settings: Settings, once_idle: float | None = None) -> None:
    """Be the worker process named (`build`, `run`, `llm`, `plan`, `record` or `upkeep`) until SIGTERM or SIGINT.

    With `once_idle` it also ends when there was nothing to do for so many seconds.
    """
    open_telemetry(settings, process)
    uvloop.run(_serve(process, settings, once_idle))


async def _serve(process: str, settings: Settings, once_idle: float | None) -> None:
    drain = Drain(settings.drain_seconds, once_idle)
    await drain.run(SERVE_BY_PROCESS[process](settings, drain))


async def serve_runs(settings: Settings, drain: Drain) -> None:
    """Run executions until draining ends them."""
    sandbox = await open_run_sandbox(settings.sandbox, settings.bwrap or None, settings.warm_memory_mb)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(sandbox.close)
        hands = await stack.enter_async_context(_hands(settings, drain, "run", settings.run_slots, sandbox))
        parts, share = hands.parts, _share(settings, settings.run_slots)
        phone = await stack.enter_async_context(_phone(parts, sandbox, drain))
        runner = CodeRunner(
            hands.name,
            parts.store,
            sandbox,
            hands.bundles,
            hands.holder,
            parts.clock,
            share,
            lambda execution: NamedModelCalls(phone.create_calls(execution)),
        )
        dispatcher = Claimer(runner, settings.run_slots, parts.bell.get_lane_event("run"), drain)
        await hands.serve(dispatcher.run(), lambda: sandbox.counts)


async def serve_llms(settings: Settings, drain: Drain) -> None:
    """Run model agents until draining ends them, which is after their step."""
    sandbox = BubblewrapSandbox(bwrap=settings.bwrap or None)
    async with contextlib.AsyncExitStack() as stack:
        hands = await stack.enter_async_context(_hands(settings, drain, "llm", settings.llm_slots, sandbox))
        phone = await stack.enter_async_context(_phone(hands.parts, sandbox, drain))
        parts, share = hands.parts, _share(settings, settings.llm_slots)
        scribe = EventWriter(parts.store, parts.clock)
        runner = AgentRunner(hands.name, phone, scribe, hands.holder, parts.clock, share, drain)
        dispatcher = Claimer(runner, settings.llm_slots, parts.bell.get_lane_event("llm"), drain)
        work = run_with_background(dispatcher.run(), scribe.run())
        await hands.serve(work, lambda: SlotCounts(warm=0, blank=0, making=0, busy=0))


@contextlib.asynccontextmanager
async def _phone(parts: Resources, sandbox: Sandbox, drain: Drain) -> AsyncIterator[ModelCallFactory]:
    settings = parts.settings
    outbound = Outbound(settings.private_hosts)
    door, url = settings.local_model_door or None, settings.local_model_url or None
    key = settings.local_model_key if settings.local_model_key.reveal() else None
    llm = PydanticLlm(outbound, LocalModelClient(door, url, key))
    shop = ToolDependencies(
        store=parts.store,
        blobs=parts.blobs,
        sandbox=sandbox,
        outbound=outbound,
        keyring=parts.keyring,
        sandbox_slots=asyncio.Semaphore(settings.run_slots),
    )
    try:
        yield ModelCallFactory(
            dependencies=shop, llm=llm, prices=GenaiPrices(), on_call=lambda call: _count_call(drain.metrics, call)
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
    async with _hands(settings, drain, "build", settings.build_slots, sandbox) as hands:
        parts = hands.parts
        builder = VersionBuilder(
            hands.name,
            parts.store,
            sandbox,
            parts.blobs,
            hands.bundles,
            hands.environments,
            hands.holder,
            quota=settings.tenant_max_stored_bytes,
            slots=settings.build_slots,
            drain=drain,
        )
        jobs = create_arq_client(settings.redis_url.reveal())
        try:
            drain.wake_on_drain(parts.bell.get_lane_event("build"))

            def ends() -> bool:
                # Asked in each turn of the loop that takes jobs. What they are is counted where they are held.
                drain.note_round("jobs", False)
                return drain.has_begun()

            worker = notifications.create_lane_worker(jobs, parts.bell, "build", settings.build_slots, builder, ends)
            await hands.serve(_work_off(worker), lambda: SlotCounts(warm=0, blank=0, making=0, busy=0))
        finally:
            await jobs.aclose()


class LaneResources:
    """What a process of either lane has, and what it does besides its work."""

    def __init__(
        self,
        settings: Settings,
        drain: Drain,
        parts: Resources,
        leases: Store,
        lane: Lane,
        slots: int,
        sandbox: Sandbox,
    ) -> None:
        self.name, self.parts, self._drain = build_worker_id(lane), parts, drain
        self.cache = FolderCache(settings.cache_dir, settings.cache_max_bytes)
        self.environments = EnvironmentCache(self.cache, parts.blobs, sandbox)
        self.bundles = BundleCache(self.cache, parts.blobs, sandbox, self.environments)
        self.holder = LeaseKeeper(
            leases, parts.bell, parts.clock, lane, timedelta(seconds=settings.lease_seconds), drain
        )
        self._settings, self._sandbox, self._info = settings, sandbox, _info(parts, self.name, lane, slots)
        self._problem: str | None = None
        self.health = WorkerHealth(self.name, lane, parts, drain, lambda: self._problem)

    async def serve(self, work: Coroutine[Any, Any, None], counts: Callable[[], SlotCounts]) -> None:
        """Work to the end, extending leases and giving signs of life."""
        _show(self._drain, self._info, lambda: self.holder.lease_count)
        _show_sandboxes(self._drain, counts)
        idle = self._drain.end_when_idle(lambda: self.holder.lease_count, self.parts.store.check_health)
        await run_with_background(work, self.holder.extend_leases(), self._beat(counts), self._tidy(), idle)

    async def _tidy(self) -> None:
        """Keep the caches of this machine within their bounds, without what nobody needs any more."""
        while True:
            try:
                removed = await clean_cache(self.cache, self.parts.store, self._settings.cache_days * 86400)
                self.bundles.forget_versions(removed)
            except (DomainError, OSError) as error:
                _log.warning("cannot tidy the cache", error=str(error))
            await asyncio.sleep(CACHE_CLEANUP_SECONDS)

    async def _beat(self, counts: Callable[[], SlotCounts]) -> None:
        """Say every few seconds how busy this process is, and whether it can isolate code."""
        while True:
            status = await self._sandbox.get_status()
            problem = None if status.available else status.reason
            if problem and problem != self._problem:
                _log.error("runs are refused on this host", reason=problem)
            self._problem, now = problem, counts()
            await _sign(
                self.parts,
                replace(self._info, busy=self.holder.lease_count, warm=now.warm, blank=now.blank, problem=problem),
            )
            await asyncio.sleep(HEARTBEAT_SECONDS)


@contextlib.asynccontextmanager
async def _hands(
    settings: Settings, drain: Drain, lane: Lane, slots: int, sandbox: Sandbox
) -> AsyncIterator[LaneResources]:
    async with (
        open_resources(settings, f"paddock {lane}", lanes=(lane,), revocations=(lane,)) as parts,
        parts.open_dedicated_store() as leases,
    ):
        hands = LaneResources(settings, drain, parts, leases, lane, slots, sandbox)
        try:
            async with hands.health.serve():
                yield hands
        finally:
            await _gone(parts, hands.name)


async def serve_records(settings: Settings, drain: Drain) -> None:
    """Fold, store, judge, capture and export records until draining begins; rounds under way end first."""
    name = build_worker_id("record")
    async with open_resources(settings, "paddock record", lanes=("record",)) as parts, _export(parts) as export:
        work: dict[str, tuple[Work, float]] = {
            "fold": (StatsFolder(parts.store), 0.5),
            "store": (BodyUploader(parts.store, parts.blobs), 0.05),
            "remove": (ObjectRemover(parts.store, parts.blobs), 0.2),
            "judge": (EvaluationScorer(parts.store, WordLlamaSimilarity()), 0.05),
            "capture": (ArtifactCapturer(parts.store, parts.settings.environment), 0.1),
            **export,
        }
        events = [asyncio.Event() for _ in work]
        info = _info(parts, name, "record", 0)
        try:
            ringing = ring_all(parts.bell.get_lane_event("record"), events, drain)
            loops = [
                rounds(name, one, event, pause, drain)
                for (name, (one, pause)), event in zip(work.items(), events, strict=True)
            ]
            await _serve_alone(parts, info, drain, _all(loops), company=(ringing,))
        finally:
            await _gone(parts, name)


async def _all(loops: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run loops until all have ended."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop)


@contextlib.asynccontextmanager
async def _export(parts: Resources) -> AsyncIterator[dict[str, tuple[Work, float]]]:
    """The export of traces, where a collector of them is configured."""
    settings = parts.settings
    if not settings.otlp_endpoint:
        yield {}
        return
    collector = TraceCollector(settings.otlp_endpoint, parse_headers(settings.otlp_headers, "otlp_headers"))
    try:
        yield {"export": (TraceExporter(parts.store, collector), 0.05)}
    finally:
        await collector.close()


async def _serve_alone(
    parts: Resources,
    info: WorkerInfo,
    drain: Drain,
    work: Coroutine[Any, Any, None],
    busy: Callable[[], int] = lambda: 0,
    company: tuple[Coroutine[Any, Any, None], ...] = (),
) -> None:
    """Work to the end in a process that holds no leases, giving signs of life."""
    _show(drain, info, busy)
    async with WorkerHealth(info.id, info.lane, parts, drain, lambda: None).serve():
        idle = drain.end_when_idle(busy, parts.store.check_health)
        await run_with_background(work, _beat_always(parts, info, busy), idle, *company)


def _show(drain: Drain, info: WorkerInfo, busy: Callable[[], int]) -> None:
    """Export how busy this process is."""
    metrics = drain.metrics
    metrics.add_gauge("paddock_worker_slots", "How much this process does at a time.", lambda: info.slots)
    metrics.add_gauge("paddock_worker_busy", "How much it does now: rows that it holds, plans that it advances.", busy)
    metrics.add_gauge("paddock_worker_draining", "1 once it is about to end.", lambda: float(drain.has_begun()))


def _show_sandboxes(drain: Drain, counts: Callable[[], SlotCounts]) -> None:
    """Export the sandboxes of this process."""

    def show(state: str) -> None:
        told = "Sandboxes of this process, by state."
        drain.metrics.add_gauge("paddock_worker_sandboxes", told, lambda: getattr(counts(), state), state=state)

    for state in SlotCounts.__struct_fields__:
        show(state)


async def _beat_always(parts: Resources, info: WorkerInfo, busy: Callable[[], int] = lambda: 0) -> None:
    while True:
        await _sign(parts, replace(info, busy=busy()))
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def serve_plans(settings: Settings, drain: Drain) -> None:
    """Advance plans until draining begins; those that are being advanced are finished, which takes no time."""
    name = build_worker_id("plan")
    async with open_resources(settings, "paddock plan", lanes=("plan",)) as parts:
        planner = PlanAdvancer(parts.store, PLAN_SLOTS, parts.bell.get_lane_event("plan"), drain)
        info = _info(parts, name, "plan", PLAN_SLOTS)
        try:
            await _serve_alone(parts, info, drain, planner.run(), lambda: planner.busy_count)
        finally:
            await _gone(parts, name)


async def serve_upkeep(settings: Settings, drain: Drain) -> None:
    """Look after everything until draining begins."""
    name = build_worker_id("upkeep")
    async with open_resources(settings, "paddock upkeep") as parts:
        info = _info(parts, name, "upkeep", 0)
        loops = [
            Upkeep(settings, parts.store, parts.queue, parts.blobs, parts.clock, drain).run(),
            # Apart: deleting what is too old may take long, and leases run out meanwhile.
            RetentionSweeper(parts.store, drain, settings.retention_days).run(),
            ScheduleStarter(parts.store, drain).run(),
        ]
        try:
            await _serve_alone(parts, info, drain, _all(loops))
        finally:
            await _gone(parts, name)


def _info(parts: Resources, name: str, lane: str, slots: int) -> WorkerInfo:
    now = parts.clock()
    return WorkerInfo(
        id=name,
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


async def _sign(parts: Resources, info: WorkerInfo) -> None:
    """A sign of life."""
    full = info.lane in ("build", "run", "llm") and is_full(Path(parts.settings.data_dir))
    problem = info.problem or (build_full_disk_error(f"the worker {info.id}").detail if full else None)
    try:
        async with parts.store.system_transaction() as tx:
            await tx.workers.save(replace(info, seen_at=tx.now, problem=problem))
    except Exception as error:
        log_outage(_log, "cannot give a sign of life", error)


def _share(settings: Settings, slots: int) -> LaneShare:
    """What of its slots a worker leaves to others."""
    return LaneShare(max_running=settings.tenant_max_concurrency or None, reserved_slots=count_reserved_slots(slots))


async def _gone(parts: Resources, name: str) -> None:
    with contextlib.suppress(DomainError, asyncio.TimeoutError):
        async with asyncio.timeout(2), parts.store.system_transaction() as tx:
            await tx.workers.delete(name)


async def _work_off(worker: BellWorker) -> None:
    """Take arq's jobs until draining begins. If cancelled, each hands its row over before it ends."""
    try:
        await worker.main()
    finally:
        tasks = [*worker.job_tasks.values(), *worker.tasks.values()]
        for task in worker.job_tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


SERVE_BY_PROCESS: Final = {
    "build": serve_builds,
    "run": serve_runs,
    "llm": serve_llms,
    "plan": serve_plans,
    "record": serve_records,
    "upkeep": serve_upkeep,
}
