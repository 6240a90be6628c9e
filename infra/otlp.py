"""Send traces to a collector, as OTLP/HTTP in JSON.

Encoding and answers follow OTLP 1.9 (`docs/specification.md` of opentelemetry-proto): ids are hexadecimal, enums are
numbers, 64-bit numbers are decimal text.
"""

import gzip
import hashlib
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import msgspec

from domain.traces import ERROR_ATTRIBUTE, ERROR_MESSAGE_ATTRIBUTE, OPERATION_ATTRIBUTE, Span, Trace
from infra.version import PADDOCK_VERSION

# The statuses after which the specification asks to send the same again.
_RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
_TIMEOUT_SECONDS: Final = 10.0
_MAX_RETRY_SECONDS: Final = 300.0
_MAX_RETRY_AFTER_SECONDS: Final = 3600.0
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# SPAN_KIND_INTERNAL and SPAN_KIND_CLIENT, STATUS_CODE_ERROR.
_KIND_INTERNAL, _KIND_CLIENT, _STATUS_ERROR = 1, 3, 2
_SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"


class CollectorUnavailable(Exception):
    """Report that the collector does not answer, or asks for another try after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CollectorRefusal(Exception):
    """Report that the collector refuses a request, and would refuse it again."""


class TraceCollector:
    """Send traces to the collector of this installation.

    A plain client, not `infra.http.Outbound`: the operator configures the collector's address, usually on the very
    network that tenants' URLs must not reach. Redirects are not followed, so headers go nowhere else.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str]) -> None:
        base = endpoint.rstrip("/")
        self._url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
        all_headers = {**headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        self._http = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, headers=all_headers, follow_redirects=False)

    async def send_request(self, body: bytes) -> str | None:
        """Send a compressed request. Returns the collector's message about spans that it left out, if any.

        Errors: `CollectorUnavailable`, `CollectorRefusal`.
        """
        try:
            response = await self._http.post(self._url, content=body)
        except httpx.HTTPError as error:
            raise CollectorUnavailable(f"{type(error).__name__}: {error}") from error
        if response.status_code in _RETRYABLE_STATUSES:
            retry_after_seconds = _parse_retry_after(response.headers.get("Retry-After"))
            raise CollectorUnavailable(f"It answered {response.status_code}.", retry_after_seconds)
        if not response.is_success:
            raise CollectorRefusal(f"It answered {response.status_code}: {response.text[:500]}")
        return _read_rejection(response.content)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def compute_retry_delay(tries: int, retry_after_seconds: float | None = None) -> timedelta:
    """Return how long to wait after so many failed tries, or longer if the collector asked for it."""
    # Jitter, so that requests that failed together do not come back together.
    seconds = min(2.0 ** min(tries, 10), _MAX_RETRY_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return timedelta(seconds=max(seconds, min(retry_after_seconds or 0.0, _MAX_RETRY_AFTER_SECONDS)))


def pack_request(trace: Trace, tenant_id: str) -> bytes:
    """Build the request that carries a trace, compressed, as every collector takes it."""
    return gzip.compress(msgspec.json.encode(build_request(trace, tenant_id)), 5)


def build_request(trace: Trace, tenant_id: str) -> dict[str, Any]:
    """Build an `ExportTraceServiceRequest` of a trace. Spans that have not ended end with the whole trace."""
    resource = {"service.name": "paddock", "service.version": PADDOCK_VERSION, "paddock.tenant.id": tenant_id}
    root = trace.spans[0]
    end = root.ended_at or root.started_at or _UNIX_EPOCH
    encoder = _SpanEncoder(trace.trace_id)
    encoder.add_span(root, None, root.started_at or end, end)
    if trace.truncated:
        encoder.spans[0]["attributes"].append(_encode_attribute("paddock.truncated", True))
    scope = {"scope": {"name": "paddock", "version": PADDOCK_VERSION}, "spans": encoder.spans, "schemaUrl": _SCHEMA_URL}
    return {"resourceSpans": [{"resource": {"attributes": _encode_attributes(resource)}, "scopeSpans": [scope]}]}


def derive_span_id(span: Span) -> str:
    """Derive the 64 bits of a span's id; always the same, so that a span that is sent again is no second one."""
    return hashlib.sha256(span.id.encode()).hexdigest()[:16]


class _SpanEncoder:
    """Encode the spans of one trace as a flat list."""

    def __init__(self, trace_id: str) -> None:
        self._trace_id = trace_id
        self.spans: list[dict[str, Any]] = []

    def add_span(self, span: Span, parent_id: str | None, parent_start: datetime, parent_end: datetime) -> None:
        """Append a span and those below it, within the times of its parent where it has none of its own."""
        span_id, start = derive_span_id(span), span.started_at or span.ended_at or parent_start
        # Clocks of two machines differ; no span ends before it begins.
        end = max(start, span.ended_at or parent_end)
        attributes = {
            **span.attributes,
            "paddock.span.kind": span.kind,
            "paddock.cost_usd": span.cost_usd,
            "paddock.total_tokens": span.total_tokens,
        }
        encoded: dict[str, Any] = {
            "traceId": self._trace_id,
            "spanId": span_id,
            "name": _build_name(span),
            "kind": _KIND_CLIENT if span.kind == "model_call" else _KIND_INTERNAL,
            "startTimeUnixNano": _encode_time(start),
            "endTimeUnixNano": _encode_time(end),
            "attributes": _encode_attributes(attributes),
            "status": _encode_status(span),
        }
        if parent_id is not None:
            encoded["parentSpanId"] = parent_id
        if span.events:
            encoded["events"] = [
                {
                    "timeUnixNano": _encode_time(event.at),
                    "name": event.name,
                    "attributes": _encode_attributes(event.attributes),
                }
                for event in span.events
            ]
        self.spans.append(encoded)
        for child in span.children:
            self.add_span(child, span_id, start, end)


def _build_name(span: Span) -> str:
    """Name a span as the conventions do: `chat gpt-4`, `invoke_agent Researcher`; else by its kind: `task research`."""
    operation = span.attributes.get(OPERATION_ATTRIBUTE, span.kind)
    return f"{operation} {span.attributes['gen_ai.request.model'] if span.kind == 'model_call' else span.name}"


def _encode_status(span: Span) -> dict[str, Any]:
    # The conventions leave the status of a success unset.
    if span.status not in ("error", "cancelled"):
        return {}
    message = span.attributes.get(ERROR_MESSAGE_ATTRIBUTE) or span.attributes.get(ERROR_ATTRIBUTE)
    return {"code": _STATUS_ERROR, "message": str(message or span.status)}


def _encode_time(at: datetime) -> str:
    """Encode a time as nanoseconds since 1970, in decimal digits."""
    return str((at - _UNIX_EPOCH) // timedelta(microseconds=1) * 1000)


def _encode_attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_encode_attribute(name, value) for name, value in values.items()]


def _encode_attribute(name: str, value: Any) -> dict[str, Any]:
    return {"key": name, "value": _encode_value(value)}


def _encode_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_encode_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _parse_retry_after(header: str | None) -> float | None:
    try:
        return None if header is None else float(header)
    except ValueError:
        # A date: our own delay serves as well.
        return None


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    error_message: str = ""


class _CollectorAnswer(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess = msgspec.field(default_factory=_PartialSuccess)


def _read_rejection(body: bytes) -> str | None:
    """Return the collector's message about spans that it rejected; sending them again would not help."""
    try:
        rejection = msgspec.json.decode(body, type=_CollectorAnswer).partial_success
    except msgspec.MsgspecError:
        return None
    return f"{rejection.rejected_spans} spans: {rejection.error_message}" if rejection.error_message else None
