"""Handle the event log of executions as logs, server-sent events and WebSockets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Response, Router, get, websocket
from litestar.response import ServerSentEvent, ServerSentEventMessage

from api.auth import Authenticator, StreamAccess, authorize_message
from api.event_feed import EventFeed
from api.limits import RateLimiter
from api.operations import LAST_EVENT_ID, require_scope
from api.requests import HttpRequest, Store
from api.sockets import (
    NORMAL_CLOSE,
    Socket,
    SocketInbox,
    StreamResume,
    close_with_reason,
    decode_message,
    encode_text,
    error_to_json,
    event_to_json,
    send_json,
)
from domain import agents, events, executions, launch
from domain.events import EventQuery, LogEntry
from domain.executions import Execution, ExecutionStart
from domain.shared.access import Caller
from domain.shared.errors import DomainError, InvalidField, NotFound
from domain.shared.pages import Listing, Page

_READ_ACCESS: Final = require_scope("read:executions")
SSE_KEEPALIVE_SECONDS: Final = 15.0
MAX_SEQUENCE_DIGITS: Final = 9


@get("/logs/{agent_id:str}", opt=_READ_ACCESS)
async def list_agent_logs(store: Store, caller: Caller, agent_id: str, pagination: Page) -> Listing[LogEntry]:
    """List the results and log lines of an agent's builds and executions, newest first."""
    async with store.transaction(caller) as tx:
        return await events.list_agent_logs(tx, agent_id, pagination)


@get(["/execution-logs/{execution_id:str}", "/logs/executions/{execution_id:str}/logs"], opt=_READ_ACCESS)
async def list_execution_logs(store: Store, caller: Caller, execution_id: str, pagination: Page) -> Listing[LogEntry]:
    """List an execution's log lines, oldest first."""
    async with store.transaction(caller) as tx:
        return await events.list_logs(tx, execution_id, pagination)


@get(
    "/executions/{execution_id:str}/events",
    opt=require_scope("read:executions", LAST_EVENT_ID),
    media_type="text/event-stream",
)
async def stream_events(
    event_feed: EventFeed,
    authenticator: Authenticator,
    request: HttpRequest,
    caller: Caller,
    execution_id: str,
    access_token: str | None = None,
) -> ServerSentEvent | Response[None]:
    """Stream the event log as server-sent events, live. `Last-Event-ID` resumes after an event; the last is terminal.

    `access_token` takes the same credentials as `Authorization`, for browsers, whose EventSource cannot set headers.
    204 when no event can follow: an EventSource then stops reconnecting. If the key or user is revoked meanwhile,
    the last event is `error`.
    """
    sequence = _read_sequence("Last-Event-ID", request.headers.get("Last-Event-ID") or "0")
    position = EventQuery(tenant_id=caller.tenant_id, execution_id=execution_id, seq=sequence)
    log_slice = await event_feed.read_slice(position)
    if log_slice.is_complete and not log_slice.events:
        return Response(None, status_code=204)
    access = StreamAccess(authenticator, request, caller, "read:executions")
    return ServerSentEvent(_send_events(event_feed, position, access))


async def _send_events(
    event_feed: EventFeed, position: EventQuery, access: StreamAccess
) -> AsyncIterator[ServerSentEventMessage]:
    source = event_feed.follow_events(position, access)
    next_event = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait((next_event,), timeout=SSE_KEEPALIVE_SECONDS)
            if not done:
                yield ServerSentEventMessage(comment="still here")
                continue
            try:
                event = next_event.result()
            except DomainError as error:
                yield ServerSentEventMessage(data=encode_text(error_to_json(error)), event="error")
                return
            if event is None:
                return
            yield ServerSentEventMessage(data=encode_text(event_to_json(event)), event=event.type, id=event.seq)
            next_event = asyncio.ensure_future(anext(source, None))
    finally:
        next_event.cancel()
        await asyncio.gather(next_event, return_exceptions=True)
        await source.aclose()


@websocket("/execution-logs/{execution_id:str}/stream", opt=_READ_ACCESS)
async def stream_logs(
    socket: Socket, event_feed: EventFeed, authenticator: Authenticator, caller: Caller, execution_id: str
) -> None:
    """Stream the event log over a WebSocket, live: one JSON object per event. `?after=SEQ` resumes."""
    await socket.accept()
    async with close_with_reason(socket):
        sequence = _read_sequence("after", socket.query_params.get("after", "0"))
        position = EventQuery(tenant_id=caller.tenant_id, execution_id=execution_id, seq=sequence)
        access = StreamAccess(authenticator, socket, caller, "read:executions")
        async with SocketInbox(socket) as inbox:
            async for event in event_feed.follow_events(position, access, inbox.gone):
                await send_json(socket, event_to_json(event))
        await socket.close(NORMAL_CLOSE)


@websocket("/agents/{agent_id:str}/stream", opt=require_scope("run:agents"))
async def stream_agent(
    socket: Socket,
    store: Store,
    event_feed: EventFeed,
    authenticator: Authenticator,
    rate_limiter: RateLimiter,
    agent_id: str,
) -> None:
    """Start executions over a WebSocket: send their input as JSON, receive their events and results.

    Several may be sent, one after the other; each is authenticated and counted like a request of its own. Closing the
    socket does not stop an execution: `{execution_id, after: SEQ}` resumes reading it after the last received event.
    """
    await socket.accept()
    async with close_with_reason(socket), SocketInbox(socket) as inbox:
        while True:
            message = await inbox.receive_message()
            caller = await authorize_message(authenticator, rate_limiter, socket, "run:agents")
            position = await _open_position(store, caller, agent_id, await decode_message(message))
            access = StreamAccess(authenticator, socket, caller, "run:agents")
            async for event in event_feed.follow_events(position, access, inbox.gone):
                await send_json(socket, event_to_json(event))
            async with store.transaction(caller) as tx:
                ended = await executions.get_execution(tx, position.execution_id)
            await send_json(socket, _completion_to_json(ended))


async def _open_position(
    store: Store, caller: Caller, agent_id: str, message: StreamResume | ExecutionStart
) -> EventQuery:
    """Start the execution that a message asks for, or find the one to resume; return where to read from."""
    async with store.transaction(caller) as tx:
        if isinstance(message, ExecutionStart):
            execution, sequence = await launch.start_agent(tx, caller, agent_id, message), 0
        else:
            agent, execution = (
                await agents.get_agent(tx, agent_id),
                await executions.get_execution(tx, message.execution_id),
            )
            sequence = message.after
            if execution.agent_id != agent.id:
                raise NotFound("execution", message.execution_id)
    return EventQuery(tenant_id=caller.tenant_id, execution_id=execution.id, seq=sequence)


def _completion_to_json(execution: Execution) -> dict[str, Any]:
    return {
        "type": "complete",
        "execution_id": execution.id,
        "status": execution.status,
        "result": execution.output_data,
        "cost": execution.total_cost,
        "error_type": execution.error_type,
        "error_message": execution.error_message,
    }


def _read_sequence(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_SEQUENCE_DIGITS):
        raise InvalidField(field, "must be the number of an event.")
    return int(text)


router = Router(
    "/",
    route_handlers=[list_agent_logs, list_execution_logs, stream_events, stream_logs, stream_agent],
    tags=["logs and events"],
)
