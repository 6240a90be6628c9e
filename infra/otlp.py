"""Traces for others: OTLP/HTTP in JSON, and the collector that takes it.

Encoding and answers as in the specification of OTLP 1.9 (`docs/specification.md` of opentelemetry-proto): ids are
hexadecimal, enums are numbers, 64-bit numbers are decimal text.
"""

import gzip
import hashlib
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import msgspec

from domain.traces.attributes import ERROR_MESSAGE_ATTRIBUTE, OPERATION_ATTRIBUTE
from domain.traces.schema import Span, Trace
from infra.version import VERSION

# Of these the specification says that the same is to be sent again.
_LATER: Final = frozenset({429, 502, 503, 504})
_SECONDS: Final = 10.0
_LONGEST: Final = 300.0
_LONGEST_ASKED: Final = 3600.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# SPAN_KIND_INTERNAL and SPAN_KIND_CLIENT, STATUS_CODE_ERROR.
_INTERNAL, _CLIENT, _ERROR = 1, 3, 2
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"


class CollectorUnavailable(Exception):
    """The collector does not answer, or wants to be asked later: in `after` seconds, if it said so."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = after


class CollectorRefusal(Exception):
    """The collector will not take this, however often it is sent."""


class TraceCollector:
    """Takes traces.

    A plain client, not `infra.http.Outbound`: whoever runs this installation says where the collector is, usually on
    the very network that tenants' URLs must not reach. Redirects are not followed, so headers go nowhere else.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str]) -> None:
        base = endpoint.rstrip("/")
        self._url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
        sent = {**headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        self._http = httpx.AsyncClient(timeout=_SECONDS, headers=sent, follow_redirects=False)

    async def send_request(self, body: bytes) -> str | None:
        """Send a request that is compressed already. Returns what the collector has to say about spans it left out.

        Errors: `Away`, `Refused`.
        """
        try:
            answer = await self._http.post(self._url, content=body)
        except httpx.HTTPError as error:
            raise CollectorUnavailable(f"{type(error).__name__}: {error}") from error
        if answer.status_code in _LATER:
            raise CollectorUnavailable(f"It answered {answer.status_code}.", _after(answer.headers.get("Retry-After")))
        if not answer.is_success:
            raise CollectorRefusal(f"It answered {answer.status_code}: {answer.text[:500]}")
        return _left_out(answer.content)

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()


def compute_retry_delay(tries: int, asked: float | None = None) -> timedelta:
    """How long to wait after so many tries have failed, or longer if the collector asked for it."""
    # Jitter, so that what failed together does not come back together.
    seconds = min(2.0 ** min(tries, 10), _LONGEST) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return timedelta(seconds=max(seconds, min(asked or 0.0, _LONGEST_ASKED)))


def pack_request(trace: Trace, tenant_id: str) -> bytes:
    """The request that carries a trace, compressed, as every collector takes it."""
    return gzip.compress(msgspec.json.encode(build_request(trace, tenant_id)), 5)


def build_request(trace: Trace, tenant_id: str) -> dict[str, Any]:
    """A trace as an `ExportTraceServiceRequest`. What has not ended ends with the whole."""
    resource = {"service.name": "paddock", "service.version": VERSION, "paddock.tenant.id": tenant_id}
    root = trace.spans[0]
    end = root.ended_at or root.started_at or _EPOCH
    spans: list[dict[str, Any]] = []
    _put(root, None, trace, root.started_at or end, end, spans)
    if trace.truncated:
        spans[0]["attributes"].append(_attribute("paddock.truncated", True))
    scope = {"scope": {"name": "paddock", "version": VERSION}, "spans": spans, "schemaUrl": _SCHEMA}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def derive_span_id(span: Span) -> str:
    """The 64 bits of a span's id, always the same: what is sent again is no other span."""
    return hashlib.sha256(span.id.encode()).hexdigest()[:16]


def _put(
    span: Span, parent: str | None, trace: Trace, begun: datetime, end: datetime, spans: list[dict[str, Any]]
) -> None:
    own, start = derive_span_id(span), span.started_at or span.ended_at or begun
    # Clocks of two machines differ; no span ends before it begins.
    ended = max(start, span.ended_at or end)
    told = {
        **span.attributes,
        "paddock.span.kind": span.kind,
        "paddock.cost_usd": span.cost_usd,
        "paddock.total_tokens": span.total_tokens,
    }
    made: dict[str, Any] = {
        "traceId": trace.trace_id,
        "spanId": own,
        "name": _name(span),
        "kind": _CLIENT if span.kind == "model_call" else _INTERNAL,
        "startTimeUnixNano": _nanoseconds(start),
        "endTimeUnixNano": _nanoseconds(ended),
        "attributes": _attributes(told),
        "status": _status(span),
    }
    if parent is not None:
        made["parentSpanId"] = parent
    if span.events:
        made["events"] = [
            {"timeUnixNano": _nanoseconds(one.at), "name": one.name, "attributes": _attributes(one.attributes)}
            for one in span.events
        ]
    spans.append(made)
    for child in span.children:
        _put(child, own, trace, start, ended, spans)


def _name(span: Span) -> str:
    """As the conventions name spans: `chat gpt-4`, `invoke_agent Researcher`; else by its kind: `task research`."""
    operation = span.attributes.get(OPERATION_ATTRIBUTE, span.kind)
    return f"{operation} {span.attributes['gen_ai.request.model'] if span.kind == 'model_call' else span.name}"


def _status(span: Span) -> dict[str, Any]:
    # The conventions leave what went well unset.
    if span.status not in ("error", "cancelled"):
        return {}
    told = span.attributes.get(ERROR_MESSAGE_ATTRIBUTE) or span.attributes.get("error.type")
    return {"code": _ERROR, "message": str(told or span.status)}


def _nanoseconds(at: datetime) -> str:
    return str((at - _EPOCH) // timedelta(microseconds=1) * 1000)


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_attribute(name, value) for name, value in values.items()]


def _attribute(name: str, value: Any) -> dict[str, Any]:
    return {"key": name, "value": _value(value)}


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}


def _after(told: str | None) -> float | None:
    try:
        return None if told is None else float(told)
    except ValueError:
        # A date: our own pause will do.
        return None


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    error_message: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess = msgspec.field(default_factory=_PartialSuccess)


def _left_out(body: bytes) -> str | None:
    """What it says of spans that it rejected; sending them again is no use."""
    try:
        told = msgspec.json.decode(body, type=_Answer).partial_success
    except msgspec.MsgspecError:
        return None
    return f"{told.rejected_spans} spans: {told.error_message}" if told.error_message else None
