"""OpenAI's Responses, as the scripted provider of `tests.support.fake_provider` speaks them, and what it insists on."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.fake_provider import ProviderRequest, ScriptedAnswer

# What the newer families answer to function tools on chat completions.
TOOLS_REFUSED = (
    "Function tools with reasoning_effort are not supported for this model in /v1/chat/completions. "
    "Please use /v1/responses instead."
)


def list_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The input of a request, in the form of chat completions."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in given or ():
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
    """What is wrong with the reasoning that is given back: each call of a tool needs the item before it, as it was."""
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
    """What is wrong with the thoughts that are given back to Anthropic, while the model is to think."""
    if (asked.body.get("thinking") or {}).get("type") in (None, "disabled"):
        return None
    for number, message in reversed(list(enumerate(asked.body["messages"]))):
        blocks = message["content"] if isinstance(message["content"], list) else [{"type": "text"}]
        if message["role"] == "user" and any(block["type"] != "tool_result" for block in blocks):
            return None  # what was thought in earlier turns is left to the client
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
    """How OpenAI says it, over /v1/responses."""

    def __init__(self, asked: "ProviderRequest") -> None:
        from tests.support.fake_provider import id_numbers

        self.asked, self.id = asked, f"resp_{next(id_numbers)}"
        self.number = 0  # of the item
        self.sequence = 0
        self.output: list[dict[str, Any]] = []

    def head(self, answer: "ScriptedAnswer") -> list[bytes]:
        frames = [self.event("response.created", response=self.response("in_progress"))]
        if answer.thinking or answer.reasoning:
            item = {"id": f"rs_{self.id}", "type": "reasoning", "summary": []}
            frames.append(self.event("response.output_item.added", output_index=self.number, item=item))
            for token in _tokens(answer.thinking):
                frames.append(
                    self.event(
                        "response.reasoning_summary_text.delta", item_id=item["id"], summary_index=0, delta=token
                    )
                )
            frames.append(self.done(self.reasoning(answer)))
        if answer.tokens:
            item = {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "content": []}
            frames.append(self.event("response.output_item.added", output_index=self.number, item=item))
        return frames

    def token(self, token: str) -> bytes:
        return self.event(
            "response.output_text.delta",
            item_id=f"msg_{self.id}",
            output_index=self.number,
            content_index=0,
            delta=token,
        )

    def tail(self, answer: "ScriptedAnswer") -> list[bytes]:
        frames = [self.done(self.message(answer))] if answer.tokens else []
        for call in self.calls(answer):
            begun = {**call, "arguments": ""}
            frames.append(self.event("response.output_item.added", output_index=self.number, item=begun))
            for piece in _pieces(call["arguments"]):
                frames.append(
                    self.event(
                        "response.function_call_arguments.delta",
                        item_id=call["id"],
                        output_index=self.number,
                        delta=piece,
                    )
                )
            frames.append(
                self.event("response.function_call_arguments.done", item_id=call["id"], arguments=call["arguments"])
            )
            frames.append(self.done(call))
        kind = "incomplete" if self.incomplete(answer) else "completed"
        return [*frames, self.event(f"response.{kind}", response=self.response(kind, answer))]

    def whole(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        self.output = [self.reasoning(answer)] if answer.thinking or answer.reasoning else []
        self.output += [self.message(answer)] if answer.tokens else []
        self.output += self.calls(answer)
        return self.response("incomplete" if self.incomplete(answer) else "completed", answer)

    def reasoning(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": answer.thinking}] if answer.thinking else []
        item = {"id": f"rs_{self.id}", "type": "reasoning", "summary": summary, "status": None}
        sealed = "reasoning.encrypted_content" in (self.asked.body.get("include") or ())
        return {**item, "encrypted_content": f"sealed-{self.id}" if sealed else None}

    def message(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        content = [{"type": "output_text", "text": answer.text, "annotations": []}]
        return {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "content": content}

    def calls(self, answer: "ScriptedAnswer") -> Iterator[dict[str, Any]]:
        for one in answer.calls:
            call = {"type": "function_call", "call_id": one.id, "name": one.name, "arguments": one.arguments_text}
            yield {"id": f"fc_{one.id}", "status": "completed", **call}

    def response(self, status: str, answer: "ScriptedAnswer | None" = None) -> dict[str, Any]:
        told: dict[str, Any] = {"id": self.id, "object": "response", "created_at": 1893456000, "status": status}
        told |= {"model": self.asked.model, "output": self.output, "error": None, "incomplete_details": None}
        if answer is not None:
            reason = self.incomplete(answer)
            told["incomplete_details"] = {"reason": reason} if reason else None
            told["usage"] = self.usage(answer) if answer.reports_usage else None
        return told

    def incomplete(self, answer: "ScriptedAnswer") -> str | None:
        return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish or "")

    def usage(self, answer: "ScriptedAnswer") -> dict[str, Any]:
        from tests.support.fake_provider import count_usage

        prompt, completion = count_usage(self.asked, answer)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": answer.cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning},
            "total_tokens": prompt + completion,
        }

    def done(self, item: dict[str, Any]) -> bytes:
        frame = self.event("response.output_item.done", output_index=self.number, item=item)
        self.output.append(item)
        self.number += 1
        return frame

    def event(self, kind: str, **data: Any) -> bytes:
        self.sequence += 1
        return (
            f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': self.sequence, **data})}\n\n".encode()
        )

    def garbage(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": oops\n\n'

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "scripted", "param": None, "code": f"status_{status}"}}


def _tokens(text: str) -> list[str]:
    from tests.support.fake_provider import split_tokens

    return split_tokens(text)


def _pieces(text: str) -> list[str]:
    return [text[at : at + 12] for at in range(0, len(text), 12)]
