"""Use Redis beyond the queue: the bell that wakes waiters, and the counters of rate limits.

Redis may be unavailable at any time. Then waiters poll, limits are counted locally, and nothing fails.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.shared.jobs import ROW_PREFIX_BY_LANE, SETTINGS_PREFIXES_BY_LANE, Lane
from infra.group_commit import GroupCommit

CHANGED_CHANNEL: Final = "paddock:changed:"
# Changes of a leased row by others: the only changes that the lease's owner needs to know.
REVOKED_CHANNEL: Final = "paddock:taken:"
REVOKED_STATUSES: Final = frozenset({"cancelled", "pending", "queued"})
RING_CHANNEL: Final = "paddock:ring:"
CONNECTED_POLL_SECONDS: Final = 15.0
DISCONNECTED_POLL_SECONDS: Final = 1.0
REDIS_OUTAGE_ERRORS: Final = (RedisError, OSError, asyncio.TimeoutError)

_log = structlog.get_logger("paddock.redis")


def create_redis_client(url: str) -> Redis:
    """Return a client with short timeouts: no request should wait a second for Redis."""
    redis: Redis = Redis.from_url(url, socket_connect_timeout=0.5, socket_timeout=1.0, health_check_interval=30)
    return redis


class Bell:
    """Share one subscription of the process among all waiters.

    It receives rings of `lanes`, changes of rows of the lanes in `row_changes`, and for the lanes in `revocations` the
    revoked leases of rows, and changes of rows with settings.
    """

    def __init__(
        self,
        url: str,
        lanes: tuple[Lane, ...] = (),
        row_changes: tuple[Lane, ...] = (),
        revocations: tuple[Lane, ...] = (),
    ) -> None:
        self._url = url
        self._settings_channels = frozenset(
            CHANGED_CHANNEL + prefix for lane in revocations for prefix in SETTINGS_PREFIXES_BY_LANE.get(lane, ())
        )
        self._change_listeners: list[Callable[[str | None], None]] = []
        self._channels = [RING_CHANNEL + lane for lane in lanes]
        # The rows of several lanes are executions, which share a channel.
        self._channels += sorted(
            {CHANGED_CHANNEL + ROW_PREFIX_BY_LANE[lane] for lane in row_changes}
            | {REVOKED_CHANNEL + ROW_PREFIX_BY_LANE[lane] for lane in revocations}
            | self._settings_channels
        )
        self._row_waiters: dict[str, list[tuple[asyncio.Event, frozenset[str] | None]]] = {}
        self._lane_events = {RING_CHANNEL + lane: asyncio.Event() for lane in lanes}
        self._task: asyncio.Task[None] | None = None
        self._is_connected = False

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
        """Return the seconds between polls: long while the subscription works, short while Redis is unavailable."""
        return CONNECTED_POLL_SECONDS if self._is_connected else DISCONNECTED_POLL_SECONDS

    @contextmanager
    def watch_row(
        self, row_id: str, statuses: frozenset[str] | None = None, event: asyncio.Event | None = None
    ) -> Iterator[asyncio.Event]:
        """Yield an event (`event`, or a new one) that is set when the row changes, or gets one of `statuses`.

        Read the row after entering this context, not before.
        """
        waiter = (event or asyncio.Event(), statuses)
        waiters = self._row_waiters.setdefault(row_id, [])
        waiters.append(waiter)
        try:
            yield waiter[0]
        finally:
            waiters.remove(waiter)
            if not waiters:
                self._row_waiters.pop(row_id, None)

    def listen_to_changes(self, listener: Callable[[str | None], None]) -> None:
        """Call `listener` with the id of each row whose settings changed, with None if some may have been missed."""
        self._change_listeners.append(listener)

    def get_lane_event(self, lane: Lane) -> asyncio.Event:
        """Return the event that is set whenever the lane is rung."""
        return self._lane_events[RING_CHANNEL + lane]

    async def _listen(self) -> None:
        is_down = False
        while True:
            redis = Redis.from_url(self._url, socket_connect_timeout=2, health_check_interval=15)
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(*self._channels)
                    if is_down:
                        _log.info("redis is back")
                        self._notify_listeners(None)
                    is_down, self._is_connected = False, True
                    self._wake_all()
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=30)
                        if message is not None:
                            self._dispatch_message(message["channel"].decode(), message["data"])
            except REDIS_OUTAGE_ERRORS as error:
                if not is_down:
                    _log.warning("redis is unavailable; waiters poll until it is back", error=str(error))
                is_down = True
                if self._is_connected:
                    self._is_connected = False
                    self._wake_all()
                await asyncio.sleep(0.5)
            finally:
                await redis.aclose()

    def _dispatch_message(self, channel: str, data: bytes) -> None:
        if channel in self._lane_events:
            self._lane_events[channel].set()
            return
        for change in data.decode().split():
            row_id, _, status = change.partition(":")
            if channel in self._settings_channels:
                self._notify_listeners(row_id)
            for event, statuses in self._row_waiters.get(row_id, ()):
                if statuses is None or status in statuses:
                    event.set()

    def _notify_listeners(self, row_id: str | None) -> None:
        for listener in self._change_listeners:
            listener(row_id)

    def _wake_all(self) -> None:
        # Messages from before the subscription are lost, so every waiter reads its row again.
        for waiters in self._row_waiters.values():
            for event, _ in waiters:
                event.set()
        for lane_event in self._lane_events.values():
            lane_event.set()


def _format_window_key(subject: str, window: int, start: int) -> str:
    return f"paddock:limit:{subject}:{window}:{start}"


class WindowCounter:
    """Count uses per time window, in Redis, or in this process while Redis is unavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        # Uses that arrive while one batch is sent are counted by the next one.
        self._uses = GroupCommit(self._count_all)
        self._local: dict[tuple[str, int, int], int] = {}
        self._down_until = 0.0

    async def count_use(self, subject: str, window: int, now: float) -> int:
        """Count one use by `subject` in the current window of `window` seconds, and return the uses so far."""
        start = int(now) // window * window
        if time.monotonic() >= self._down_until:
            used = await self._uses.add((_format_window_key(subject, window, start), start + window + 1))
            if used is not None:
                return used
        self._local = {key: used for key, used in self._local.items() if key[1] + key[2] > now}
        key = (subject, start, window)
        self._local[key] = self._local.get(key, 0) + 1
        return self._local[key]

    async def get_uses(self, subject: str, window: int, now: float) -> int:
        """Return the uses by `subject` in the current window, without counting one."""
        start = int(now) // window * window
        if time.monotonic() >= self._down_until:
            try:
                return int(await self._redis.get(_format_window_key(subject, window, start)) or 0)
            except REDIS_OUTAGE_ERRORS:
                self._down_until = time.monotonic() + 1.0
        return self._local.get((subject, start, window), 0)

    async def _count_all(self, uses: list[tuple[str, int]]) -> list[int | None]:
        """Count a use of each key, which expires at a time. Return None for all while Redis is unavailable."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, until in uses:
                    pipe.incr(key)
                    pipe.expireat(key, until)
                return [int(used) for used in (await pipe.execute())[::2]]
        except REDIS_OUTAGE_ERRORS:
            # One slow request per second checks whether Redis is back; the others do not wait.
            self._down_until = time.monotonic() + 1.0
            return [None] * len(uses)
