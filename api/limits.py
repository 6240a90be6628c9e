"""Limit request rates: per user with all its keys, per key that sets a limit, and per anonymous address.

Requests are counted in Redis, and in this process while Redis is unavailable.
"""

from typing import Final

import msgspec

from domain.ports import Clock
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from infra.redis import WindowCounter
from infra.settings import Settings

HOUR_SECONDS: Final = 3600
MINUTE_SECONDS: Final = 60
UNLIMITED_REQUESTS: Final = 2**31 - 1


class RateLimitUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Describe how much of a limit a caller has used in the current window. `reset` is in seconds since 1970."""

    limit: int
    used: int
    reset: int

    @property
    def remaining(self) -> int:
        """Return how many requests are left in the window."""
        return max(0, self.limit - self.used)

    def to_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of every answer. Without a limit they show the largest 32-bit number."""
        return [
            (b"x-ratelimit-limit", str(self.limit).encode()),
            (b"x-ratelimit-remaining", str(self.remaining).encode()),
            (b"x-ratelimit-reset", str(self.reset).encode()),
        ]

    def to_error(self, now: float) -> DomainError | None:
        """Return the error for a caller that is over its limit, else None."""
        if self.used <= self.limit:
            return None
        seconds = max(1, self.reset - int(now))
        return DomainError(
            "rate_limit_exceeded", f"Rate limit exceeded. Try again in {seconds} seconds.", retry_after=seconds
        )


class RateLimiter:
    """Count requests against the limits of the settings and of API keys."""

    def __init__(self, counter: WindowCounter, settings: Settings, clock: Clock) -> None:
        self._counter, self._settings, self._clock = counter, settings, clock

    async def count_request(self, caller: Caller | None, address: str) -> RateLimitUsage:
        """Count one request; return the usage of the tighter limit.

        A limit per minute, of the key or else of the installation, holds besides the tier's limit per hour.
        """
        now = self._clock().timestamp()
        settings = self._settings
        if caller is None:
            counter_name, hourly_limit = f"address:{address}", settings.rate_limit_anonymous
        else:
            # All keys of a user share the user's limit: otherwise more keys would mean more requests.
            counter_name = f"user:{caller.user_id}"
            is_premium = caller.plan == "premium"
            hourly_limit = settings.rate_limit_premium if is_premium else settings.rate_limit_authenticated
        usages = []
        if hourly_limit:
            usages.append(await self._count_in_window(counter_name, hourly_limit, HOUR_SECONDS, now))
        key_limit = caller.key_rate_limit if caller is not None else None
        minute_limit = key_limit or settings.rate_limit_per_minute
        if minute_limit:
            # A key's own limit counts that key alone; all keys of a user share the installation's.
            counted = f"key:{caller.key_id}" if caller is not None and key_limit else counter_name
            usages.append(await self._count_in_window(counted, minute_limit, MINUTE_SECONDS, now))
        if not usages:
            return describe_no_limit(now)
        return min(usages, key=lambda usage: (usage.limit - usage.used, -usage.reset))

    async def check_request(self, caller: Caller) -> None:
        """Count one request of a caller. Errors: `rate_limit_exceeded`."""
        usage = await self.count_request(caller, "")
        if (error := usage.to_error(self._clock().timestamp())) is not None:
            raise error

    async def _count_in_window(self, counter_name: str, limit: int, window: int, now: float) -> RateLimitUsage:
        used = await self._counter.count_use(counter_name, window, now)
        return RateLimitUsage(limit=limit, used=used, reset=(int(now) // window + 1) * window)


def describe_no_limit(now: float) -> RateLimitUsage:
    """Return the usage of a caller without a limit."""
    return RateLimitUsage(limit=UNLIMITED_REQUESTS, used=0, reset=(int(now) // HOUR_SECONDS + 1) * HOUR_SECONDS)
