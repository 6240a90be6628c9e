"""One span, and the order of several."""

from datetime import UTC, datetime
from typing import Any, Final

from domain.traces import attributes
from domain.traces.schema import Span, SpanEvent

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


def build_span(**fields: Any) -> Span:
    """A span without anything below it yet."""
    made = Span(**fields, children=[], events=[])
    if made.started_at is not None and made.ended_at is not None:
        made.duration_ms = attributes.to_milliseconds(made.ended_at - made.started_at)
    return made


def sort_children(above: Span) -> None:
    """What lies below a span in the order in which it began."""
    above.children.sort(key=_when)


def _when(one: Span) -> tuple[Any, ...]:
    # At one moment: what a task was given before what it did with that, items by their number.
    item = one.attributes.get("paddock.step.item", -1)
    return one.started_at or one.ended_at or _NEVER, one.kind != "memory", item, one.id


def build_decision_event(approved: bool, at: datetime, by: str | None, reason: str | None) -> SpanEvent:
    """That somebody decided."""
    told = attributes.describe_decision(by, reason)
    return SpanEvent(name="approved" if approved else "rejected", at=at, attributes=told)
