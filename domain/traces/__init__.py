"""Traces: what an execution was made of, as a tree of spans. Made of what is on record, whenever somebody asks."""

from domain.ports import Tx
from domain.shared.errors import not_found
from domain.traces.schema import (
    MAX_SPANS,
    CallPart,
    Delegate,
    Due,
    PlannedStep,
    PlanPart,
    RunPart,
    Sources,
    Span,
    SpanEvent,
    SpanKind,
    SpanStatus,
    StagePart,
    StepPart,
    Trace,
    Traces,
)
from domain.traces.tree import trace

__all__ = [
    "MAX_SPANS",
    "CallPart",
    "Delegate",
    "Due",
    "PlanPart",
    "PlannedStep",
    "RunPart",
    "Sources",
    "Span",
    "SpanEvent",
    "SpanKind",
    "SpanStatus",
    "StagePart",
    "StepPart",
    "Trace",
    "Traces",
    "read",
    "trace",
]


async def read(tx: Tx, execution_id: str, content: bool = False) -> Sources:
    """What the trace of an execution is made of, for `trace`; with `content`, what was asked and answered too.

    Errors: `not_found`.
    """
    found = await tx.traces.sources(execution_id, content, MAX_SPANS)
    if found is None:
        raise not_found("execution", execution_id)
    return found
