"""Run work again and again: poll with back-off, and retry calls through an outage."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

import structlog

from domain.shared.errors import OUTAGE_CODES, DomainError
from infra.disks import FULL_DISK_ERRNOS, build_full_disk_error
from infra.outage_log import log_outage

T = TypeVar("T")

# Pauses after a round that met an outage: doubled each time, up to the second.
MIN_OUTAGE_PAUSE_SECONDS: Final = 0.5
MAX_OUTAGE_PAUSE_SECONDS: Final = 1.0
# The pause after a round that failed because of a bug.
BUG_PAUSE_SECONDS: Final = 5.0
# Pauses between the tries of a single call.
MIN_RETRY_PAUSE_SECONDS: Final = 0.1
MAX_RETRY_PAUSE_SECONDS: Final = 2.0
# Object storage is waited for this long; the database without a limit.
MAX_STORAGE_OUTAGE_SECONDS: Final = 300.0

_log = structlog.get_logger("paddock.polling")


class PollResult(NamedTuple):
    """Tell what a round found, and for how many seconds there is nothing more to do unless the loop is woken."""

    did_work: bool
    pause_seconds: float


class Backoff:
    """Grow the pause between tries of something that keeps failing: doubled each time, up to a maximum."""

    def __init__(self, first_seconds: float, max_seconds: float) -> None:
        self._first_seconds, self._max_seconds = first_seconds, max_seconds
        self._next_seconds = first_seconds

    def take_pause(self) -> float:
        """Return the seconds to pause now, and double the pause after it."""
        pause = self._next_seconds
        self._next_seconds = min(pause * 2, self._max_seconds)
        return pause

    def reset(self) -> None:
        """Begin again with the first pause."""
        self._next_seconds = self._first_seconds


def ignore_round(name: str, did_work: bool | None) -> None:
    """Do nothing with the result of a round."""


async def poll(
    name: str,
    work: Callable[[], Awaitable[PollResult]],
    *,
    stop: asyncio.Event,
    wake: asyncio.Event | None = None,
    min_pause_seconds: float = 0.0,
    on_round: Callable[[str, bool | None], None] = ignore_round,
) -> None:
    """Do rounds of `work` until `stop` is set, each after the pause that the one before asked for.

    `wake` ends a pause early, but not the first `min_pause_seconds` of it. To set `stop`, set `wake` as well.
    An outage is waited out with back-off. A bug is logged and does not end the loop. `on_round` receives the loop's
    name and whether the round did any work, None if it failed.
    """
    backoff = Backoff(MIN_OUTAGE_PAUSE_SECONDS, MAX_OUTAGE_PAUSE_SECONDS)
    wake = wake or stop
    while not stop.is_set():
        if wake is not stop:
            wake.clear()
        result: PollResult | None = None
        required_pause = min_pause_seconds
        try:
            result = await work()
            backoff.reset()
        except DomainError as error:
            log_outage(_log, "polling waits for an outage to end", error, loop=name)
            required_pause = backoff.take_pause()
        except Exception:
            _log.exception("a polling round failed unexpectedly", loop=name)
            required_pause = BUG_PAUSE_SECONDS
        on_round(name, None if result is None else result.did_work)
        if required_pause > 0:
            await _wait_for(stop, required_pause)
        if result is not None and result.pause_seconds > required_pause and not stop.is_set():
            await _wait_for(wake, result.pause_seconds - required_pause)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def retry_through_outage(call: Callable[[], Awaitable[T]], max_seconds: float | None = None) -> T:
    """Repeat a call until the database and object storage answer, for at most `max_seconds`.

    Work that is done is not dropped for an outage. Without `max_seconds`, an outage of the database or a full disk
    is waited out however long it takes, and one of object storage for `MAX_STORAGE_OUTAGE_SECONDS`. Errors: those of
    the call, and the outage's own once the time is up.
    """
    loop = asyncio.get_running_loop()
    started_at, backoff = loop.time(), Backoff(MIN_RETRY_PAUSE_SECONDS, MAX_RETRY_PAUSE_SECONDS)
    while True:
        try:
            return await call()
        except (DomainError, OSError) as raised:
            error = (
                build_full_disk_error("this worker")
                if isinstance(raised, OSError) and raised.errno in FULL_DISK_ERRNOS
                else raised
            )
            if not isinstance(error, DomainError) or error.code not in OUTAGE_CODES:
                raise
            limit = max_seconds
            if limit is None and error.code == "storage_unavailable":
                limit = MAX_STORAGE_OUTAGE_SECONDS
            pause = backoff.take_pause()
            if limit is not None and loop.time() + pause > started_at + limit:
                raise
            log_outage(_log, "work waits for an outage to end", error)
            await asyncio.sleep(pause)
