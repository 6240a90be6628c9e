"""The event log and its views: logs, server-sent events, WebSockets."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, Router, WebSocket, get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.response import ServerSentEvent, ServerSentEventMessage
from msgspec import UNSET, Meta

from api.auth import Admission, readmit
from api.bodies import decode_body, read_aside
from api.front import Front, find_execution, needs
from api.requests import HttpRequest
from domain import agents, events, executions
from domain.events import Asked, Event, LogEntry, Slice
from domain.executions import Start
from domain.ports import Store
from domain.shared.access import Caller
from domain.shared.errors import DomainError, invalid, not_found
from domain.shared.json_limits import BODY_LIMITS, JsonTooLarge, check_json
from domain.shared.pages import Listing, Page
from domain.shared.unicode_text import mend_json, mend_json_text
from infra.group_commit import Batches

# We use none of the three type parameters.
Socket = WebSocket[Any, Any, Any]

KEEPALIVE: Final = 15.0
# RFC 6455 section 7.4: 1000 is a normal end, 1008 a broken policy, 4000 and above are ours.
_CLOSE: Final = {
    "not_found": 4404,
    "unauthenticated": 4401,
    "forbidden": 4403,
    "missing_scope": 4403,
    "rate_limit_exceeded": 4429,
}


@get("/logs/{agent_id:str}", opt=needs("read:executions"))
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
async def stream_events(
    front: Front, request: HttpRequest, caller: Caller, execution_id: str, access_token: str | None = None
) -> ServerSentEvent | Response[None]:
    """The event log as server-sent events, live. `Last-Event-ID` resumes after an event; the last one is terminal.

    `access_token` takes what `Authorization` does, for an EventSource of a browser, which cannot set headers.
    204 when nothing can follow: that tells an EventSource not to come back. When the key or user is revoked
    meanwhile, the last event is `error`.
    """
    after = _last_event_id(request)
    known = await read(front, caller, execution_id, after)
    if known.ended and not known.events:
        return Response(None, status_code=204)
    admission = Admission(front, request, caller, "read:executions")
    return ServerSentEvent(_as_sse(front, caller, execution_id, after, admission))


@websocket("/execution-logs/{execution_id:str}/stream", opt=needs("read:executions"))
async def stream_logs(socket: Socket, front: Front, caller: Caller, execution_id: str) -> None:
    """The event log over a WebSocket, live: one JSON object per event. `?after=SEQ` resumes."""
    await socket.accept()
    async with _ending(socket):
        after = _sequence("after", socket.query_params.get("after", "0"))
        admission = Admission(front, socket, caller, "read:executions")
        async with _Inbox(socket) as inbox:
            async for event in follow(front, caller, execution_id, after, inbox.gone, admission):
                await _send(socket, _flat(event))
        await socket.close(1000)


@websocket("/agents/{agent_id:str}/stream", opt=needs("run:agents"))
async def stream_agent(socket: Socket, front: Front, agent_id: str) -> None:
    """Send what to run as JSON; receive the events of its execution, and `{type: complete, result, cost}` at the end.

    Several may be sent, one after the other; each is authenticated and counted like a request of its
    own. Closing the socket does not stop an execution: `{execution_id, after: SEQ}` goes on reading it after the
    last event that was received.
    """
    await socket.accept()
    async with _ending(socket), _Inbox(socket) as inbox:
        while True:
            told = await inbox.next()
            caller = await readmit(front, socket, "run:agents")
            execution_id, after = await _wanted(front, caller, agent_id, told)
            admission = Admission(front, socket, caller, "run:agents")
            async for event in follow(front, caller, execution_id, after, inbox.gone, admission):
                await _send(socket, _flat(event))
            await _send(socket, await _complete(front, caller, execution_id))


class _Named(msgspec.Struct):
    """Enough of a message to tell whether it names an execution."""

    execution_id: Any = UNSET


class _Resume(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To go on reading an execution of this agent, after an event."""

    execution_id: str
    after: Annotated[int, Meta(ge=0, lt=10**9)] = 0


async def _wanted(front: Front, caller: Caller, agent_id: str, message: str | bytes) -> tuple[str, int]:
    """The execution that a message starts, or goes on reading, and after which event. Errors: those of both."""
    read = await read_aside(len(message), functools.partial(_decode_message, message))
    if isinstance(read, _Resume):
        async with front.store.begin(caller) as tx:
            agent, found = await agents.get(tx, agent_id), await executions.get(tx, read.execution_id)
        if found.agent_id != agent.id:
            raise not_found("execution", read.execution_id)
        return found.id, read.after
    async with front.store.begin(caller) as tx:
        return (await executions.start(tx, caller, agent_id, read)).id, 0


