"""Render answers of the fake provider as OpenAI's Responses, and check the rules of that API."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.fake_provider import ProviderRequest, ScriptedAnswer

# The answer of newer models to function tools on chat completions.
TOOLS_REFUSED = (
    "Function tools with reasoning_effort are not supported for this model in /v1/chat/completions. "
    "Please use /v1/responses instead."
)


def list_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the input of a request in the form of chat completions."""
    input_items = body.get("input")
    if isinstance(input_items, str):
        return [{"role": "user", "content": input_items}]
    messages: list[dict[str, Any]] = []
    for item in input_items or ():
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                messages.append({"role": item["role"], "content": text})
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
            case "function_call_output":
                messages.append({"role": "tool", "content": item["output"]})
    return messages


def find_reasoning_problem(asked: "ProviderRequest") -> str | None:
    """Return what is wrong with reasoning that is sent back: each tool call needs the item before it, unchanged."""
    is_there = False
    for item in asked.body.get("input") or ():
        match item.get("type", "message"):
            case "reasoning":
                is_there = str(item.get("encrypted_content")).startswith("sealed-") and "summary" in item
            case "function_call" if not is_there:
                return f"Item '{item['call_id']}' of type 'function_call' was provided without its 'reasoning' item."
            case "function_call_output":
                is_there = False
    return None


def find_thinking_problem(asked: "ProviderRequest") -> str | None:
    """Return what is wrong with thinking that is sent back to Anthropic, if thinking is enabled."""
    if (asked.body.get("thinking") or {}).get("type") in (None, "disabled"):
        return None
    for number, message in reversed(list(enumerate(asked.body["messages"]))):
        blocks = message["content"] if isinstance(message["content"], list) else [{"type": "text"}]
        if message["role"] == "user" and any(block["type"] != "tool_result" for block in blocks):
            return None  # thinking of earlier turns is optional
        if not any(block["type"] == "tool_use" for block in blocks):
            continue
        first = blocks[0]
        if first["type"] not in ("thinking", "redacted_thinking"):
            return (
                f"messages.{number}.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
                f"`{first['type']}`. When `thinking` is enabled, a final `assistant` message must start with a "
                "thinking block (preceeding the lastmost set of `tool_use` and `tool_result` blocks)."
            )
        if first["type"] == "thinking" and first.get("signature") != "c2lnbmVk":
            return f"messages.{number}.content.0: Invalid `signature` in `thinking` block"
    return None


class ResponsesFormat:
    """Render answers as OpenAI's Responses."""

    def __init__(self, asked: "ProviderRequest") -> None:
        from tests.support.fake_provider import id_numbers

        self.asked, self.id = asked, f"resp_{next(id_numbers)}"
        self.number = 0  # of the item
        self.sequence = 0
        self.output: list[dict[str, Any]] = []

    def render_head(self, answer: "ScriptedAnswer") -> list[bytes]:
        frames = [self.render_event("response.created", response=self.build_response("in_progress"))]
        if answer.thinking or answer.reasoning:
            item = {"id": f"rs_{self.id}", "type": "reasoning", "summary": []}
            frames.append(self.render_event("response.output_item.added", output_index=self.number, item=item))
            for token in _split_tokens(answer.thinking):
                frames.append(
                    self.render_event(
                        "response.reasoning_summary_text.delta", item_id=item["id"], summary_index=0, delta=token
                    )
                )
            frames.append(self.render_item_done(self.build_reasoning(answer)))
        if answer.tokens:
            item = {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "content": []}
            frames.append(self.render_event("response.output_item.added", output_index=self.number, item=item))
        return frames

    def render_token(self, token: str) -> bytes:
        return self.render_event(
            "response.output_text.delta",
            item_id=f"msg_{self.id}",
            output_index=self.number,
            content_index=0,
            delta=token,
        )

    def render_tail(self, answer: "ScriptedAnswer") -> list[bytes]:
        frames = [self.render_item_done(self.build_message(answer))] if answer.tokens else []
        for call in self.build_calls(answer):
            begun = {**call, "arguments": ""}
            frames.append(self.render_event("response.output_item.added", output_index=self.number, item=begun))
            for piece in _split_pieces(call["arguments"]):
                frames.append(
                    self.render_event(
                        "response.function_call_arguments.delta",
                        item_id=call["id"],
                        output_index=self.number,
                        delta=piece,
                    )
                )
            frames.append(
                self.render_event(
                    "response.function_call_arguments.done", item_id=call["id"], arguments=call["arguments"]
                )
            )
            frames.append(self.render_item_done(call))
        kind = "incomplete" if self.get_incomplete_reason(answer) else "completed"
        return [*frames, self.render_event(f"response.{kind}", response=self.build_response(kind, answer))]

    def render_whole(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        self.output = [self.build_reasoning(answer)] if answer.thinking or answer.reasoning else []
        self.output += [self.build_message(answer)] if answer.tokens else []
        self.output += self.build_calls(answer)
        return self.build_response("incomplete" if self.get_incomplete_reason(answer) else "completed", answer)

    def build_reasoning(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": answer.thinking}] if answer.thinking else []
        item = {"id": f"rs_{self.id}", "type": "reasoning", "summary": summary, "status": None}
        sealed = "reasoning.encrypted_content" in (self.asked.body.get("include") or ())
        return {**item, "encrypted_content": f"sealed-{self.id}" if sealed else None}

    def build_message(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        content = [{"type": "output_text", "text": answer.text, "annotations": []}]
        return {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "content": content}

    def build_calls(self, answer: "ScriptedAnswer") -> Iterator[dict[str, Any]]:
        for answer_call in answer.calls:
            call = {
                "type": "function_call",
                "call_id": answer_call.id,
                "name": answer_call.name,
                "arguments": answer_call.arguments_text,
            }
            yield {"id": f"fc_{answer_call.id}", "status": "completed", **call}

    def build_response(self, status: str, answer: "ScriptedAnswer | None" = None) -> dict[str, Any]:
        fields: dict[str, Any] = {"id": self.id, "object": "response", "created_at": 1893456000, "status": status}
        fields |= {"model": self.asked.model, "output": self.output, "error": None, "incomplete_details": None}
        if answer is not None:
            reason = self.get_incomplete_reason(answer)
            fields["incomplete_details"] = {"reason": reason} if reason else None
            fields["usage"] = self.build_usage(answer) if answer.reports_usage else None
        return fields

    def get_incomplete_reason(self, answer: "ScriptedAnswer") -> str | None:
        return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish or "")

    def build_usage(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        from tests.support.fake_provider import count_usage

        prompt, completion = count_usage(self.asked, answer)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": answer.cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning},
            "total_tokens": prompt + completion,
        }

    def render_item_done(self, item: dict[str, Any]) -> bytes:
        frame = self.render_event("response.output_item.done", output_index=self.number, item=item)
        self.output.append(item)
        self.number += 1
        return frame

    def render_event(self, kind: str, **data: Any) -> bytes:
        self.sequence += 1
        return (
            f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': self.sequence, **data})}\n\n".encode()
        )

    def render_malformed(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": oops\n\n'

    def build_error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "scripted", "param": None, "code": f"status_{status}"}}


def _split_tokens(text: str) -> list[str]:
    from tests.support.fake_provider import split_tokens

    return split_tokens(text)


def _split_pieces(text: str) -> list[str]:
    return [text[at : at + 12] for at in range(0, len(text), 12)]
