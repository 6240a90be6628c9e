"""The event log and its views: logs, server-sent events, WebSockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec
from litestar import Router, WebSocket, get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.response import ServerSentEvent, ServerSentEventMessage

from api.front import Front, HttpRequest, find_execution, needs
from domain import events, executions
from domain.access import Caller
from domain.errors import DomainError, invalid
from domain.events import Event, LogEntry
from domain.executions import Start
from domain.pages import Listing, Page
from domain.states import TERMINAL

# We use none of the three type parameters.
Socket = WebSocket[Any, Any, Any]

KEEPALIVE: Final = 15.0
LOOK: Final = 1.0
# RFC 6455 section 7.4: 1000 is a normal end, 1008 a broken policy, 4000 and above are ours.
_CLOSE: Final = {"not_found": 4404, "unauthenticated": 4401, "missing_scope": 4403}


@get("/logs/{agent_id:str}", opt=needs("read:agents"))
async def agent_logs(front: Front, caller: Caller, agent_id: str, part: Page) -> Listing[LogEntry]:
    """What an agent's builds and executions came to and wrote, newest first."""
    async with front.store.begin(caller) as tx:
        return await events.agent_logs(tx, agent_id, part)


@get(
    ["/execution-logs/{execution_id:str}", "/logs/executions/{execution_id:str}/logs"],
    opt=needs("read:executions"),
)
async def execution_logs(front: Front, caller: Caller, execution_id: str, part: Page) -> Listing[LogEntry]:
    """An execution's log, in the order in which it was written."""
    async with front.store.begin(caller) as tx:
        return await events.logs(tx, execution_id, part)


@get("/executions/{execution_id:str}/events", opt=needs("read:executions"), media_type="text/event-stream")
async def stream_events(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> ServerSentEvent:
    """The event log as server-sent events, live. `Last-Event-ID` resumes after an event; the last one is terminal."""
    after = _last_event_id(request)
    async with front.store.begin(caller) as tx:
        await executions.get(tx, execution_id)
    return ServerSentEvent(_as_sse(front, caller, execution_id, after))


@websocket("/execution-logs/{execution_id:str}/stream", opt=needs("read:executions"))
async def stream_logs(socket: Socket, front: Front, caller: Caller, execution_id: str) -> None:
    """The event log over a WebSocket, live: one JSON object per event. `?after=SEQ` resumes."""
    await socket.accept()
    try:
        text = socket.query_params.get("after", "0")
        async for event in follow(front, caller, execution_id, _sequence("after", text), socket):
            await socket.send_data(msgspec.json.encode(_flat(event)).decode(), mode="text")
        await socket.close(1000)
    except DomainError as error:
        await _refuse(socket, error)
    except WebSocketDisconnect:
        return


@websocket("/agents/{agent_id:str}/stream", opt=needs("run:agents"))
async def stream_agent(socket: Socket, front: Front, caller: Caller, agent_id: str) -> None:
    """Send what to run as JSON; receive the events of its execution, and `{type: complete, result, cost}` at the end.

    Several may be sent, one after the other. Closing the socket does not stop an execution.
    """
    await socket.accept()
    try:
        while True:
            data = msgspec.json.decode(await socket.receive_data("text"), type=Start)
            async with front.store.begin(caller) as tx:
                execution = await executions.start(tx, caller, agent_id, data)
            async for event in follow(front, caller, execution.id, 0, None):
                await socket.send_data(msgspec.json.encode(_flat(event)).decode(), mode="text")
            await socket.send_data(await _complete(front, caller, execution.id), mode="text")
    except msgspec.MsgspecError as error:
        await _refuse(socket, invalid("message", f"{error}."))
    except DomainError as error:
        await _refuse(socket, error)
    except WebSocketDisconnect:
        return


async def follow(
    front: Front, caller: Caller, execution_id: str, after: int, socket: Socket | None
) -> AsyncGenerator[Event, None]:
    """Every event after number `after`, as they come, up to the terminal one. No transaction is open in between.

    Errors: `not_found`, and `WebSocketDisconnect` once the other side of `socket` has gone.
    """
    gone = asyncio.create_task(_until_gone(socket)) if socket is not None else None
    try:
        with front.bell.listen(execution_id) as heard:
            while True:
                heard.clear()
                async with front.store.begin(caller) as tx:
                    found = await events.after(tx, execution_id, after)
                for event in found:
                    yield event
                    after = event.seq
                    if event.is_terminal:
                        return
                if len(found) < events.BATCH:
                    if not found and await _has_ended(front, caller, execution_id):
                        return
                    await _heard_or_gone(heard, gone)
    finally:
        if gone is not None:
            gone.cancel()


async def _has_ended(front: Front, caller: Caller, execution_id: str) -> bool:
    """Whether nothing can follow: someone asked for events after the last."""
    async with front.store.begin(caller) as tx:
        last = await tx.events.after(execution_id, 0, 1)
        execution = await executions.get(tx, execution_id)
    return bool(last) and execution.status in TERMINAL


async def _heard_or_gone(heard: asyncio.Event, gone: "asyncio.Task[None] | None") -> None:
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(heard.wait()), *([gone] if gone else [])]
    await asyncio.wait(waiting, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
    waiting[0].cancel()
    if gone is not None and gone.done():
        raise WebSocketDisconnect(detail="the client has gone")


async def _until_gone(socket: Socket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _as_sse(front: Front, caller: Caller, execution_id: str, after: int) -> AsyncIterator[ServerSentEventMessage]:
    source = follow(front, caller, execution_id, after, None)
    following = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait((following,), timeout=KEEPALIVE)
            if not done:
                yield ServerSentEventMessage(comment="still here")
                continue
            event = following.result()
            if event is None:
                return
            yield ServerSentEventMessage(
                data=msgspec.json.encode(_flat(event)).decode(), event=event.type, id=event.seq
            )
            following = asyncio.ensure_future(anext(source, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await source.aclose()


def _flat(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "type": event.type, "at": event.at, **event.data}


async def _complete(front: Front, caller: Caller, execution_id: str) -> str:
    ended = await find_execution(front, caller, execution_id)
    told = {
        "type": "complete",
        "execution_id": ended.id,
        "status": ended.status,
        "result": ended.output_data,
        "cost": ended.total_cost,
        "error_type": ended.error_type,
        "error_message": ended.error_message,
    }
    return msgspec.json.encode(told).decode()


async def _refuse(socket: Socket, error: DomainError) -> None:
    told = {"type": "error", "error": error.code, "detail": error.detail, "errors": error.errors}
    await socket.send_data(msgspec.json.encode(told).decode(), mode="text")
    await socket.close(_CLOSE.get(error.code, 1008), error.code)


def _last_event_id(request: HttpRequest) -> int:
    return _sequence("Last-Event-ID", request.headers.get("Last-Event-ID") or "0")


def _sequence(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid(field, "must be the number of an event.")
    return int(text)


router = Router(
    "/",
    route_handlers=[agent_logs, execution_logs, stream_events, stream_logs, stream_agent],
    tags=["logs and events"],
)
