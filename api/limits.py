"""Rate limits: per user with all its keys, per key that sets one, per anonymous address.

Counted in Redis, locally while it is away.
"""

from typing import Final

import msgspec

from api.front import Front
from domain.shared.access import Caller
from domain.shared.errors import DomainError

HOUR: Final = 3600
MINUTE: Final = 60
UNLIMITED: Final = 2**31 - 1


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a caller stands in the window that is nearest to its end. `reset` is in seconds since 1970."""

    limit: int
    used: int
    reset: int

    @property
    def remaining(self) -> int:
        """How many requests are left in the window."""
        return max(0, self.limit - self.used)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer. Without a limit, the largest 32-bit number stands for none."""
        return [
            (b"x-ratelimit-limit", str(self.limit).encode()),
            (b"x-ratelimit-remaining", str(self.remaining).encode()),
            (b"x-ratelimit-reset", str(self.reset).encode()),
        ]


async def count(front: Front, caller: Caller | None, address: str) -> Usage:
    """Count one request. A limit per minute holds besides the tier's per hour; the tighter one is told.

    It is a key's own one, else the installation's.
    """
    now = front.clock().timestamp()
    settings = front.settings
    if caller is None:
        who, limit = f"address:{address}", settings.rate_limit_anonymous
    else:
        # All keys of a user share the user's limit: else it would be a matter of having more of them.
        who = f"user:{caller.user_id}"
        limit = settings.rate_limit_premium if caller.plan == "premium" else settings.rate_limit_authenticated
    usages = []
    if limit:
        usages.append(await _count(front, who, limit, HOUR, now))
    per_minute = (caller.key_rate_limit if caller is not None else None) or settings.rate_limit_per_minute
    if per_minute:
        # A limit that a key sets is its own; all keys of a user share the installation's.
        own = caller is not None and caller.key_rate_limit
        usages.append(await _count(front, f"key:{caller.key_id}" if caller and own else who, per_minute, MINUTE, now))
    if not usages:
        return unlimited(now)
    return min(usages, key=lambda usage: (usage.limit - usage.used, -usage.reset))


def unlimited(now: float) -> Usage:
    """The usage of whoever has no limit."""
    return Usage(limit=UNLIMITED, used=0, reset=(int(now) // HOUR + 1) * HOUR)


async def _count(front: Front, who: str, limit: int, window: int, now: float) -> Usage:
    used = await front.counter.count(who, window, now)
    return Usage(limit=limit, used=used, reset=(int(now) // window + 1) * window)


def refusal(usage: Usage, now: float) -> DomainError | None:
    """The error for a caller that is over its limit, or None."""
    if usage.used <= usage.limit:
        return None
    wait = max(1, usage.reset - int(now))
    return DomainError("rate_limit_exceeded", f"Rate limit exceeded. Try again in {wait} seconds.", retry_after=wait)
