"""Call models for an uploaded agent, by the names in its manifest."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    EmbeddingReply,
    ModelOptions,
    ModelReply,
    ProviderParts,
    ReasoningItem,
    ReplyPart,
    ToolSpec,
)
from workers.model_calls import ModelCalls, ModelRequest
from workers.run.reasoning_sealer import ReasoningSealer

# Bytes of JSON that are kept of a run's answers to be sent back to their providers. The oldest are dropped first.
MAX_PROVIDER_PARTS_BYTES: Final = 8 << 20
# Bytes counted for each entry besides its JSON.
ENTRY_OVERHEAD_BYTES: Final = 512


class NamedModelCalls:
    """Call models as `workers.run.gateway.GatewayCalls` describes.

    OpenAI's chat completions have no field for the reasoning that some providers require back with the results of
    tools, and clients of the other wires may leave it out. That reasoning is kept here during the run, and restored in
    the answers that the agent sends back.
    """

    def __init__(self, calls: ModelCalls, sealer: ReasoningSealer) -> None:
        self._calls, self._sealer = calls, sealer
        self._provider_parts: OrderedDict[bytes, tuple[ProviderParts, int]] = OrderedDict()
        self._size = 0

    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer. Errors: `ModelError`, `budget_exceeded`."""
        target = await self._calls.resolve_target(name)
        messages = tuple(self._restore_provider_parts(message) for message in messages)
        # A program relies on what it asked for: what its model cannot apply is refused.
        options = replace(options, must_apply=True)
        request = ModelRequest(target=target, messages=messages, tools=tools, options=options)
        async with contextlib.aclosing(self._calls.stream_answer(request)) as parts:
            async for part in parts:
                if isinstance(part, ModelReply):
                    self._save_provider_parts(part.message)
                yield part

    async def embed_texts(self, name: str, texts: tuple[str, ...], dimensions: int | None) -> EmbeddingReply:
        """Return the vectors of texts. Errors: `ModelError`, `budget_exceeded`."""
        return await self._calls.embed_texts(await self._calls.resolve_target(name), texts, dimensions)

    def seal_reasoning(self, item: ReasoningItem) -> str:
        """Seal reasoning for the agent, as `infra.wires.common.ReasoningSeal` describes."""
        return self._sealer.seal_reasoning(item)

    def open_reasoning(self, sealed: str) -> ReasoningItem | None:
        """Return what was sealed, None for what was not sealed here for this tenant."""
        return self._sealer.open_reasoning(sealed)

    def _restore_provider_parts(self, message: ChatMessage) -> ChatMessage:
        entry = self._provider_parts.get(_hash_message(message)) if message.tool_calls else None
        return message if entry is None else replace(message, provider_parts=entry[0])

    def _save_provider_parts(self, message: ChatMessage) -> None:
        if message.provider_parts is None or not message.tool_calls:
            return
        size = len(msgspec.json.encode(message.provider_parts)) + ENTRY_OVERHEAD_BYTES
        _, before = self._provider_parts.pop(_hash_message(message), (None, 0))
        self._provider_parts[_hash_message(message)] = (message.provider_parts, size)
        self._size += size - before
        while self._size > MAX_PROVIDER_PARTS_BYTES:
            _, (_, freed) = self._provider_parts.popitem(last=False)
            self._size -= freed


def _hash_message(message: ChatMessage) -> bytes:
    # A hash, because the text may have megabytes and the parts kept for it only a few bytes.
    identity = [message.content, *(call.id for call in message.tool_calls)]
    return hashlib.sha256(repr(identity).encode("utf-8", "surrogatepass")).digest()
