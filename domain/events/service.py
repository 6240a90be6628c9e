"""Read the event log: slices for streams, and lines for people."""

from domain import agents
from domain.events.schema import MAX_EVENT_BATCH, EventQuery, EventSlice, LogEntry
from domain.ports import Tx
from domain.shared.errors import DomainError, InvalidField, NotFound
from domain.shared.pages import Listing, Page


async def read_event_slices(tx: Tx, queries: list[EventQuery]) -> list[EventSlice | DomainError]:
    """Return up to `MAX_EVENT_BATCH` events that follow in each log, fewer where they are large.

    An item is `not_found` for an unknown execution, and `invalid_field` for a number beyond the last event.
    """
    slices = await tx.events.find_slices(queries, MAX_EVENT_BATCH)
    return [_check_slice(query, events) for query, events in zip(queries, slices, strict=True)]


def _check_slice(query: EventQuery, events: EventSlice | None) -> EventSlice | DomainError:
    if events is None:
        return NotFound("execution", query.execution_id)
    if query.seq > events.last_seq:
        return InvalidField("Last-Event-ID", f"is beyond the last event, which is {events.last_seq}.")
    return events


async def list_logs(tx: Tx, execution_id: str, page: Page) -> Listing[LogEntry]:
    """List an execution's log lines, oldest first. Errors: `not_found`."""
    if await tx.events.get_state(execution_id) is None:
        raise NotFound("execution", execution_id)
    return await tx.events.list_logs(execution_id, page)


async def list_agent_logs(tx: Tx, reference: str, page: Page) -> Listing[LogEntry]:
    """List the results and the output of an agent's builds and executions, newest first. Errors: `not_found`."""
    agent = await agents.get_agent(tx, reference)
    return await tx.events.list_agent_logs(agent.id, page)
