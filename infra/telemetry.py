"""Logs as JSON lines on stdout, ours and the libraries', and the metrics of this process."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess, values

from infra.error_reports import open_error_reports, report_exception
from infra.settings import Settings

# What moves a terminal's cursor, begins a line or turns the direction of writing around (Unicode TR 36).
_CONTROLS: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def configure_logging(level: str, component: str, reports: bool = False) -> None:
    """Send every log line of this process to stdout as JSON, with the component's name.

    With `reports`, exceptions go to `infra.error_reports` as well.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        *([report_exception] if reports else []),
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


def open_telemetry(settings: Settings, component: str) -> None:
    """Begin to log, and to report errors where the settings say to whom."""
    configure_logging(settings.log_level, component, reports=bool(settings.sentry_dsn.reveal()))
    open_error_reports(settings.sentry_dsn, settings.environment, component)


def escape_controls(text: str) -> str:
    """Return a text that shows on a terminal as one line and does nothing to it: what steers one is written out."""
    return _CONTROLS.sub(lambda found: ascii(found.group())[1:-1], text)


def _encode(event: Any, **_: Any) -> str:
    try:
        text = msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which UTF-8 does not have.
        return json.dumps(event, default=repr)
    # JSON leaves these as they are, and a terminal acts on some of them.
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def clear_shared_metrics(folder: Path) -> None:
    """Forget what processes of the API have counted together before; call it before any of them starts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def share_metrics(folder: Path) -> None:
    """Count into `folder`, together with other processes, whatever metrics are made from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # The library looks at the variable when it is imported, which may have been long ago.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]


class ApiMetrics:
    """What the API counts. One registry per app, so that tests can have many."""

    def render_exposition(self) -> bytes:
        """Return all of it in Prometheus' text format: of all processes that share a folder, else of this one."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

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
