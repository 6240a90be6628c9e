"""Call models of the fake provider through the client that workers use, and read the whole reply or the error."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.secrets import Secret
from infra.llm import PydanticLlm
from infra.llm.local_model import LocalServer
from tests.support.fake_provider import FakeProvider

PROVIDER_KEY = "sk-very-secret-0123456789"
ADD_TOOL = ToolSpec(
    name="add",
    description="Adds two numbers.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
)
CONVERSATION = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="add"),
    ChatMessage(
        role="assistant",
        content="Adding.",
        tool_calls=(
            ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b": 2}'),
            ModelToolCall(id="c2", name="add", arguments='{"a": '),
        ),
    ),
    ChatMessage(role="tool", tool_call_id="c1", content="3"),
    ChatMessage(role="tool", tool_call_id="c2", content="no"),
    ChatMessage(role="user", content="and now"),
)
ANSWER_SCHEMA = {
    "title": "Weather",
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
}


class FakeLocalModel:
    """A local model as far as a caller sees it."""

    def __init__(self, url: str = "") -> None:
        self.url, self.connection_count, self.most_connections = url, 0, 0

    @asynccontextmanager
    async def acquire_server(self) -> AsyncIterator[LocalServer]:
        self.connection_count += 1
        try:
            yield LocalServer(base_url=self.url, api_key=None)
        finally:
            self.connection_count -= 1


def build_model_call(
    fake_provider: FakeProvider,
    provider: str = "openai_compatible",
    model: str = "m",
    text: str = "hello there",
    **more: Any,
) -> ModelCall:
    target = ModelTarget(
        name="registered",
        provider=provider,
        model=model,
        base_url=None if provider == "local" else fake_provider.url,
        api_key=Secret(PROVIDER_KEY),
        parameters=more.pop("parameters", {}),
    )
    return ModelCall(target=target, messages=more.pop("messages", (ChatMessage(role="user", content=text),)), **more)


async def collect_reply(llm: PydanticLlm, call: ModelCall) -> tuple[list[ReplyPart], ModelReply]:
    parts = [part async for part in llm.stream(call)]
    *rest, reply = [part for part in parts if not isinstance(part, ReportedUsage)]
    assert isinstance(reply, ModelReply)
    assert not any(isinstance(part, ModelReply) for part in rest)
    # The pieces that were streamed equal the whole.
    assert "".join(part.text for part in rest if isinstance(part, TextDelta)) == reply.message.content
    for index, tool_call in enumerate(reply.message.tool_calls):
        pieces = [part for part in rest if isinstance(part, ToolCallDelta) and part.index == index]
        assert (pieces[0].id, pieces[0].name) == (tool_call.id, tool_call.name)
        assert all(piece.id is None and piece.name is None for piece in pieces[1:])
        assert "".join(piece.arguments for piece in pieces) == tool_call.arguments
    return rest, reply


async def collect_error(llm: PydanticLlm, call: ModelCall) -> ModelError:
    with pytest.raises(ModelError) as raised:
        async for _ in llm.stream(call):
            pass
    error = raised.value
    assert PROVIDER_KEY not in error.message
    assert PROVIDER_KEY not in repr(error)
    assert error.message[-1] in ".…" or len(error.message) > 20
    return error
