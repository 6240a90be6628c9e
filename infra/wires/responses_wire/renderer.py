"""Render an answer as a response of OpenAI: an object with output items, or the typed events in which it grows."""

import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from domain.llms import ModelReply, ModelUsage, ReplyPart
from infra.wires.common import AnswerBlock, BlockEvent, BlockSequence, ReasoningSeal, WireRefusal
from infra.wires.responses_wire.response_log import LoggedResponse, ResponseLog
from infra.wires.responses_wire.schema import ResponseRequest

_ITEM_PREFIXES: Final = {"text": "msg", "reasoning": "rs", "call": "fc"}
_INCOMPLETE_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_Event = tuple[str, dict[str, Any]]


class ResponseRenderer:
    """Render one response. `unique` ends its id, and the ids of its items; `created_at` is in seconds since 1970."""

    def __init__(
        self,
        request: ResponseRequest,
        seal: ReasoningSeal,
        log: ResponseLog,
        unique: str | None = None,
        created_at: int | None = None,
    ) -> None:
        self._request, self._log = request, log
        self._unique = unique or uuid.uuid4().hex
        self._id, self._created_at = f"resp_{self._unique}", created_at or int(time.time())
        self._sequence = BlockSequence(seal.seal_reasoning)
        self._event_count = 0

    def add_part(self, part: ReplyPart) -> None:
        """Collect a part of a whole response."""
        for _ in self._sequence.add_part(part):
            pass

    def render_whole(self, reply: ModelReply) -> dict[str, Any]:
        """Return the response as one object."""
        for _ in self._sequence.end_answer(reply):
            pass
        return self._end_response(reply)

    def render_first(self) -> bytes:
        """Return the first events of a stream."""
        response = self._render_response("in_progress")
        return self._encode(
            [("response.created", {"response": response}), ("response.in_progress", {"response": response})]
        )

    def render_part(self, part: ReplyPart) -> bytes:
        """Return the events that a part causes."""
        return self._encode(self._render_events(self._sequence.add_part(part)))

    def render_last(self, reply: ModelReply) -> bytes:
        """Return the end of a stream whose answer is complete."""
        events = self._encode(self._render_events(self._sequence.end_answer(reply)))
        response = self._end_response(reply)
        return events + self._encode([(f"response.{response['status']}", {"response": response})])

    def render_failure(self, refusal: WireRefusal) -> bytes:
        """Return the end of a stream that failed: the failed response, and the error, which the library raises."""
        error, response = refusal.body["error"], self.render_failed(refusal)
        flat = {name: error[name] for name in ("code", "message", "param")}
        return self._encode([("response.failed", {"response": response}), ("error", {**flat, "error": error})])

    def render_open(self, status: str) -> dict[str, Any]:
        """Return a response that has no output: one that is `queued`, `in_progress` or `cancelled`."""
        return self._render_response(status)

    def render_failed(self, refusal: WireRefusal) -> dict[str, Any]:
        """Return a response that failed."""
        code = "rate_limit_exceeded" if refusal.status == 429 else "server_error"
        return {**self._render_response("failed"), "error": {"code": code, "message": refusal.body["error"]["message"]}}

    def _end_response(self, reply: ModelReply) -> dict[str, Any]:
        """Return the complete response, and log it for requests that continue from it."""
        if self._request.is_stored:
            size = self._request.size + len(msgspec.json.encode(reply.message))
            messages = (*self._request.new_messages, reply.message)
            self._log.save_response(self._id, LoggedResponse(messages, self._request.previous_response_id, size))
        reason = _INCOMPLETE_REASONS.get(reply.finish)
        response = self._render_response("completed" if reason is None else "incomplete")
        if reason is None:
            response["completed_at"] = int(time.time())
        else:
            response["incomplete_details"] = {"reason": reason}
        response["usage"] = _render_usage(reply.usage)
        return response

    def _render_response(self, status: str) -> dict[str, Any]:
        ended = status not in ("in_progress", "queued")
        item_status = "completed" if status == "completed" else "incomplete"
        blocks = self._sequence.blocks
        return {
            **self._request.echo,
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [
                # What ended before the last item did is complete, however the response ends.
                self._render_item(block, "completed" if block is not blocks[-1] else item_status)
                for block in (blocks if ended else ())
            ],
            "usage": None,
        }

    def _get_item_id(self, block: AnswerBlock) -> str:
        return f"{_ITEM_PREFIXES[block.kind]}_{self._unique}{block.index:04d}"

    def _render_item(self, block: AnswerBlock, status: str) -> dict[str, Any]:
        """Return an output item. One that is in progress has no content yet."""
        item_id, is_begun = self._get_item_id(block), status == "in_progress"
        text = "" if is_begun else block.text
        if block.kind == "text":
            content = [] if is_begun else [_render_text(text)]
            return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}
        if block.kind == "reasoning":
            summary = [_render_summary(text)] if text else []
            sealed = None if is_begun else block.sealed
            return {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": sealed}
        call = {"arguments": text, "call_id": block.call_id, "name": block.name}
        return {"id": item_id, "type": "function_call", "status": status, **call}

    def _render_events(self, events: Iterable[BlockEvent]) -> Iterable[_Event]:
        for event in events:
            match event.block.kind:
                case "text":
                    yield from self._render_text_event(event)
                case "reasoning":
                    yield from self._render_reasoning_event(event)
                case "call":
                    yield from self._render_call_event(event)

    def _render_text_event(self, event: BlockEvent) -> Iterable[_Event]:
        block = event.block
        place = {"item_id": self._get_item_id(block), "output_index": block.index, "content_index": 0}
        match event.kind:
            case "start":
                yield self._render_added(block)
                yield "response.content_part.added", {**place, "part": _render_text("")}
            case "piece":
                yield "response.output_text.delta", {**place, "delta": event.text, "logprobs": []}
            case "end":
                yield "response.output_text.done", {**place, "text": block.text, "logprobs": []}
                yield "response.content_part.done", {**place, "part": _render_text(block.text)}
                yield self._render_done(block)

    def _render_reasoning_event(self, event: BlockEvent) -> Iterable[_Event]:
        block, kind = event.block, "response.reasoning_summary"
        place = {"item_id": self._get_item_id(block), "output_index": block.index, "summary_index": 0}
        match event.kind:
            case "start":
                yield self._render_added(block)
                if block.pieces:
                    yield f"{kind}_part.added", {**place, "part": _render_summary("")}
            case "piece":
                yield f"{kind}_text.delta", {**place, "delta": event.text}
            case "end":
                if block.pieces:
                    yield f"{kind}_text.done", {**place, "text": block.text}
                    yield f"{kind}_part.done", {**place, "part": _render_summary(block.text)}
                yield self._render_done(block)

    def _render_call_event(self, event: BlockEvent) -> Iterable[_Event]:
        block, kind = event.block, "response.function_call_arguments"
        place = {"item_id": self._get_item_id(block), "output_index": block.index}
        match event.kind:
            case "start":
                yield self._render_added(block)
            case "piece":
                yield f"{kind}.delta", {**place, "delta": event.text}
            case "end":
                yield f"{kind}.done", {**place, "name": block.name, "arguments": block.text}
                yield self._render_done(block)

    def _render_added(self, block: AnswerBlock) -> _Event:
        item = self._render_item(block, "in_progress")
        return "response.output_item.added", {"output_index": block.index, "item": item}

    def _render_done(self, block: AnswerBlock) -> _Event:
        item = self._render_item(block, "completed")
        return "response.output_item.done", {"output_index": block.index, "item": item}

    def _encode(self, events: Iterable[_Event]) -> bytes:
        encoded = bytearray()
        for kind, data in events:
            body = msgspec.json.encode({"type": kind, "sequence_number": self._event_count, **data})
            encoded += b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"
            self._event_count += 1
        return bytes(encoded)


def _render_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _render_summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _render_usage(usage: ModelUsage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
