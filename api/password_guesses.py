"""Limit guesses of passwords per account and address. A limit per caller would not help: attackers make new keys."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from api.keyed_locks import KeyedLocks
from domain.ports import Clock
from domain.shared.errors import DomainError
from infra.redis import WindowCounter

GUESS_WINDOW_SECONDS: Final = 3600
# How many addresses an attacker may have, or how many people behind one address may forget their passwords.
SHARED_LIMIT_FACTOR: Final = 10


class GuessLimiter:
    """Limit wrong passwords per hour: `failures` for an account from one address, ten times as many of either alone."""

    def __init__(self, counter: WindowCounter, clock: Clock, failures: int) -> None:
        self._counter, self._clock, self._failures = counter, clock, failures
        self._locks = KeyedLocks()

    @asynccontextmanager
    async def limit_guesses(self, account: str, address: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Check one password of an account at a time; yields the function that counts a wrong one.

        Concurrent guesses would all be let in before the first is counted. Right passwords are not counted.
        Errors: `rate_limit_exceeded`.
        """
        limits = self._list_limits(account, address)
        async with self._locks.get_lock(account):
            now = self._clock().timestamp()
            for counter_name, limit in limits:
                if await self._counter.get_uses(counter_name, GUESS_WINDOW_SECONDS, now) >= limit:
                    seconds = GUESS_WINDOW_SECONDS - int(now) % GUESS_WINDOW_SECONDS
                    raise DomainError(
                        "rate_limit_exceeded",
                        f"Too many wrong passwords. Try again in {seconds} seconds.",
                        retry_after=seconds,
                    )

            async def count_wrong() -> None:
                for counter_name, _ in limits:
                    await self._counter.count_use(counter_name, GUESS_WINDOW_SECONDS, self._clock().timestamp())

            yield count_wrong

    def _list_limits(self, account: str, address: str) -> list[tuple[str, int]]:
        if not self._failures:
            return []
        name = hashlib.sha256(account.encode("utf-8", "surrogatepass")).hexdigest()
        shared_limit = self._failures * SHARED_LIMIT_FACTOR
        return [
            (f"guess:{name}:{address}", self._failures),
            (f"guess:account:{name}", shared_limit),
            (f"guess:address:{address}", shared_limit),
        ]
