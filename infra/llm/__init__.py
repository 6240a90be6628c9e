"""Models and what they cost: the ports `Llm` and `Prices` on pydantic-ai's model classes and genai-prices.

Both libraries take a second to import, so they are loaded when the first model is called, in a thread.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from domain.llms import ModelCall, ReplyPart
from infra.llm.key_mask import stream_masked
from infra.llm.local_model import LocalServer, prepare_local_request
from infra.llm.prices import GenaiPrices
from infra.llm.tool_schemas import stream_adapted

if TYPE_CHECKING:
    import httpx2

    from infra.http import Outbound

__all__ = ["GenaiPrices", "LocalServerSource", "PydanticLlm"]

# What a provider says of an error; a server that a tenant chose may send without end.
MAX_ERROR_BYTES: Final = 256 * 1024


class LocalServerSource(Protocol):
    """The model on this host: where it is, good for as long as the context is held."""

    def acquire_server(self) -> AbstractAsyncContextManager[LocalServer]: ...


class PydanticLlm:
    """Calls models with pydantic-ai. One pool of guarded connections for all tenants, `close` ends it."""

    def __init__(self, outbound: "Outbound", local: LocalServerSource) -> None:
        self._outbound, self._local = outbound, local
        self._guarded: httpx2.AsyncClient | None = None
        self._inside: httpx2.AsyncClient | None = None
        self._module: Any = None
        self._loading = asyncio.Lock()

    async def stream(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        """See `domain.ports.Llm`. Errors: `domain.llms.messages.ModelError`."""
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
            # Not through the guard: where our own server listens is none of a tenant's saying.
            async with self._local.acquire_server() as served:
                self._inside = self._inside or module.create_local_client()
                async with aclosing(
                    module.stream_parts(prepare_local_request(ask, served), served.base_url, self._inside)
                ) as parts:
                    async for part in parts:
                        yield part
            return
        self._guarded = self._guarded or self._outbound.create_httpx2_client(max_error_bytes=MAX_ERROR_BYTES)
        async with aclosing(module.stream_parts(ask, ask.target.base_url, self._guarded)) as parts:
            async for part in parts:
                yield part

    async def load_libraries(self) -> None:
        """Loads what calls need, so that the first one does not wait for it."""
        # Whoever asks meanwhile waits: a module that is half loaded is in sys.modules too.
        async with self._loading:
            self._module = self._module or await asyncio.to_thread(import_module, "infra.llm.client")

    async def close(self) -> None:
        """Ends all connections. Calls under way fail."""
        clients, self._guarded, self._inside = (self._guarded, self._inside), None, None
        for client in clients:
            if client is not None:
                await client.aclose()