def _decode_message(message: str | bytes) -> _Resume | Start:
    source = mend_json_text(message).encode() if isinstance(message, str) else mend_json(message)
    try:
        check_json(source, BODY_LIMITS)
    except JsonTooLarge as error:
        raise invalid("message", error.reason) from None
    resumes = msgspec.json.decode(source, type=_Named).execution_id is not UNSET
    decoded: _Resume | Start = decode_body(source, _Resume if resumes else Start)
    return decoded


class _Inbox:
    """What the other side sends, read in the background so that its going is noticed at once."""

    def __init__(self, socket: Socket) -> None:
        self._socket, self.gone = socket, asyncio.Event()
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(maxsize=16)
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "_Inbox":
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def next(self) -> str | bytes:
        """The next message. Errors: `WebSocketDisconnect`."""
        message = await self._messages.get()
        if message is None:
            raise WebSocketDisconnect(detail="the client has gone")
        return message

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone.set()
                await self._messages.put(None)
                return
            await self._messages.put(message.get("text") or message.get("bytes") or "")  # type: ignore[arg-type]


@asynccontextmanager
async def _ending(socket: Socket) -> AsyncIterator[None]:
    """Tell the other side why a stream ends, unless it has gone."""
    with contextlib.suppress(WebSocketDisconnect):
        try:
            yield
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            await _refuse(socket, invalid("message", f"cannot be read: {error}."))
        except DomainError as error:
            await _refuse(socket, error)


def readers(store: Store) -> Batches[Asked, Slice | DomainError]:
    """Reads on in logs: one statement for all who were rung while the last one was on its way."""

    async def after(asked: list[Asked]) -> list[Slice | DomainError]:
        async with store.begin_single() as tx:
            return await events.after(tx, asked)

    return Batches(after, most=64)


async def read(front: Front, caller: Caller, execution_id: str, after: int) -> Slice:
    """What follows in a log, of the caller's tenant. Errors: `not_found`, `invalid_field`."""
    found = await front.events.add(Asked(tenant_id=caller.tenant_id, execution_id=execution_id, seq=after))
    if isinstance(found, DomainError):
        raise found
    return found


async def follow(
    front: Front, caller: Caller, execution_id: str, after: int, gone: asyncio.Event | None, admission: Admission
) -> AsyncGenerator[Event, None]:
    """Every event after number `after`, as they come, up to the terminal one. No transaction is open in between.

    Errors: `not_found`, `invalid_field`, `WebSocketDisconnect` once `gone` is set, and those of `Admission.check`.
    """
    with front.bell.listen(execution_id) as heard:
        while True:
            heard.clear()
            await admission.check()
            found = await read(front, caller, execution_id, after)
            for event in found.events:
                yield event
                after = event.seq
            if found.ended:
                return
            if after >= found.last:
                await _heard_or_gone(heard, gone, min(front.bell.patience, admission.seconds_left))


async def _heard_or_gone(heard: asyncio.Event, gone: asyncio.Event | None, patience: float) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in (heard, gone) if event is not None]
    await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if gone is not None and gone.is_set():
        raise WebSocketDisconnect(detail="the client has gone")


async def _as_sse(
    front: Front, caller: Caller, execution_id: str, after: int, admission: Admission
) -> AsyncIterator[ServerSentEventMessage]:
    source = follow(front, caller, execution_id, after, None, admission)
    following = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait((following,), timeout=KEEPALIVE)
            if not done:
                yield ServerSentEventMessage(comment="still here")
                continue
            try:
                event = following.result()
            except DomainError as error:
                yield ServerSentEventMessage(data=_text(_told(error)), event="error")
                return
            if event is None:
                return
            yield ServerSentEventMessage(data=_text(_flat(event)), event=event.type, id=event.seq)
            following = asyncio.ensure_future(anext(source, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await source.aclose()


def _text(what: dict[str, Any]) -> str:
    return msgspec.json.encode(what).decode()


async def _send(socket: Socket, what: dict[str, Any]) -> None:
    await socket.send_data(_text(what), mode="text")


def _flat(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "type": event.type, "at": event.at, **event.data}


async def _complete(front: Front, caller: Caller, execution_id: str) -> dict[str, Any]:
    ended = await find_execution(front, caller, execution_id)
    return {
        "type": "complete",
        "execution_id": ended.id,
        "status": ended.status,
        "result": ended.output_data,
        "cost": ended.total_cost,
        "error_type": ended.error_type,
        "error_message": ended.error_message,
    }


def _told(error: DomainError) -> dict[str, Any]:
    return {"type": "error", "error": error.code, "detail": error.detail, "errors": error.errors}


async def _refuse(socket: Socket, error: DomainError) -> None:
    await _send(socket, _told(error))
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
