"""Serve the network of a run: the gateway to models and the hosts outside, together."""

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

from domain.ports import NetworkServer


def serve_together(servers: Sequence[NetworkServer]) -> NetworkServer:
    """Return what serves with all of these. Each picks its listeners by their names."""

    @contextlib.asynccontextmanager
    async def serve(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server(listeners))
            yield

    return serve
