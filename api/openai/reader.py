"""Read the answer of a run out of its event log, in the parts in which a model would give it.

What was sent cannot be taken back. So the text of an answer that is begun again is held until it goes beyond what was
sent, and the answer fails if it differs.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.llms import (
    ChatMessage,
    FinishReason,
    ModelReply,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    ReplyPart,
    TextDelta,
    ToolCallDelta,
)

# Between the texts of two steps of an agent.
STEP_SEPARATOR: Final = "\n\n"
_TEXT_FIELDS: Final = ("content", "result")
_NO_USAGE: Final = ModelUsage()


class AnswerChanged(Exception):
    """Report that a part of the answer was sent that the run discarded, and that the new answer differs."""


class RunAnswerReader:
    """Read one answer.

    With `is_result`, for answers of JSON, its text comes at the end, as the result of the run. With `is_streamed` off,
    all text comes at the end, and what the run discards is dropped.
    """

    def __init__(self, is_result: bool = False, is_streamed: bool = True) -> None:
        self._is_result, self._is_streamed = is_result, is_streamed
        self._pieces: list[str] = []
        # The number of pieces before the step whose text is being read.
        self._step_start = 0
        # The step whose text is being read, its text so far, and what was sent of an earlier try of it.
        self._step, self._step_text, self._sent_text = "", "", ""
        self._finish: FinishReason = "stop"
        self._usage = _NO_USAGE

    def read_event(self, event: ExecutionEvent) -> Iterator[ReplyPart]:
        """Yield what an event adds to the answer. Errors: `AnswerChanged`."""
        data = event.data
        step = str(data.get("step", ""))
        if (discarded := data.get("discards")) is not None and discarded == self._step:
            self._begin_again()
        # Steps of agents to which this one delegates have a slash in their paths.
        if event.type == "token" and "/" not in step:
            yield from self._add_text(step, data["content"])
        elif event.type == "thinking" and "/" not in step:
            yield ReasoningDelta(data["content"])
        elif event.type == "output" and isinstance(data.get("value"), str):
            if data.get("number") == 1 and self._step_text:
                self._begin_again()
            yield from self._add_text("output", data["value"])
        elif event.type == "cost":
            self._usage = _add_usage(self._usage, data)
        elif event.type == "warning" and data.get("finish") is not None and "/" not in step:
            self._finish = data["finish"]

    def end_answer(self, execution: Execution, usage: ModelUsage | None = None) -> Iterator[ReplyPart]:
        """Yield what the result of a completed run adds, its `ModelReply` last. Errors: `AnswerChanged`.

        `usage` is that of a run whose log does not have it.
        """
        if self._sent_text and self._step_text != self._sent_text:
            raise AnswerChanged
        calls = _read_calls(execution.output_data)
        if not self._step:
            # Nothing was streamed: the run is no model's, or its answer had to be whole.
            self._is_result = False
            yield from self._add_text("result", render_result(execution.output_data))
        if self._pieces and not self._is_streamed:
            yield TextDelta("".join(self._pieces))
        for index, call in enumerate(calls):
            yield ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
        message = ChatMessage(role="assistant", content="".join(self._pieces), tool_calls=tuple(calls))
        yield ModelReply(message=message, finish="tool_calls" if calls else self._finish, usage=usage or self._usage)

    def _begin_again(self) -> None:
        self._finish = "stop"
        if not self._is_streamed:
            del self._pieces[self._step_start :]
            self._step, self._step_text = "", ""
            return
        self._sent_text = max(self._sent_text, self._step_text, key=len)
        self._step_text = ""

    def _add_text(self, step: str, text: str) -> Iterator[ReplyPart]:
        if self._is_result or not text:
            return
        if step != self._step:
            if self._sent_text and self._step_text != self._sent_text:
                raise AnswerChanged
            is_later = bool(self._pieces)
            self._step, self._step_text, self._sent_text = step, "", ""
            self._step_start = len(self._pieces)
            if is_later:
                yield from self._send_text(STEP_SEPARATOR)
        self._step_text += text
        if not self._sent_text:
            yield from self._send_text(text)
        elif self._step_text.startswith(self._sent_text):
            rest, self._sent_text = self._step_text[len(self._sent_text) :], ""
            if rest:
                yield from self._send_text(rest)
        elif not self._sent_text.startswith(self._step_text):
            raise AnswerChanged

    def _send_text(self, text: str) -> Iterator[ReplyPart]:
        self._pieces.append(text)
        if self._is_streamed:
            yield TextDelta(text)


def render_result(result: Any) -> str:
    """Return the result of a run as text: that of `{"content": …}` or `{"result": …}`, else JSON."""
    if isinstance(result, dict):
        texts: list[str] = [result[name] for name in _TEXT_FIELDS if isinstance(result.get(name), str)]
        if texts and set(result) <= {*_TEXT_FIELDS, "tool_calls"}:
            return texts[0]
    if result is None:
        return ""
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()


def _read_calls(result: Any) -> list[ModelToolCall]:
    """Return the calls of the caller's tools with which a run ended."""
    if not isinstance(result, dict) or set(result) != {"content", "tool_calls"}:
        return []
    try:
        return msgspec.convert(result["tool_calls"], list[ModelToolCall])
    except msgspec.ValidationError:
        return []


def _add_usage(usage: ModelUsage, data: dict[str, Any]) -> ModelUsage:
    return ModelUsage(
        **{name: getattr(usage, name) + int(data.get(name) or 0) for name in ModelUsage.__struct_fields__}
    )
