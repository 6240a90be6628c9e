"""Count the work of one worker process, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class WorkerMetrics:
    """Hold the metrics of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        # CPU, memory and file descriptors of the process.
        ProcessCollector(registry=self.registry)
        self.finished_rows = Counter(
            "paddock_worker_rows_total",
            "Claimed executions and versions that this process is done with, by how.",
            ["lane", "outcome"],
            registry=self.registry,
        )
        self.lease_failures = Counter(
            "paddock_worker_lease_failures_total",
            "Times that leases could not be extended.",
            registry=self.registry,
        )
        self.loop_polls = Counter(
            "paddock_worker_turns_total",
            "Turns of the loops of this process, by whether they found work.",
            ["loop", "outcome"],
            registry=self.registry,
        )
        self.removals = Counter(
            "paddock_worker_removed_total",
            "Rows and objects that this process removed because their time was over.",
            ["kind"],
            registry=self.registry,
        )
        self.model_calls = Counter(
            "paddock_worker_model_calls_total",
            "Calls of models that were made and billed.",
            ["provider", "status"],
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "paddock_worker_model_call_seconds",
            "Seconds from the call of a model to the end of its answer.",
            ["provider"],
            registry=self.registry,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        )
        self.model_tokens = Counter(
            "paddock_worker_model_tokens_total",
            "Tokens of calls of models.",
            ["provider", "kind"],
            registry=self.registry,
        )

        self.egress_connections = Counter(
            "paddock_worker_egress_connections_total",
            "Connections of uploaded code with hosts outside, by how they ended.",
            ["outcome"],
            registry=self.registry,
        )
        self.egress_bytes = Counter(
            "paddock_worker_egress_bytes_total",
            "Bytes that uploaded code sent to hosts outside, and received from them.",
            ["direction"],
            registry=self.registry,
        )

    def add_gauge(self, name: str, description: str, read: Callable[[], float], **labels: str) -> None:
        """Add a gauge, or another set of its labels; `read` is called at every request for the metrics."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = Gauge(name, description, list(labels), registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(read)
