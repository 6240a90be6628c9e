"""Run the work of the record process: each kind in its own polling loop, all woken by one bell."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from infra.polling import PollResult
from workers.lifecycle import Drain

# Seconds between two polls without a ring.
RECORD_POLL_SECONDS: Final = 5.0


class RecordWork(NamedTuple):
    """Hold one kind of work: its round, which returns whether there may be more, and the minimum pause after each."""

    name: str
    run_round: Callable[[], Awaitable[bool]]
    min_pause_seconds: float


async def poll_records(work: RecordWork, wake: asyncio.Event, drain: Drain) -> None:
    """Do one kind of work until draining begins."""

    async def run_round() -> PollResult:
        has_more = await work.run_round()
        return PollResult(has_more, 0.0 if has_more else RECORD_POLL_SECONDS)

    await drain.poll(work.name, run_round, wake=wake, min_pause_seconds=work.min_pause_seconds)


async def forward_rings(rung: asyncio.Event, wakes: Sequence[asyncio.Event], drain: Drain) -> None:
    """Wake every loop at each ring of the record lane."""
    while True:
        await rung.wait()
        rung.clear()
        drain.note_work()
        for wake in wakes:
            wake.set()
