"""Call language models and price the calls: the ports `Llm` and `Prices` on pydantic-ai and genai-prices.

Both libraries take a second to import, so a thread loads them when the first model is called.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from domain.llms import EmbeddingCall, EmbeddingReply, ModelCall, ReplyPart
from infra.llm.key_mask import stream_masked
from infra.llm.local_model import LocalServer, prepare_local_request
from infra.llm.prices import GenaiPrices
from infra.llm.tool_schemas import stream_adapted

if TYPE_CHECKING:
    import httpx2

    from infra.http import Outbound

__all__ = ["GenaiPrices", "LocalServerSource", "PydanticLlm"]

# Limit for the body of an error response: a server that a tenant chose may send without end.
MAX_ERROR_BYTES: Final = 256 * 1024


class LocalServerSource(Protocol):
    """Provide the address of the local model. The address is valid while the context is open."""

    def acquire_server(self) -> AbstractAsyncContextManager[LocalServer]: ...


class PydanticLlm:
    """Call models with pydantic-ai, over one pool of guarded connections for all tenants. `close` ends the pool."""

    def __init__(self, outbound: "Outbound", local: LocalServerSource) -> None:
        self._outbound, self._local = outbound, local
        self._guarded: httpx2.AsyncClient | None = None
        self._inside: httpx2.AsyncClient | None = None
        self._module: Any = None
        self._loading = asyncio.Lock()

    async def stream(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        """Stream the answer to a call, as `domain.ports.Llm` describes. Errors: `domain.llms.ModelError`."""
        async with aclosing(stream_masked(ask, self._stream_adapted)) as parts:
            async for part in parts:
                yield part

    def _stream_adapted(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        return stream_adapted(ask, self._stream_wire)

    async def _stream_wire(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        if self._module is None:
            await self.load_libraries()
        module = self._module
        if ask.target.provider == "local":
            # Bypass the guard for outbound requests: the installation, not a tenant, chose this address.
            async with self._local.acquire_server() as served:
                self._inside = self._inside or module.create_local_client()
                async with aclosing(
                    module.stream_parts(prepare_local_request(ask, served), served.base_url, self._inside)
                ) as parts:
                    async for part in parts:
                        yield part
            return
        async with aclosing(module.stream_parts(ask, ask.target.base_url, self._open_guarded_client())) as parts:
            async for part in parts:
                yield part

    async def embed(self, ask: EmbeddingCall) -> EmbeddingReply:
        """Return the vectors of texts, as `domain.ports.Llm` describes. Errors: `domain.llms.ModelError`."""
        if self._module is None:
            await self.load_libraries()
        reply: EmbeddingReply = await self._module.embed_texts(ask, ask.target.base_url, self._open_guarded_client())
        return reply

    def _open_guarded_client(self) -> "httpx2.AsyncClient":
        self._guarded = self._guarded or self._outbound.create_httpx2_client(max_error_bytes=MAX_ERROR_BYTES)
        return self._guarded

    async def load_libraries(self) -> None:
        """Load the libraries, so that the first call does not wait for them."""
        # The lock is needed because `sys.modules` also holds modules that are only half loaded.
        async with self._loading:
            self._module = self._module or await asyncio.to_thread(import_module, "infra.llm.client")

    async def close(self) -> None:
        """Close all connections. Calls in progress fail."""
        clients, self._guarded, self._inside = (self._guarded, self._inside), None, None
        for client in clients:
            if client is not None:
                await client.aclose()
