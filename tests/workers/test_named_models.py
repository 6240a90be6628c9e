"""Reasoning of models called by an uploaded agent is kept beside the run, as OpenAI's wire format has no field for it."""

import gc
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from domain.llms import (
    ChatMessage,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ProviderParts,
    ReplyPart,
)
from infra.credentials import Keyring
from workers.model_calls import ModelRequest
from workers.run import named_models
from workers.run.named_models import NamedModelCalls
from workers.run.reasoning_sealer import ReasoningSealer

SEALER = ReasoningSealer(Keyring((), "s" * 32), "tenant_1")


class RecordingCalls:
    """Model calls that record their messages."""

    def __init__(self) -> None:
        self.requests: list[tuple[ChatMessage, ...]] = []
        self.answers: list[ChatMessage] = []

    async def resolve_target(self, name: str) -> Any:
        return ModelTarget(name=name, provider="local", model=name)

    async def stream_answer(self, request: ModelRequest) -> AsyncGenerator[ReplyPart, None]:
        self.requests.append(request.messages)
        self.options = request.options
        yield ModelReply(message=self.answers.pop(0), finish="tool_calls", usage=None)


def build_answer(id_: str, size: int = 1, content: str = "") -> ChatMessage:
    parts = ProviderParts(
        writer="w", parts=({"item": {"type": "reasoning", "of": id_, "filler": "x" * size}}, {"call": 0})
    )
    call = ModelToolCall(id=id_, name="f", arguments="{}")
    return ChatMessage(role="assistant", content=content, tool_calls=(call,), provider_parts=parts)


async def stream_answer(calls: NamedModelCalls, *messages: ChatMessage) -> None:
    async for _ in calls.stream_answer("m", messages, (), ModelOptions()):
        pass


def strip_provider_parts(message: ChatMessage) -> ChatMessage:
    """Return the message as the agent's library sends it: without fields it does not know."""
    return ChatMessage(role="assistant", content=message.content, tool_calls=message.tool_calls)


async def test_reasoning_is_restored_to_the_answer_it_came_with() -> None:
    inner = RecordingCalls()
    calls = NamedModelCalls(inner, SEALER)  # type: ignore[arg-type]
    first, second = build_answer("a"), build_answer("b", content="I look.")
    inner.answers = [first, second, build_answer("c"), build_answer("d")]
    await stream_answer(calls, ChatMessage(role="user", content="go"))
    await stream_answer(calls, strip_provider_parts(first))
    await stream_answer(
        calls,
        strip_provider_parts(first),
        ChatMessage(role="tool", content="", tool_call_id="a"),
        strip_provider_parts(second),
    )
    assert [message.provider_parts for message in inner.requests[-1]] == [
        first.provider_parts,
        None,
        second.provider_parts,
    ]
    changed = ChatMessage(role="assistant", content="I was changed.", tool_calls=second.tool_calls)
    await stream_answer(calls, changed)
    assert inner.requests[-1] == (changed,)


async def test_oldest_reasoning_is_dropped_over_the_limit() -> None:
    inner = RecordingCalls()
    calls = NamedModelCalls(inner, SEALER)  # type: ignore[arg-type]
    answers = [build_answer(f"c{number}", named_models.MAX_PROVIDER_PARTS_BYTES // 3) for number in range(4)]
    inner.answers = [*answers, build_answer("x")]
    for _ in answers:
        await stream_answer(calls)
    await stream_answer(calls, *map(strip_provider_parts, answers))
    assert [message.provider_parts is not None for message in inner.requests[-1]] == [False, False, True, True]


class LongText(str):
    """A text to which a weak reference is possible."""


async def test_texts_are_not_kept_with_the_reasoning() -> None:
    inner = RecordingCalls()
    calls = NamedModelCalls(inner, SEALER)  # type: ignore[arg-type]
    text = LongText("x" * 1000)
    inner.answers = [build_answer("a", content=text)]
    reference = weakref.ref(text)
    await stream_answer(calls)
    del text
    gc.collect()
    assert reference() is None


async def test_number_of_small_entries_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_models, "MAX_PROVIDER_PARTS_BYTES", 10 * named_models.ENTRY_OVERHEAD_BYTES)
    inner = RecordingCalls()
    calls = NamedModelCalls(inner, SEALER)  # type: ignore[arg-type]
    answers = [build_answer(f"c{number}") for number in range(20)]
    inner.answers = [*answers, build_answer("x")]
    for _ in answers:
        await stream_answer(calls)
    await stream_answer(calls, *map(strip_provider_parts, answers))
    has_reasoning = [message.provider_parts is not None for message in inner.requests[-1]]
    assert has_reasoning[-1]
    assert not any(has_reasoning[:10])


async def test_options_of_an_agent_must_be_applied() -> None:
    recording = RecordingCalls()
    recording.answers.append(build_answer("c1"))
    await stream_answer(NamedModelCalls(recording, SEALER), ChatMessage(role="user", content="x"))
    assert recording.options.must_apply
