"""Work that is done in rounds: whenever the bell rings, while there is more, and now and then in any case."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from domain.shared.errors import DomainError
from infra.outage_log import log_outage
from workers.lifecycle import Drain

# How often to look without being rung, in seconds.
LOOK: Final = 5.0
AWAY: Final = 1.0

_log = structlog.get_logger("paddock.records")

Work = Callable[[], Awaitable[bool]]


async def rounds(name: str, work: Work, rung: asyncio.Event, pause: float, drain: Drain) -> None:
    """Do `work` until draining begins; it returns whether there is more to do. `pause` seconds lie between two rounds.

    Outages are waited out. A mistake of ours is logged and does not end the process.
    """
    drain.wake_on_drain(rung)
    while not drain.has_begun():
        rung.clear()
        more, wait = False, pause
        found: bool | None = None
        try:
            found = more = await work()
        except DomainError as error:
            log_outage(_log, "waits", error, work=name)
            more, wait = True, AWAY
        except Exception:
            _log.exception("failed unexpectedly", work=name)
            wait = LOOK
        drain.note_round(name, found)
        if await drain.sleep(wait) and not more:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rung.wait(), LOOK)


async def ring_all(rung: asyncio.Event, events: Sequence[asyncio.Event], drain: Drain) -> None:
    """Pass every ring on to all. Whoever rings has something to do for us."""
    while True:
        await rung.wait()
        rung.clear()
        drain.note_work()
        for event in events:
            event.set()
