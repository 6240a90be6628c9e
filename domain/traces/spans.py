"""Build spans, and sort them."""

from datetime import UTC, datetime
from typing import Any, Final

from domain.traces import attributes
from domain.traces.schema import Span, SpanEvent

_LAST_TIME: Final = datetime.max.replace(tzinfo=UTC)


def build_span(**fields: Any) -> Span:
    """Build a span without children."""
    span = Span(**fields, children=[], events=[])
    if span.started_at is not None and span.ended_at is not None:
        span.duration_ms = attributes.to_milliseconds(span.ended_at - span.started_at)
    return span


def sort_children(parent: Span) -> None:
    """Sort the children of a span by the time at which they began."""
    parent.children.sort(key=_get_sort_key)


def _get_sort_key(span: Span) -> tuple[Any, ...]:
    # At the same time: the context of a task before its work, items by their number.
    item = span.attributes.get("paddock.step.item", -1)
    return span.started_at or span.ended_at or _LAST_TIME, span.kind != "memory", item, span.id


def build_decision_event(approved: bool, at: datetime, by: str | None, reason: str | None) -> SpanEvent:
    """Build the event of a person's decision."""
    values = attributes.describe_decision(by, reason)
    return SpanEvent(name="approved" if approved else "rejected", at=at, attributes=values)
