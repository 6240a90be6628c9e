"""Export what the database counts as Prometheus gauges of the whole system. One process exports them."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from domain.ports import Store
from domain.queues import WORKER_TIMEOUT, QueueStats, WorkerInfo

RECENT_RUNS_PERIOD: Final = timedelta(hours=1)


async def read_gauges(store: Store) -> bytes:
    """Return queues, runs by status, slots and workers in Prometheus' text format. Errors: `unavailable`."""
    async with store.system_transaction() as tx:
        lanes = await tx.queues.list_stats(tx.now)
        runs_by_status = await tx.queues.count_runs_by_status(tx.now - RECENT_RUNS_PERIOD)
        workers = await tx.workers.list_alive(tx.now - WORKER_TIMEOUT)
    registry = CollectorRegistry()
    families = [*_build_lane_gauges(lanes), _build_run_gauge(runs_by_status), *_build_worker_gauges(workers)]
    registry.register(_GaugeCollector(families))
    return generate_latest(registry)


class _GaugeCollector(Collector):
    """Give a registry families that are read already.

    `Gauge`s would be kept in the files where processes of the API share their counts.
    """

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def _build_lane_gauges(lanes: list[QueueStats]) -> list[GaugeMetricFamily]:
    depth = GaugeMetricFamily("paddock_queue_depth", "Rows that wait for a worker.", labels=["lane"])
    oldest = GaugeMetricFamily("paddock_queue_oldest_seconds", "How long the oldest has waited.", labels=["lane"])
    running = GaugeMetricFamily("paddock_queue_running", "Rows that a worker holds.", labels=["lane"])
    for lane in lanes:
        depth.add_metric([lane.lane], lane.depth)
        oldest.add_metric([lane.lane], lane.oldest_seconds or 0)
        running.add_metric([lane.lane], lane.running)
    lag_seconds = next((lane.oldest_seconds or 0 for lane in lanes if lane.lane == "record"), 0)
    lag = GaugeMetricFamily(
        "paddock_ingest_lag_seconds",
        "How long the oldest record has waited to be stored or judged.",
        value=lag_seconds,
    )
    return [depth, oldest, running, lag]


def _build_run_gauge(runs_by_status: dict[str, int]) -> GaugeMetricFamily:
    runs = GaugeMetricFamily("paddock_runs", "Executions by state; ended ones of the last hour.", labels=["status"])
    for status, count in runs_by_status.items():
        runs.add_metric([status], count)
    return runs


def _build_worker_gauges(workers: list[WorkerInfo]) -> list[GaugeMetricFamily]:
    slots = GaugeMetricFamily(
        "paddock_sandbox_slots",
        "Slots of live workers; for runs also the sandboxes that wait, warm or blank.",
        labels=["lane", "state"],
    )
    for lane in ("build", "run"):
        lane_workers = [worker for worker in workers if worker.lane == lane]
        busy = sum(worker.busy for worker in lane_workers)
        slots.add_metric([lane, "busy"], busy)
        slots.add_metric([lane, "free"], sum(worker.slots for worker in lane_workers) - busy)
    for state in ("warm", "blank"):
        slots.add_metric(["run", state], sum(getattr(worker, state) for worker in workers))
    alive = GaugeMetricFamily("paddock_workers", "Live worker processes.", labels=["lane"])
    for lane in sorted({worker.lane for worker in workers}):
        alive.add_metric([lane], sum(1 for worker in workers if worker.lane == lane))
    return [slots, alive]
