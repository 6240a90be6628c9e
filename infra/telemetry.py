"""Logs as JSON lines on stdout, ours and the libraries', and the metrics of this process."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram


def configure_logging(level: str, component: str) -> None:
    """Send every log line of this process to stdout as JSON, with the component's name."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Lines below the level cost nothing.
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        cache_logger_on_first_use=True,
    )

    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"component": component, **event}

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                named,
                structlog.processors.JSONRenderer(serializer=_encode),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn.error names every WebSocket with its query, which may hold a token.
    for noisy in ("arq", "botocore", "aiobotocore", "uvicorn.access", "uvicorn.error", "alembic", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel("WARNING")
    for adopted in ("uvicorn", "uvicorn.error"):
        logging.getLogger(adopted).handlers[:] = []
        logging.getLogger(adopted).propagate = True


def _encode(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


class Metrics:
    """What a process of the API counts. One registry per app, so that tests can have many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "paddock_requests_total",
            "HTTP requests answered.",
            ["method", "endpoint", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "paddock_request_seconds",
            "Seconds from the request's arrival to its answer's end.",
            ["method", "endpoint"],
            registry=self.registry,
        )
