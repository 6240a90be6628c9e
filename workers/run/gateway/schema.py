"""Define the calls that a gateway makes for its run, and what one run may hold of this process."""

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from domain.llms import ChatMessage, EmbeddingReply, ModelOptions, ReplyPart, ToolSpec
from infra.wires.common import ReasoningSeal


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit one run. Times are in seconds. More connections and requests wait, in the kernel or here.

    - `max_concurrent_bytes`: of all requests that are being answered, as they were sent.
    - `head_timeout`: after the connection, or after the previous answer, until a request's head must have arrived.
    - `write_timeout`: within which the agent must read a piece of an answer, once the buffer is full.
    """

    max_body_bytes: int = 4 << 20
    max_concurrent_bytes: int = 16 << 20
    max_connections: int = 40
    max_concurrent_requests: int = 32
    max_concurrent_embeddings: int = 4
    max_concurrent_reads: int = 4
    head_timeout: float = 20.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0


class GatewayCalls(ReasoningSeal, Protocol):
    """Call models for one execution, with its keys, budget, retries, costs and events."""

    def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer as they come, its `ModelReply` last. The caller reads to the end, or closes it.

        Closing it, or cancelling the task that reads it, ends the call at once and settles it.
        Errors: `domain.llms.messages.ModelError`; `budget_exceeded`, and others of `DomainError`.
        """
        ...

    async def embed_texts(self, name: str, texts: tuple[str, ...], dimensions: int | None) -> EmbeddingReply:
        """Return the vectors of texts. Errors: as `stream_answer`."""
        ...
