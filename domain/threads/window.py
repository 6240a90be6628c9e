"""Choose the messages of a conversation that a model reads, where all of them would be too many.

A unit is what stays together: before the question, a turn of a user with all that answered it; after it, an answer
with the results of its tool calls. The oldest units go first. The question always stays.
"""

from collections.abc import Sequence
from typing import Final

from domain.llms import ChatMessage, ModelToolCall, estimate_tokens

# Tokens of a prompt where the agent sets no `context_tokens`.
DEFAULT_CONTEXT_TOKENS: Final = 64_000
# The local model has a context of 4096 tokens, with the answer; its tokens are shorter than four bytes.
LOCAL_CONTEXT_TOKENS: Final = 2_400
_NO_RESULT: Final = '{"error":"This call has no result."}'


def choose_window(messages: Sequence[ChatMessage], question: int, max_tokens: int) -> list[int]:
    """Return the places of the messages that fit into so many tokens, with the one at the place `question`.

    The newest are chosen. What belongs to the question, and the newest unit, are chosen even if they do not fit.
    """
    units = split_units(messages, question)
    sizes = [sum(estimate_tokens(message) for message in messages[start:end]) for start, end in units]
    chosen_units = {
        place for place, (start, end) in enumerate(units) if start <= question < end or place == len(units) - 1
    }
    room = max_tokens - sum(sizes[place] for place in chosen_units)
    for place in reversed(range(len(units))):
        if place in chosen_units:
            continue
        room -= sizes[place]
        if room < 0:
            break
        chosen_units.add(place)
    return [place for unit in sorted(chosen_units) for place in range(*units[unit])]


def split_units(messages: Sequence[ChatMessage], question: int) -> list[tuple[int, int]]:
    """Return where each unit of a conversation begins and ends."""
    starts: list[int] = []
    for place, message in enumerate(messages):
        follows_system = place > 0 and messages[place - 1].role == "system"
        is_turn = message.role in ("user", "system") and not follows_system
        if place == 0 or is_turn or (place > question and message.role == "assistant"):
            starts.append(place)
    return list(zip(starts, [*starts[1:], len(messages)], strict=False))


def close_open_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages with a result for each call that has none, as providers refuse calls without results.

    A result whose call is not there is left out.
    """
    closed: list[ChatMessage] = []
    # Several calls of one answer may have the same id.
    waiting: list[ModelToolCall] = []
    for message in messages:
        if message.role == "tool":
            call = next((call for call in waiting if call.id == message.tool_call_id), None)
            if call is not None:
                waiting.remove(call)
                closed.append(message)
            continue
        closed += _build_missing_results(waiting)
        waiting = list(message.tool_calls)
        closed.append(message)
    return closed + _build_missing_results(waiting)


def _build_missing_results(calls: Sequence[ModelToolCall]) -> list[ChatMessage]:
    return [
        ChatMessage(role="tool", content=_NO_RESULT, tool_call_id=call.id, name=call.name, is_error=True)
        for call in calls
    ]
