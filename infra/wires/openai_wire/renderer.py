"""Render answers as OpenAI does, whole or in chunks."""

import time
import uuid
from typing import Any

import msgspec

from domain.llms import ModelReply, ModelUsage, ReasoningDelta, ReplyPart, TextDelta, ToolCallDelta
from infra.wires.common import WireRefusal, drop_nulls
from infra.wires.openai_wire.schema import CompletionRequest


class CompletionRenderer:
    """Render one answer, whole or in chunks. `unique` ends its id."""

    def __init__(self, request: CompletionRequest, unique: str | None = None) -> None:
        self._request = request
        self._id, self._created = f"chatcmpl-{unique or uuid.uuid4().hex}", int(time.time())
        self._thoughts: list[str] = []

    def add_part(self, part: ReplyPart) -> None:
        """Collect the reasoning of a whole answer."""
        if isinstance(part, ReasoningDelta):
            self._thoughts.append(part.text)

    def render_whole(self, reply: ModelReply) -> dict[str, Any]:
        """Return the answer as one object. Its reasoning stands in a field of its own, as DeepSeek has it."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.message.content}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if reply.message.tool_calls:
            message["content"] = reply.message.content or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.message.tool_calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return {**self._render_head("chat.completion"), "choices": [choice], "usage": _render_usage(reply.usage)}

    def render_first(self) -> bytes:
        """Return the first chunk of a stream."""
        return self._render_chunk({"role": "assistant", "content": ""}, None)

    def render_part(self, part: ReplyPart) -> bytes:
        """Return the chunk of a part, empty for a part that does not belong to the answer."""
        if isinstance(part, TextDelta):
            return self._render_chunk({"content": part.text}, None)
        if isinstance(part, ReasoningDelta):
            return self._render_chunk({"reasoning_content": part.text}, None) if part.text else b""
        if not isinstance(part, ToolCallDelta):
            return b""
        call: dict[str, Any] = {
            "index": part.index,
            "function": drop_nulls({"name": part.name}) | {"arguments": part.arguments},
        }
        if part.id is not None:
            call |= {"id": part.id, "type": "function"}
        return self._render_chunk({"tool_calls": [call]}, None)

    def render_last(self, reply: ModelReply) -> bytes:
        """Return the end of a stream whose answer is complete."""
        ending = self._render_chunk({}, reply.finish)
        if self._request.include_usage:
            ending += _render_event(
                {**self._render_head("chat.completion.chunk"), "choices": [], "usage": _render_usage(reply.usage)}
            )
        return ending + b"data: [DONE]\n\n"

    def render_failure(self, refusal: WireRefusal) -> bytes:
        """Return the end of a stream that failed."""
        return _render_event(refusal.body)

    def _render_chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self._request.include_usage else {}
        return _render_event({**self._render_head("chat.completion.chunk"), "choices": [choice], **usage})

    def _render_head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}


def _render_event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def _render_usage(usage: ModelUsage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
