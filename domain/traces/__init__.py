"""Build traces: the parts of an execution as a tree of spans, from its records, at each request."""

from domain.ports import Tx
from domain.shared.errors import require_found
from domain.traces.attributes import ERROR_ATTRIBUTE, ERROR_MESSAGE_ATTRIBUTE, OPERATION_ATTRIBUTE
from domain.traces.schema import (
    MAX_CONTENT_BYTES,
    MAX_SPANS,
    DelegatedAgent,
    PendingTraceExport,
    PlannedStep,
    Span,
    SpanEvent,
    SpanKind,
    SpanStatus,
    Trace,
    TracedModelCall,
    TracedPlan,
    TracedPlanStep,
    TracedRun,
    TracedRunStep,
    Traces,
    TraceSources,
)
from domain.traces.tree import build_trace, format_trace_id

__all__ = [
    "ERROR_ATTRIBUTE",
    "ERROR_MESSAGE_ATTRIBUTE",
    "MAX_CONTENT_BYTES",
    "MAX_SPANS",
    "OPERATION_ATTRIBUTE",
    "DelegatedAgent",
    "PendingTraceExport",
    "PlannedStep",
    "Span",
    "SpanEvent",
    "SpanKind",
    "SpanStatus",
    "Trace",
    "TraceSources",
    "TracedModelCall",
    "TracedPlan",
    "TracedPlanStep",
    "TracedRun",
    "TracedRunStep",
    "Traces",
    "build_trace",
    "format_trace_id",
    "read_trace_sources",
]


async def read_trace_sources(tx: Tx, execution_id: str, content: bool = False) -> TraceSources:
    """Read the records of an execution's trace, for `build_trace`; with `content`, also prompts and answers.

    Errors: `not_found`.
    """
    return require_found("execution", execution_id, await tx.traces.get_sources(execution_id, content, MAX_SPANS))
