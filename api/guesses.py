"""Guesses of passwords, counted per account and address: not per caller, as keys cost an attacker nothing."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from api.room import Turns
from domain.ports import Clock
from domain.shared.errors import DomainError
from infra.redis import Counter

HOUR: Final = 3600
# So many addresses may an attacker have, or so many people behind one address forget their passwords.
ALL_TOGETHER: Final = 10


class GuessLimiter:
    """Bounds wrong passwords: `failures` an hour for an account from an address, ten times as many of either alone."""

    def __init__(self, counter: Counter, clock: Clock, failures: int) -> None:
        self._counter, self._clock, self._failures = counter, clock, failures
        self._turns = Turns()

    @asynccontextmanager
    async def turn(self, account: str, address: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Let one look at a password at a time for each account; gives the function that counts a wrong one.

        Side by side, all of many guesses would be let in before the first is counted. Right ones are not counted.
        Errors: `rate_limit_exceeded`.
        """
        bounds = self._bounds(account, address)
        async with self._turns.of(account):
            now = self._clock().timestamp()
            for who, most in bounds:
                if await self._counter.used(who, HOUR, now) >= most:
                    wait = HOUR - int(now) % HOUR
                    raise DomainError(
                        "rate_limit_exceeded",
                        f"Too many wrong passwords. Try again in {wait} seconds.",
                        retry_after=wait,
                    )

            async def count_wrong() -> None:
                for who, _ in bounds:
                    await self._counter.count(who, HOUR, self._clock().timestamp())

            yield count_wrong

    def _bounds(self, account: str, address: str) -> list[tuple[str, int]]:
        if not self._failures:
            return []
        name = hashlib.sha256(account.encode("utf-8", "surrogatepass")).hexdigest()
        together = self._failures * ALL_TOGETHER
        return [
            (f"guess:{name}:{address}", self._failures),
            (f"guess:account:{name}", together),
            (f"guess:address:{address}", together),
        ]
