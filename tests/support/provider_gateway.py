"""Serve a gateway whose models are those of the fake provider, called as workers call them."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ReplyPart,
    ReportedUsage,
    ToolSpec,
)
from domain.shared.secrets import Secret
from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider
from tests.support.gateway_client import GatewayClient, ScriptedCalls, serve_scripted
from tests.support.model_calls import PROVIDER_KEY

# What the provider of each name is, and the model's name there.
TARGETS: Final[dict[str, dict[str, Any]]] = {
    "responses": {"provider": "openai", "model": "gpt-4.1"},
    "chat": {"provider": "openai", "model": "gpt-4.1", "api": "chat"},
    "only-responses": {"provider": "openai", "model": "gpt-4.1", "api": "responses"},
    "reasoner": {"provider": "openai", "model": "gpt-5"},
    "cached": {"provider": "openai", "model": "gpt-5.6", "api": "chat"},
    "claude": {"provider": "anthropic", "model": "claude-sonnet-4-5"},
    "claude-newer": {"provider": "anthropic", "model": "claude-opus-4-8"},
    "vllm": {"provider": "openai_compatible", "model": "m"},
    "ollama": {"provider": "ollama", "model": "m"},
    "deepseek": {"provider": "deepseek", "model": "deepseek-chat"},
    "local": {"provider": "local", "model": "smollm2"},
}


class ProviderCalls(ScriptedCalls):
    """Call the fake provider."""

    def __init__(self, llm: PydanticLlm, provider: FakeProvider) -> None:
        super().__init__()
        self._llm, self._provider = llm, provider

    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        base_url = None if name == "local" else self._provider.url
        target = ModelTarget(name=name, base_url=base_url, api_key=Secret(PROVIDER_KEY), **TARGETS[name])
        ask = ModelCall(
            target=target, messages=messages, tools=tools, options=replace(options, must_apply=True), timeout=10
        )
        async with aclosing(self._llm.stream(ask)) as parts:
            async for part in parts:
                if not isinstance(part, ReportedUsage):
                    yield part
                if isinstance(part, ModelReply):
                    break


@asynccontextmanager
async def serve_provider(llm: PydanticLlm, provider: FakeProvider) -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ProviderCalls(llm, provider), models=tuple(TARGETS)) as client:
        yield client
