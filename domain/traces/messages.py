"""Rebuild the messages that a call of a model was sent, from the recorded steps."""

from collections import defaultdict
from typing import Any, Final

import msgspec

from domain.agents import Agent
from domain.agents import build_messages as first_messages
from domain.shared.errors import DomainError
from domain.traces.schema import MAX_CONTENT_BYTES, TracedRun, TracedRunStep

# Limits of the messages of one call, and of all calls of a trace: each call repeats the messages of the one before.
MAX_CALL_BYTES: Final = 64 * 1024
MAX_TRACE_BYTES: Final = 4 * 1024 * 1024


class ContentBudget:
    """Count the bytes of messages that a trace may still show."""

    def __init__(self, max_bytes: int = MAX_TRACE_BYTES) -> None:
        self.bytes_left = max_bytes


class FirstPrompt(msgspec.Struct, kw_only=True):
    """Hold the agent and the input that its first messages are built from."""

    agent: Agent
    input: Any


class SentMessages:
    """Build the messages of one execution's calls, by the path of their step. Empty without content.

    Their form is that of OpenTelemetry's `gen_ai.input.messages`: `{"role": …, "parts": [{"type": …}]}`.
    """

    def __init__(self, run: TracedRun, steps: list[TracedRunStep], budget: ContentBudget) -> None:
        self._budget = budget
        # Built once per agent, for all its calls.
        self._histories: dict[str, tuple[list[dict[str, Any]], dict[int, int]]] = {}
        self._prompts = {"": run.prompt} | {f"{step.path}/": step.prompt for step in steps if step.prompt is not None}
        self._asks = defaultdict[str, dict[int, TracedRunStep]](dict)
        self._calls = defaultdict[str, dict[int, TracedRunStep]](dict)
        for step in steps:
            prefix, number = _split_path(step.path)
            if step.kind == "model":
                self._asks[prefix][int(number)] = step
            else:
                asked, _, place = number.partition(".")
                self._calls[f"{prefix}{asked}"][int(place or 0)] = step

    def list_for_step(self, path: str) -> tuple[list[dict[str, Any]], int]:
        """Return the messages sent by the call at this step, and the number of its oldest ones that are left out."""
        prefix, number = _split_path(path)
        return self._list_before(prefix, int(number))

    def list_for_next(self, agent_path: str) -> tuple[list[dict[str, Any]], int]:
        """Return the same of the call after an agent's last answer; `agent_path` is empty or its delegating step's."""
        prefix = f"{agent_path}/" if agent_path else ""
        return self._list_before(prefix, max(self._asks[prefix], default=0) + 1)

    def _list_before(self, prefix: str, number: int) -> tuple[list[dict[str, Any]], int]:
        if prefix not in self._histories:
            self._histories[prefix] = self._build_history(prefix)
        messages, begins = self._histories[prefix]
        return self._trim_messages(messages[: begins.get(number, len(messages))])

    def _build_history(self, prefix: str) -> tuple[list[dict[str, Any]], dict[int, int]]:
        """Return all messages of an agent, and how many of them came before each of its steps."""
        prompt = self._prompts.get(prefix)
        if prompt is None:
            return [], {}
        messages, begins = _build_first_messages(prompt), dict[int, int]()
        for number in sorted(self._asks[prefix]):
            step = self._asks[prefix][number]
            begins[number] = len(messages)
            messages.append({"role": "assistant", "parts": build_answer_parts(step)})
            results = self._calls[step.path]
            messages += [_build_result_message(results[place]) for place in sorted(results)]
        return messages, begins

    def _trim_messages(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        # The newest are what a reader looks for.
        newest: list[dict[str, Any]] = []
        room = min(MAX_CALL_BYTES, self._budget.bytes_left)
        for message in reversed(messages):
            size = len(msgspec.json.encode(message))
            if size > room:
                break
            room -= size
            self._budget.bytes_left -= size
            newest.append(message)
        return newest[::-1], len(messages) - len(newest)


def build_answer_parts(step: TracedRunStep) -> list[dict[str, Any]]:
    """Return the parts of a model's answer: its text and the tool calls that it asked for."""
    return [
        *build_text_parts(step.answer or ""),
        *(
            {"type": "tool_call", "id": call.id, "name": call.name, "arguments": trim_text(call.arguments)}
            for call in step.tool_calls
        ),
    ]


def build_text_parts(text: str) -> list[dict[str, Any]]:
    """Return a text as the parts of a message."""
    return [{"type": "text", "content": trim_text(text)}] if text else []


def trim_text(text: str) -> str:
    """Return a text of `MAX_CONTENT` bytes at most."""
    written = text.encode("utf-8", "replace")
    if len(written) <= MAX_CONTENT_BYTES:
        return text
    return written[: MAX_CONTENT_BYTES - 3].decode("utf-8", "ignore") + "…"


def _split_path(path: str) -> tuple[str, str]:
    prefix, slash, number = path.rpartition("/")
    return prefix + slash, number


def _build_first_messages(prompt: str) -> list[dict[str, Any]]:
    try:
        first = msgspec.json.decode(prompt, type=FirstPrompt)
        messages = first_messages(first.agent, first.input)
    except (msgspec.MsgspecError, DomainError):
        # A prompt that was too long to be stored here in full.
        return [{"role": "user", "parts": build_text_parts(prompt)}]
    return [{"role": message.role, "parts": build_text_parts(message.content)} for message in messages]


def _build_result_message(step: TracedRunStep) -> dict[str, Any]:
    text = step.answer or ""
    try:
        answer = msgspec.json.decode(text)
        text = msgspec.json.encode({"error": answer["error"]} if "error" in answer else answer.get("result")).decode()
    except (msgspec.MsgspecError, TypeError, KeyError, AttributeError):
        # The beginning of an answer that is too long to be shown.
        pass
    part = {"type": "tool_call_response", "id": step.call_id, "response": trim_text(text)}
    return {"role": "tool", "parts": [part]}
