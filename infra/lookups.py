"""Look up hosts in threads of their own.

A lookup cannot be stopped: a name whose servers do not answer takes its thread for as long as the resolver tries. The
threads of the event loop are few, and all other work needs them.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from infra.http import list_addresses

LOOKUP_THREADS: Final = 32


class LookupThreads:
    """Resolve names in a pool of threads. `resolve_host` is a `HostResolver`."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(LOOKUP_THREADS, "lookup")

    async def resolve_host(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host. Errors: `OSError`, `ValueError` for an invalid name."""
        loop = asyncio.get_running_loop()
        find = socket.getaddrinfo
        return list_addresses(await loop.run_in_executor(self._executor, find, host, port, 0, socket.SOCK_STREAM))

    def close(self) -> None:
        """Start no more lookups. Those under way end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)
