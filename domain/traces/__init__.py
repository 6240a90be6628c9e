"""Traces: what an execution was made of, as a tree of spans. Made of what is on record, whenever somebody asks."""

from domain.ports import Tx
from domain.shared.errors import NotFound
from domain.traces.attributes import ERROR_ATTRIBUTE, ERROR_MESSAGE_ATTRIBUTE, OPERATION_ATTRIBUTE
from domain.traces.schema import (
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
from domain.traces.tree import build_trace

__all__ = [
    "ERROR_ATTRIBUTE",
    "ERROR_MESSAGE_ATTRIBUTE",
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
    "read_trace_sources",
]


async def read_trace_sources(tx: Tx, execution_id: str, content: bool = False) -> TraceSources:
    """What the trace of an execution is made of, for `trace`; with `content`, what was asked and answered too.

    Errors: `not_found`.
    """
    found = await tx.traces.get_sources(execution_id, content, MAX_SPANS)
    if found is None:
        raise NotFound("execution", execution_id)
    return found
