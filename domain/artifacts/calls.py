"""The tool calls of an artifact: each checked and completed, together a tree by `parent_id`."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from domain.artifacts.schema import ArtifactToolCall, ToolCallStatus
from domain.shared.errors import DomainError, FieldError
from domain.shared.times import read_time

# Whoever encodes or shows the tree recurses.
MAX_CALL_DEPTH: Final = 100
MAX_CALL_ID_CHARACTERS: Final = 200


class ToolCallNode(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call and those that name it as their parent, in the order in which they were sent."""

    call: ArtifactToolCall
    children: list["ToolCallNode"]


def complete_tool_calls(sent: Sequence[ArtifactToolCall]) -> tuple[list[ArtifactToolCall], list[FieldError]]:
    """The calls with id, name, times, latency and status filled in, and what is wrong with them.

    Sent values stay as they are, but for times, which become UTC. With errors the calls are of no use.
    """
    found: list[FieldError] = []
    named = _named(sent, found)
    calls = [_completed(place, call, found) for place, call in enumerate(named)]
    if not found:
        _check_tree(calls, found)
    return calls, found


def build_call_tree(calls: Sequence[ArtifactToolCall]) -> list[ToolCallNode]:
    """The calls without a parent, each with its children. Takes calls that were `checked`."""
    nodes = {call.id: ToolCallNode(call=call, children=[]) for call in calls}
    roots: list[ToolCallNode] = []
    for node in nodes.values():
        (nodes[node.call.parent_id].children if node.call.parent_id else roots).append(node)
    return roots


def has_failed(call: ArtifactToolCall) -> bool:
    """Whether a call went wrong. Kurral's clients leave the status at `ok` beside an error's text."""
    return call.status in ("error", "timeout") or bool(call.error_flag or call.error_text or call.error)


def to_utc(field: str, at: datetime, found: list[FieldError]) -> datetime:
    """A time in UTC; one without an offset is UTC, as Kurral's clients mean it. Notes one beyond all years."""
    try:
        return read_time(field, at)
    except DomainError as error:
        found.extend(error.errors)
        return at.replace(tzinfo=UTC)


def _named(sent: Sequence[ArtifactToolCall], found: list[FieldError]) -> list[ArtifactToolCall]:
    places: dict[str, int] = {}
    for place, call in enumerate(sent):
        if not call.id:
            continue
        if len(call.id) > MAX_CALL_ID_CHARACTERS:
            found.append(
                FieldError(
                    field=f"tool_calls[{place}].id", message=f"is longer than {MAX_CALL_ID_CHARACTERS} characters."
                )
            )
        first = places.setdefault(call.id, place)
        if first != place:
            found.append(
                FieldError(field=f"tool_calls[{place}].id", message=f"is the id of tool_calls[{first}] as well.")
            )
    named, number = [], 0
    for call in sent:
        if call.id:
            named.append(call)
            continue
        number += 1
        while f"call_{number}" in places:
            number += 1
        named.append(msgspec.structs.replace(call, id=f"call_{number}"))
    return named


def _completed(place: int, call: ArtifactToolCall, found: list[FieldError]) -> ArtifactToolCall:
    where = f"tool_calls[{place}]"
    start = call.start_time or call.timestamp
    if start is not None:
        start = to_utc(f"{where}.{'start_time' if call.start_time else 'timestamp'}", start, found)
    end = None if call.end_time is None else to_utc(f"{where}.end_time", call.end_time, found)
    stamp = None if call.timestamp is None else to_utc(f"{where}.timestamp", call.timestamp, found)
    latency = call.duration_ms if call.latency_ms is None else call.latency_ms
    if start is not None and end is not None:
        if end < start:
            found.append(FieldError(field=f"{where}.end_time", message="lies before start_time."))
        if latency is None:
            # Kurral's model takes whole milliseconds only.
            latency = (end - start) // timedelta(milliseconds=1)
    elif start is not None and latency is not None:
        try:
            end = start + timedelta(milliseconds=latency)
        except OverflowError:
            found.append(FieldError(field=f"{where}.latency_ms", message="ends after the year 9999."))
    return msgspec.structs.replace(
        call,
        tool_name=call.tool_name or call.type or "tool",
        start_time=start,
        end_time=end,
        timestamp=stamp,
        latency_ms=latency,
        status=call.status or _status(call),
    )


def _status(call: ArtifactToolCall) -> ToolCallStatus:
    if not (call.error_flag or call.error_text or call.error or call.error_type):
        return "ok"
    return "timeout" if "timeout" in (call.error_type or "").lower() else "error"


def _check_tree(calls: Sequence[ArtifactToolCall], found: list[FieldError]) -> None:
    """Every parent exists, no call is its own ancestor, none lies deeper than `MAX_NESTING`."""
    places = {call.id: place for place, call in enumerate(calls)}
    above: dict[int, int] = {}
    below: defaultdict[int, list[int]] = defaultdict(list)
    for place, call in enumerate(calls):
        if not call.parent_id:
            continue
        parent = places.get(call.parent_id)
        if parent is None:
            found.append(_at_parent(place, "names no tool call of this artifact."))
        else:
            above[place] = parent
            below[parent].append(place)
    if found or not above:
        return
    open_places, level = [place for place in range(len(calls)) if place not in above], 1
    reached = set(open_places)
    while open_places:
        if level > MAX_CALL_DEPTH:
            found.extend(_at_parent(place, f"nests deeper than {MAX_CALL_DEPTH} calls.") for place in open_places)
            return
        open_places = [child for place in open_places for child in below[place]]
        reached.update(open_places)
        level += 1
    found.extend(_at_parent(place, "closes a circle of parents.") for place in _circles(above, reached))


def _circles(above: dict[int, int], reached: set[int]) -> list[int]:
    """One place on each circle. What hangs below a circle is not at fault itself."""
    seen, closing = set(reached), []
    for begin in above:
        place, walked = begin, set[int]()
        while place not in seen:
            seen.add(place)
            walked.add(place)
            place = above[place]
        if place in walked:
            closing.append(place)
    return closing


def _at_parent(place: int, message: str) -> FieldError:
    return FieldError(field=f"tool_calls[{place}].parent_id", message=message)
