"""Open the access of a worker process to hosts outside."""

import contextlib
from collections.abc import Iterator

from infra.http import Outbound
from infra.lookups import LookupThreads
from infra.settings import Settings
from infra.worker_metrics import WorkerMetrics
from workers.run.egress.lookups import TenantLookups
from workers.run.egress.schema import EgressAccess, EgressConnection, EgressLimits


@contextlib.contextmanager
def open_egress(settings: Settings, metrics: WorkerMetrics) -> Iterator[EgressAccess]:
    """Open what runs reach hosts outside with, and count their connections."""
    threads = LookupThreads()

    def count_connection(connection: EgressConnection) -> None:
        metrics.egress_connections.labels(connection.outcome).inc()
        metrics.egress_bytes.labels("sent").inc(connection.sent_bytes)
        metrics.egress_bytes.labels("received").inc(connection.received_bytes)

    try:
        yield EgressAccess(
            lookups=TenantLookups(Outbound(settings.private_hosts, threads.resolve_host)),
            limits=EgressLimits(max_bytes=settings.egress_max_bytes),
            on_closed=count_connection,
        )
    finally:
        threads.close()
