"""Redis beyond the queue: the bell that wakes waiters, and the counters of rate limits.

Redis may be away at any time. Then waiters poll, limits are counted locally, and nothing fails.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.shared.jobs import ROW_PREFIX_BY_LANE, Lane
from infra.group_commit import GroupCommit

CHANGED_CHANNEL: Final = "paddock:changed:"
# What another than its holder makes of a row: the only changes that a holder needs to hear of.
REVOKED_CHANNEL: Final = "paddock:taken:"
REVOKED_STATUSES: Final = frozenset({"cancelled", "pending", "queued"})
RING_CHANNEL: Final = "paddock:ring:"
CONNECTED_POLL_SECONDS: Final = 15.0
DISCONNECTED_POLL_SECONDS: Final = 1.0
REDIS_OUTAGE_ERRORS: Final = (RedisError, OSError, asyncio.TimeoutError)

_log = structlog.get_logger("paddock.redis")


def create_redis_client(url: str) -> Redis:
    """A client that gives up quickly: nothing in Redis is worth a request's second."""
    made: Redis = Redis.from_url(url, socket_connect_timeout=0.5, socket_timeout=1.0, health_check_interval=30)
    return made


class Bell:
    """One subscription per process, shared by all that wait.

    For rings of the lanes `rung`, for changes of rows of the lanes `heard`, and for rows of the lanes
    `held` that were taken from whoever held them.
    """

    def __init__(
        self,
        url: str,
        lanes: tuple[Lane, ...] = (),
        row_changes: tuple[Lane, ...] = (),
        revocations: tuple[Lane, ...] = (),
    ) -> None:
        self._url = url
        self._channels = [RING_CHANNEL + lane for lane in lanes]
        # Runs of all lanes are executions: one channel for them.
        self._channels += sorted(
            {CHANGED_CHANNEL + ROW_PREFIX_BY_LANE[lane] for lane in row_changes}
            | {REVOKED_CHANNEL + ROW_PREFIX_BY_LANE[lane] for lane in revocations}
        )
        self._waiting: dict[str, list[tuple[asyncio.Event, frozenset[str] | None]]] = {}
        self._rung = {RING_CHANNEL + lane: asyncio.Event() for lane in lanes}
        self._task: asyncio.Task[None] | None = None
        self._hears = False

    async def __aenter__(self) -> "Bell":
        if self._channels:
            self._task = asyncio.create_task(self._listen(), name="bell")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def poll_seconds(self) -> float:
        """Seconds after which to look for oneself: long while the bell is heard, short while Redis is away."""
        return CONNECTED_POLL_SECONDS if self._hears else DISCONNECTED_POLL_SECONDS

    @contextmanager
    def watch_row(
        self, row_id: str, statuses: frozenset[str] | None = None, event: asyncio.Event | None = None
    ) -> Iterator[asyncio.Event]:
        """An event (`heard`, or a new one) that is set whenever the row changes, or comes to one of `statuses`.

        Look at the row after this begins, not before.
        """
        waiter = (event or asyncio.Event(), statuses)
        waiters = self._waiting.setdefault(row_id, [])
        waiters.append(waiter)
        try:
            yield waiter[0]
        finally:
            waiters.remove(waiter)
            if not waiters:
                self._waiting.pop(row_id, None)

    def get_lane_event(self, lane: Lane) -> asyncio.Event:
        """An event that is set whenever the lane is rung."""
        return self._rung[RING_CHANNEL + lane]

    async def _listen(self) -> None:
        away = False
        while True:
            redis = Redis.from_url(self._url, socket_connect_timeout=2, health_check_interval=15)
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(*self._channels)
                    if away:
                        _log.info("redis is back")
                    away, self._hears = False, True
                    self._wake_all()
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=30)
                        if message is not None:
                            self._hear(message["channel"].decode(), message["data"])
            except REDIS_OUTAGE_ERRORS as error:
                if not away:
                    _log.warning("redis is away; waiters poll until it is back", error=str(error))
                away = True
                if self._hears:
                    self._hears = False
                    self._wake_all()
                await asyncio.sleep(0.5)
            finally:
                await redis.aclose()

    def _hear(self, channel: str, data: bytes) -> None:
        if channel in self._rung:
            self._rung[channel].set()
            return
        for told in data.decode().split():
            row_id, _, status = told.partition(":")
            for heard, statuses in self._waiting.get(row_id, ()):
                if statuses is None or status in statuses:
                    heard.set()

    def _wake_all(self) -> None:
        # Whatever was said while nobody listened is lost, so everybody looks again.
        for waiters in self._waiting.values():
            for heard, _ in waiters:
                heard.set()
        for rung in self._rung.values():
            rung.set()


def _window_key(who: str, window: int, start: int) -> str:
    return f"paddock:limit:{who}:{window}:{start}"


class WindowCounter:
    """Counts uses per window, in Redis, or in this process while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        # Uses counted while one message is on its way go together with the next.
        self._uses = GroupCommit(self._count_all)
        self._local: dict[tuple[str, int, int], int] = {}
        self._down_until = 0.0

    async def count_use(self, subject: str, window: int, now: float) -> int:
        """Count one use by `who` in the present window of so many seconds; returns the uses so far."""
        start = int(now) // window * window
        if time.monotonic() >= self._down_until:
            used = await self._uses.add((_window_key(subject, window, start), start + window + 1))
            if used is not None:
                return used
        self._local = {key: used for key, used in self._local.items() if key[1] + key[2] > now}
        here = (subject, start, window)
        self._local[here] = self._local.get(here, 0) + 1
        return self._local[here]

    async def get_uses(self, subject: str, window: int, now: float) -> int:
        """Return the uses by `who` in the present window, without counting one."""
        start = int(now) // window * window
        if time.monotonic() >= self._down_until:
            try:
                return int(await self._redis.get(_window_key(subject, window, start)) or 0)
            except REDIS_OUTAGE_ERRORS:
                self._down_until = time.monotonic() + 1.0
        return self._local.get((subject, start, window), 0)

    async def _count_all(self, uses: list[tuple[str, int]]) -> list[int | None]:
        """Count each use of a key that expires at a time; None for all while Redis is away."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, until in uses:
                    pipe.incr(key)
                    pipe.expireat(key, until)
                return [int(used) for used in (await pipe.execute())[::2]]
        except REDIS_OUTAGE_ERRORS:
            # One slow request per second finds out whether Redis is back; the others do not wait for it.
            self._down_until = time.monotonic() + 1.0
            return [None] * len(uses)
