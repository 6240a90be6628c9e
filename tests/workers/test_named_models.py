"""Reasoning of models that an uploaded agent calls: OpenAI's wire has no place for it, so it is kept beside the run."""

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
from workers.model_calls import ModelRequest
from workers.run import named_models
from workers.run.named_models import NamedModelCalls


class Calls:
    """Model calls that note what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[ChatMessage, ...]] = []
        self.answers: list[ChatMessage] = []

    async def resolve_target(self, name: str) -> Any:
        return ModelTarget(name=name, provider="local", model=name)

    async def stream_answer(self, request: ModelRequest) -> AsyncGenerator[ReplyPart, None]:
        self.asked.append(request.messages)
        yield ModelReply(message=self.answers.pop(0), finish="tool_calls", usage=None)


def answer(id_: str, size: int = 1, content: str = "") -> ChatMessage:
    parts = ProviderParts(
        writer="w", parts=({"item": {"type": "reasoning", "of": id_, "filler": "x" * size}}, {"call": 0})
    )
    call = ModelToolCall(id=id_, name="f", arguments="{}")
    return ChatMessage(role="assistant", content=content, tool_calls=(call,), provider_parts=parts)


async def ask(calls: NamedModelCalls, *messages: ChatMessage) -> None:
    async for _ in calls.stream_answer("m", messages, (), ModelOptions()):
        pass


def sent_back(message: ChatMessage) -> ChatMessage:
    """As the agent's library sends it: without what it has never seen."""
    return ChatMessage(role="assistant", content=message.content, tool_calls=message.tool_calls)


async def test_it_is_put_back_into_the_answer_that_it_came_with() -> None:
    inner = Calls()
    calls = NamedModelCalls(inner)  # type: ignore[arg-type]
    first, second = answer("a"), answer("b", content="I look.")
    inner.answers = [first, second, answer("c"), answer("d")]
    await ask(calls, ChatMessage(role="user", content="go"))
    await ask(calls, sent_back(first))
    await ask(calls, sent_back(first), ChatMessage(role="tool", content="", tool_call_id="a"), sent_back(second))
    assert [message.provider_parts for message in inner.asked[-1]] == [
        first.provider_parts,
        None,
        second.provider_parts,
    ]
    changed = ChatMessage(role="assistant", content="I was changed.", tool_calls=second.tool_calls)
    await ask(calls, changed)
    assert inner.asked[-1] == (changed,)


async def test_the_oldest_is_forgotten_where_it_gets_too_much() -> None:
    inner = Calls()
    calls = NamedModelCalls(inner)  # type: ignore[arg-type]
    many = [answer(f"c{number}", named_models.MAX_PROVIDER_PARTS_BYTES // 3) for number in range(4)]
    inner.answers = [*many, answer("x")]
    for _ in many:
        await ask(calls)
    await ask(calls, *map(sent_back, many))
    assert [message.provider_parts is not None for message in inner.asked[-1]] == [False, False, True, True]


class LongText(str):
    """A text that can be seen to be gone."""


async def test_texts_are_not_kept_with_it() -> None:
    inner = Calls()
    calls = NamedModelCalls(inner)  # type: ignore[arg-type]
    text = LongText("x" * 1000)
    inner.answers = [answer("a", content=text)]
    seen = weakref.ref(text)
    await ask(calls)
    del text
    gc.collect()
    assert seen() is None


async def test_many_little_ones_are_too_much_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_models, "MAX_PROVIDER_PARTS_BYTES", 10 * named_models.ENTRY_OVERHEAD_BYTES)
    inner = Calls()
    calls = NamedModelCalls(inner)  # type: ignore[arg-type]
    many = [answer(f"c{number}") for number in range(20)]
    inner.answers = [*many, answer("x")]
    for _ in many:
        await ask(calls)
    await ask(calls, *map(sent_back, many))
    kept = [message.provider_parts is not None for message in inner.asked[-1]]
    assert kept[-1]
    assert not any(kept[:10])
