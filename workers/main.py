"""The entry point of worker processes: one lane each, or upkeep."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final

import structlog
import uvloop
from msgspec.structs import replace

from domain.errors import DomainError
from domain.jobs import LANES, Lane
from domain.ports import Sandbox
from domain.queues import WorkerInfo
from infra import queue
from infra.bundles import Bundles
from infra.environments import Environments, forget_unused
from infra.queue import BellWorker, arq_client
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.warm import WarmSandbox, sandbox_for_runs
from infra.settings import Settings, worker_id
from infra.telemetry import configure_logging
from infra.wiring import Parts, wire
from workers.builds import Builder
from workers.executions import Dispatcher, Runner
from workers.leases import Holder
from workers.upkeep import Upkeep

_log = structlog.get_logger("paddock.workers")

BEAT: Final = 5.0
PROCESSES: Final = (*LANES, "upkeep")


def run(process: str, settings: Settings) -> None:
    """Be the worker process named (`build`, `run` or `upkeep`) until SIGTERM or SIGINT."""
    configure_logging(settings.log_level, process)
    uvloop.run(_until_told(serve_upkeep(settings) if process == "upkeep" else serve_lane(settings, _lane(process))))


def _lane(process: str) -> Lane:
    return next(lane for lane in LANES if lane == process)


async def serve_lane(settings: Settings, lane: Lane) -> None:
    """Take jobs of one lane until cancelled; then give back what is held."""
    name = worker_id(lane)
    slots = settings.run_slots if lane == "run" else settings.build_slots
    async with wire(settings, f"paddock {lane}", rung=(lane,), heard=(lane,)) as parts:
        warm = await _warm(settings) if lane == "run" else None
        sandbox: Sandbox = warm or BubblewrapSandbox(bwrap=settings.bwrap or None)
        environments = Environments(settings.cache, parts.blobs, sandbox)
        bundles = Bundles(settings.cache, parts.blobs, sandbox, environments)
        holder = Holder(parts.store, parts.bell, parts.clock, lane, timedelta(seconds=settings.lease_seconds))
        jobs = arq_client(settings.redis_url.reveal())
        info = _info(parts, name, lane, slots)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(holder.keep())
                group.create_task(_beat(parts, info, holder, sandbox))
                group.create_task(_forget(settings))
                if lane == "run":
                    most = settings.tenant_max_concurrency or None
                    runner = Runner(name, parts.store, sandbox, bundles, holder, parts.clock, most)
                    group.create_task(Dispatcher(runner, slots, parts.bell.rung(lane)).run())
                else:
                    builder = Builder(name, parts.store, sandbox, parts.blobs, bundles, environments, holder)
                    group.create_task(_work_off(queue.worker(jobs, parts.bell, lane, slots, builder)))
        finally:
            await _gone(parts, name)
            await jobs.aclose()
            if warm is not None:
                await warm.close()


async def _warm(settings: Settings) -> WarmSandbox:
    return await sandbox_for_runs(settings.sandbox, settings.bwrap or None, settings.warm_memory_mb)


async def serve_upkeep(settings: Settings) -> None:
    """Look after everything until cancelled."""
    name = worker_id("upkeep")
    async with wire(settings, "paddock upkeep") as parts:
        upkeep = Upkeep(settings, parts.store, parts.queue, parts.blobs, parts.clock)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_beat(parts, _info(parts, name, "upkeep", 0), None, None))
                group.create_task(upkeep.run())
        finally:
            await _gone(parts, name)


def _info(parts: Parts, name: str, lane: str, slots: int) -> WorkerInfo:
    now = parts.clock()
    return WorkerInfo(
        id=name,
        lane=lane,
        host=socket.gethostname(),
        pid=os.getpid(),
        slots=slots,
        busy=0,
        problem=None,
        started_at=now,
        seen_at=now,
    )


async def _beat(parts: Parts, info: WorkerInfo, holder: Holder | None, sandbox: Sandbox | None) -> None:
    """Say every few seconds that this process lives, how busy it is, and whether it can isolate code."""
    told: str | None = None
    while True:
        problem = None
        if sandbox is not None:
            status = await sandbox.status()
            problem = None if status.available else status.reason
            if problem and problem != told:
                _log.error("runs are refused on this host", reason=problem)
            told = problem
        busy = holder.busy if holder is not None else 0
        seen = replace(info, busy=busy, problem=problem, seen_at=parts.clock())
        try:
            async with parts.store.begin_unbound() as tx:
                await tx.queues.beat(seen)
        except Exception as error:
            _log.warning("cannot give a sign of life", error=str(error))
        await asyncio.sleep(BEAT)


async def _forget(settings: Settings) -> None:
    """Remove cached folders of this machine that were not used for long, once an hour."""
    while True:
        await asyncio.sleep(3600)
        removed = await asyncio.to_thread(forget_unused, settings.cache, time.time() - settings.cache_days * 86400)
        if removed:
            _log.info("forgot unused caches", folders=removed)


async def _gone(parts: Parts, name: str) -> None:
    with contextlib.suppress(DomainError, asyncio.TimeoutError):
        async with asyncio.timeout(2), parts.store.begin_unbound() as tx:
            await tx.queues.gone(name)


async def _work_off(worker: BellWorker) -> None:
    """Take arq's jobs until cancelled; each then hands its row back before it ends."""
    try:
        await worker.main()
    finally:
        tasks = [*worker.job_tasks.values(), *worker.tasks.values()]
        for task in worker.job_tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


async def _until_told(main: Awaitable[None]) -> None:
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
