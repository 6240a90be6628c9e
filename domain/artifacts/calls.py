"""Check and complete the tool calls of an artifact, and build their tree by `parent_id`."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from domain.artifacts.schema import ArtifactToolCall, ToolCallStatus
from domain.shared.errors import DomainError, FieldError
from domain.shared.times import read_time

# Encoders and viewers of the tree recurse.
MAX_CALL_DEPTH: Final = 100
MAX_CALL_ID_CHARACTERS: Final = 200


class ToolCallNode(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a tool call and the calls that name it as their parent, in the order in which they were sent."""

    call: ArtifactToolCall
    children: list["ToolCallNode"]


def complete_tool_calls(sent: Sequence[ArtifactToolCall]) -> tuple[list[ArtifactToolCall], list[FieldError]]:
    """Return the calls with id, name, times, latency and status filled in, and the errors of their fields.

    Sent values stay as they are, but for times, which become UTC. With errors the calls are of no use.
    """
    errors: list[FieldError] = []
    identified = _assign_ids(sent, errors)
    calls = [_complete_call(index, call, errors) for index, call in enumerate(identified)]
    if not errors:
        _check_tree(calls, errors)
    return calls, errors


def build_call_tree(calls: Sequence[ArtifactToolCall]) -> list[ToolCallNode]:
    """Return the calls without a parent, each with its children. Takes the calls of `complete_tool_calls`."""
    nodes = {call.id: ToolCallNode(call=call, children=[]) for call in calls}
    roots: list[ToolCallNode] = []
    for node in nodes.values():
        (nodes[node.call.parent_id].children if node.call.parent_id else roots).append(node)
    return roots


def has_failed(call: ArtifactToolCall) -> bool:
    """Tell whether a call failed. Kurral's clients leave the status at `ok` beside an error's text."""
    return call.status in ("error", "timeout") or bool(call.error_flag or call.error_text or call.error)


def to_utc(field: str, at: datetime, errors: list[FieldError]) -> datetime:
    """Return a time in UTC; without an offset it is UTC already, as Kurral's clients mean it.

    Adds an error for a time that UTC cannot express.
    """
    try:
        return read_time(field, at)
    except DomainError as error:
        errors.extend(error.errors)
        return at.replace(tzinfo=UTC)


def _assign_ids(sent: Sequence[ArtifactToolCall], errors: list[FieldError]) -> list[ArtifactToolCall]:
    indexes: dict[str, int] = {}
    for index, call in enumerate(sent):
        if not call.id:
            continue
        field = f"tool_calls[{index}].id"
        if len(call.id) > MAX_CALL_ID_CHARACTERS:
            errors.append(FieldError(field=field, message=f"is longer than {MAX_CALL_ID_CHARACTERS} characters."))
        first = indexes.setdefault(call.id, index)
        if first != index:
            errors.append(FieldError(field=field, message=f"is a duplicate of the id of tool_calls[{first}]."))
    identified, number = [], 0
    for call in sent:
        if call.id:
            identified.append(call)
            continue
        number += 1
        while f"call_{number}" in indexes:
            number += 1
        identified.append(msgspec.structs.replace(call, id=f"call_{number}"))
    return identified


def _complete_call(index: int, call: ArtifactToolCall, errors: list[FieldError]) -> ArtifactToolCall:
    field = f"tool_calls[{index}]"
    start = call.start_time or call.timestamp
    if start is not None:
        start = to_utc(f"{field}.{'start_time' if call.start_time else 'timestamp'}", start, errors)
    end = None if call.end_time is None else to_utc(f"{field}.end_time", call.end_time, errors)
    timestamp = None if call.timestamp is None else to_utc(f"{field}.timestamp", call.timestamp, errors)
    latency = call.duration_ms if call.latency_ms is None else call.latency_ms
    if start is not None and end is not None:
        if end < start:
            errors.append(FieldError(field=f"{field}.end_time", message="lies before start_time."))
        if latency is None:
            # Kurral's model takes whole milliseconds only.
            latency = (end - start) // timedelta(milliseconds=1)
    elif start is not None and latency is not None:
        try:
            end = start + timedelta(milliseconds=latency)
        except OverflowError:
            errors.append(FieldError(field=f"{field}.latency_ms", message="ends after the year 9999."))
    return msgspec.structs.replace(
        call,
        tool_name=call.tool_name or call.type or "tool",
        start_time=start,
        end_time=end,
        timestamp=timestamp,
        latency_ms=latency,
        status=call.status or _derive_status(call),
    )


def _derive_status(call: ArtifactToolCall) -> ToolCallStatus:
    if not (call.error_flag or call.error_text or call.error or call.error_type):
        return "ok"
    return "timeout" if "timeout" in (call.error_type or "").lower() else "error"


def _check_tree(calls: Sequence[ArtifactToolCall], errors: list[FieldError]) -> None:
    """Check that every parent exists, that parents form no cycle, and that none lies deeper than `MAX_CALL_DEPTH`."""
    indexes = {call.id: index for index, call in enumerate(calls)}
    parents: dict[int, int] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for index, call in enumerate(calls):
        if not call.parent_id:
            continue
        parent = indexes.get(call.parent_id)
        if parent is None:
            errors.append(_build_parent_error(index, "is not the id of a tool call of this artifact."))
        else:
            parents[index] = parent
            children[parent].append(index)
    if errors or not parents:
        return
    level, depth = [index for index in range(len(calls)) if index not in parents], 1
    reached = set(level)
    while level:
        if depth > MAX_CALL_DEPTH:
            errors.extend(_build_parent_error(index, f"nests deeper than {MAX_CALL_DEPTH} calls.") for index in level)
            return
        level = [child for index in level for child in children[index]]
        reached.update(level)
        depth += 1
    errors.extend(_build_parent_error(index, "closes a cycle of parents.") for index in _find_cycles(parents, reached))


def _find_cycles(parents: dict[int, int], reached: set[int]) -> list[int]:
    """Return one call of each cycle. Calls below a cycle are not at fault themselves."""
    visited, closing = set(reached), []
    for begin in parents:
        index, path = begin, set[int]()
        while index not in visited:
            visited.add(index)
            path.add(index)
            index = parents[index]
        if index in path:
            closing.append(index)
    return closing


def _build_parent_error(index: int, message: str) -> FieldError:
    return FieldError(field=f"tool_calls[{index}].parent_id", message=message)
