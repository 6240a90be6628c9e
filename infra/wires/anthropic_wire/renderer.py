"""Render an answer as a message of Anthropic: an object with content blocks, or the events in which it grows."""

import uuid
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from domain.llms import FinishReason, ModelReply, ModelUsage, ReasoningDelta, ReasoningItem, ReplyPart
from infra.wires.anthropic_wire.errors import render_error
from infra.wires.anthropic_wire.schema import MessageRequest
from infra.wires.common import AnswerBlock, BlockEvent, BlockSequence, ReasoningSeal, WireRefusal

_STOP_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessageRenderer:
    """Render one message."""

    def __init__(self, request: MessageRequest, seal: ReasoningSeal) -> None:
        self._request = request
        self._id = f"msg_{uuid.uuid4().hex}"
        self._sequence = BlockSequence(seal.seal_reasoning)

    def add_part(self, part: ReplyPart) -> None:
        """Collect a part of a whole message."""
        for _ in self._add_part(part):
            pass

    def render_whole(self, reply: ModelReply) -> dict[str, Any]:
        """Return the message as one object."""
        for _ in self._sequence.end_answer(reply):
            pass
        content = [_render_block(block) for block in self._sequence.blocks]
        return {
            **self._render_head(content),
            **_render_stop(reply),
            "usage": _render_usage(reply.usage or ModelUsage()),
        }

    def render_first(self) -> bytes:
        """Return the first events of a stream. What the prompt used is known at the end alone."""
        message = {**self._render_head([]), "stop_reason": None, "stop_sequence": None}
        message["usage"] = _render_usage(ModelUsage())
        return _encode("message_start", message=message) + _encode("ping")

    def render_part(self, part: ReplyPart) -> bytes:
        """Return the events that a part causes."""
        return _encode_blocks(self._add_part(part))

    def render_last(self, reply: ModelReply) -> bytes:
        """Return the end of a stream whose answer is complete."""
        events = _encode_blocks(self._sequence.end_answer(reply))
        usage = _render_usage(reply.usage or ModelUsage())
        return events + _encode("message_delta", delta=_render_stop(reply), usage=usage) + _encode("message_stop")

    def render_failure(self, refusal: WireRefusal) -> bytes:
        """Return the end of a stream that failed."""
        error = render_error(refusal)
        return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"

    def _add_part(self, part: ReplyPart) -> Iterable[BlockEvent]:
        if isinstance(part, ReasoningDelta | ReasoningItem) and not self._request.shows_thinking:
            return ()
        return self._sequence.add_part(part)

    def _render_head(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._request.model}
        return {**head, "content": content, "container": None}


def _render_block(block: AnswerBlock, is_begun: bool = False) -> dict[str, Any]:
    """Return a content block. One that has only begun is empty, unless it is reasoning without words."""
    if block.kind == "text":
        return {"type": "text", "text": "" if is_begun else block.text, "citations": None}
    if block.kind == "reasoning":
        if not block.pieces:
            return {"type": "redacted_thinking", "data": block.sealed or ""}
        if is_begun:
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "thinking", "thinking": block.text, "signature": block.sealed or ""}
    tool_input = {} if is_begun else _parse_arguments(block.text)
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": tool_input}


def _parse_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call. Those that are not an object are shown as what they are."""
    try:
        arguments = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"INVALID_JSON": text}


def _encode_blocks(events: Iterable[BlockEvent]) -> bytes:
    encoded = bytearray()
    for event in events:
        block = event.block
        match event.kind:
            case "start":
                content = _render_block(block, is_begun=True)
                encoded += _encode("content_block_start", index=block.index, content_block=content)
            case "piece":
                delta = _render_delta(block, event.text)
                encoded += _encode("content_block_delta", index=block.index, delta=delta)
            case "end":
                if block.kind == "reasoning" and block.pieces and block.sealed:
                    delta = {"type": "signature_delta", "signature": block.sealed}
                    encoded += _encode("content_block_delta", index=block.index, delta=delta)
                encoded += _encode("content_block_stop", index=block.index)
    return bytes(encoded)


def _render_delta(block: AnswerBlock, text: str) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text_delta", "text": text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": text}
        case "call":
            return {"type": "input_json_delta", "partial_json": text}


def _render_stop(reply: ModelReply) -> dict[str, Any]:
    reason = _STOP_REASONS[reply.finish]
    if reply.finish == "stop" and reply.stop_sequence is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": reply.stop_sequence}


def _render_usage(usage: ModelUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _encode(kind: str, **data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **data}) + b"\n\n"
