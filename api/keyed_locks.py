"""Serialize requests of one tenant or account."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """Hand out one lock per key, for example per tenant id, and forget it when it is no longer used.

    Requests that wait for rows which their tenant has locked wait here instead, and so hold no database connections.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def get_lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a key."""
        return self._locks.setdefault(key, asyncio.Lock())

    def __len__(self) -> int:
        return len(self._locks)
