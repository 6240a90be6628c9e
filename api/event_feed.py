"""Follow the event logs of executions, live."""

import asyncio
from collections.abc import AsyncGenerator

from litestar.exceptions import WebSocketDisconnect

from api.auth import StreamAccess
from domain import events
from domain.events import EventQuery, EventSlice, ExecutionEvent
from domain.ports import Store
from domain.shared.errors import DomainError
from infra.group_commit import GroupCommit
from infra.redis import Bell

MAX_READ_BATCH = 64


class EventFeed:
    """Read and follow event logs. One statement reads for all streams that were rung since the last one began."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store, self._bell = store, bell
        self._reads: GroupCommit[EventQuery, EventSlice | DomainError] = GroupCommit(
            self._read_slices, max_items=MAX_READ_BATCH
        )

    async def read_slice(self, position: EventQuery) -> EventSlice:
        """Return the events that follow a position in a log. Errors: `not_found`, `invalid_field`."""
        result = await self._reads.add(position)
        if isinstance(result, DomainError):
            raise result
        return result

    async def follow_events(
        self, position: EventQuery, access: StreamAccess, gone: asyncio.Event | None = None
    ) -> AsyncGenerator[ExecutionEvent, None]:
        """Yield every event after a position as it is written, up to the terminal one. No transaction stays open.

        Errors: `not_found`, `invalid_field`, `WebSocketDisconnect` once `gone` is set, and those of
        `StreamAccess.check_access`.
        """
        sequence = position.seq
        with self._bell.watch_row(position.execution_id) as ring:
            while True:
                ring.clear()
                await access.check_access()
                log_slice = await self.read_slice(
                    EventQuery(tenant_id=position.tenant_id, execution_id=position.execution_id, seq=sequence)
                )
                for event in log_slice.events:
                    yield event
                    sequence = event.seq
                if log_slice.is_complete:
                    return
                if sequence >= log_slice.last_seq:
                    await _wait_for_ring(ring, gone, min(self._bell.poll_seconds, access.seconds_left))

    async def _read_slices(self, positions: list[EventQuery]) -> list[EventSlice | DomainError]:
        async with self._store.autocommit() as tx:
            return await events.read_event_slices(tx, positions)


async def _wait_for_ring(ring: asyncio.Event, gone: asyncio.Event | None, seconds: float) -> None:
    """Wait until the bell rings or the seconds are over. Errors: `WebSocketDisconnect` once the client is gone."""
    waits = [asyncio.create_task(event.wait()) for event in (ring, gone) if event is not None]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if gone is not None and gone.is_set():
        raise WebSocketDisconnect(detail="the client disconnected")
