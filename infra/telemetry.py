"""Write logs as JSON lines to stdout, ours and the libraries', and count the requests of the API."""

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
from infra.log_mask import mask_logged_text
from infra.settings import Settings

# Characters that move a terminal's cursor, begin a line or change the direction of writing (Unicode TR 36).
_CONTROL_CHARACTERS: Final = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# uvicorn.error names every WebSocket with its query, which may hold a token.
_QUIET_LOGGERS: Final = (
    "arq",
    "botocore",
    "aiobotocore",
    "uvicorn.access",
    "uvicorn.error",
    "alembic",
    "httpx",
    "httpcore",
)


def open_telemetry(settings: Settings, component: str) -> None:
    """Begin to log, and to report errors where the settings name a server for reports."""
    configure_logging(settings.log_level, component, reports=bool(settings.sentry_dsn.reveal()))
    open_error_reports(settings.sentry_dsn, settings.environment, component)


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

    def add_component(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"component": component, **event}

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                add_component,
                structlog.processors.JSONRenderer(serializer=_encode_line),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel("WARNING")
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True


def escape_controls(text: str) -> str:
    """Return a text that a terminal shows as one line: characters that steer the terminal are written as escapes."""
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match.group())[1:-1], text)


def _encode_line(event: Any, **_: Any) -> str:
    try:
        text = msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which UTF-8 does not have.
        return mask_logged_text(json.dumps(event, default=repr))
    text = mask_logged_text(text)
    # JSON leaves these as they are, and a terminal acts on some of them.
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def clear_shared_metrics(folder: Path) -> None:
    """Delete what processes of the API have counted together before; call it before any of them starts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def share_metrics(folder: Path) -> None:
    """Count in `folder`, together with other processes, for all metrics that are created from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # The library reads the variable when it is imported, which may have happened already.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]


class ApiMetrics:
    """Count the API's requests. One registry per app, so that tests can have many."""

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

    def render_exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format, of all processes that share a folder, else of this one."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
