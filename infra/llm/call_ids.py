"""Map the ids of tool calls to ids that a provider accepts.

A conversation may have begun with another provider, whose ids this one refuses (`functions.list:0` at Anthropic, more
than nine letters at Mistral), and some servers give several calls the same id. So each call of a request gets an id of
its own on the wire. It is the same in call and result, and in every later request of the conversation.
"""

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from msgspec.structs import replace

from domain.llms import ChatMessage, ModelTarget, ModelToolCall

# Anthropic and OpenAI's Responses accept these. Chat completions accept more, and Kimi wants its own ids unchanged.
_NARROW_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHAT_ID: Final = re.compile(r"[\x21-\x7e]{1,40}")
_MISTRAL_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


def map_call_ids(messages: Sequence[ChatMessage], target: ModelTarget, is_chat: bool) -> list[ChatMessage]:
    """Return the messages with ids that the wire of `target` accepts. Ids that are accepted and unique stay."""
    pattern = _get_id_pattern(target, is_chat)
    fitting_ids = {call.id for message in messages for call in message.tool_calls if pattern.fullmatch(call.id)}
    used: set[str] = set()
    waiting: dict[str, deque[str]] = defaultdict(deque)  # wire ids by original id, oldest first
    mapped: list[ChatMessage] = []
    for message in messages:
        if message.tool_calls:
            calls: list[ModelToolCall] = []
            # A result belongs to the latest call of its id: many servers number the calls of each answer from 0.
            for id_ in {call.id for call in message.tool_calls}:
                waiting.pop(id_, None)
            for call in message.tool_calls:
                wire_id = _make_wire_id(call.id, pattern, fitting_ids, used)
                waiting[call.id].append(wire_id)
                calls.append(replace(call, id=wire_id))
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            ids = waiting[message.tool_call_id or ""]
            if not ids:
                ids.append(_make_wire_id(message.tool_call_id or "", pattern, fitting_ids, used))
            message = replace(message, tool_call_id=ids.popleft() if len(ids) > 1 else ids[0])
        mapped.append(message)
    return mapped


def _get_id_pattern(target: ModelTarget, is_chat: bool) -> re.Pattern[str]:
    if not is_chat:
        return _NARROW_ID
    host = urlsplit(target.base_url or "").hostname or ""
    return _MISTRAL_ID if target.provider == "mistral" or "mistral" in host else _CHAT_ID


def _make_wire_id(id_: str, pattern: re.Pattern[str], fitting_ids: set[str], used: set[str]) -> str:
    wire_id, number = id_, 0
    while wire_id in used or not pattern.fullmatch(wire_id) or (wire_id != id_ and wire_id in fitting_ids):
        digest = hashlib.sha256(f"{number}\0{id_}".encode("utf-8", "surrogatepass")).hexdigest()
        wire_id = digest[:9] if pattern is _MISTRAL_ID else f"call_{digest[:24]}"
        number += 1
    used.add(wire_id)
    return wire_id
