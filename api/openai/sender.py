"""Start runs for requests of OpenAI's clients, and send their answers: whole, or as a stream of events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

import msgspec
import structlog
from litestar import Response
from litestar.exceptions import WebSocketDisconnect
from litestar.response import Stream

from api.auth import Authenticator, StreamAccess
from api.event_feed import EventFeed
from api.idempotency import ResourceCreator, read_idempotency_key
from api.openai.attachments import store_attachments
from api.openai.disconnects import watch_disconnect
from api.openai.reader import AnswerChanged, RunAnswerReader
from api.openai.starts import AnswerTask, start_answer
from api.openai_errors import refuse_domain_error, refuse_ended_run
from api.requests import HttpRequest
from domain import executions, traces
from domain.events import EventQuery
from domain.executions import Execution
from domain.llms import ModelReply, ModelUsage, ReplyPart
from domain.ports import Blobs, Store, Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from infra.wires.common import AnswerRenderer, WireRefusal

_log = structlog.get_logger("paddock.openai")
# Until then an error has a status of HTTP, which clients know how to treat.
FIRST_PART_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 15.0
_KEEPALIVE_COMMENT: Final = b": still running\n\n"
# What nginx logs where a client has closed its connection before the answer.
CLIENT_CLOSED_STATUS: Final = 499
_EVENT_STREAM: Final = "text/event-stream"
_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_CHANGED_ANSWER: Final = WireRefusal(
    502,
    "The run discarded a part of the answer that was sent, and began it again. Send the request again.",
    "answer_changed",
    kind="run_failed",
    should_retry=False,
)
_INTERNAL_ERROR: Final = WireRefusal(500, "An unexpected error occurred. The log has its details.", "internal_error")
_START_SCOPE: Final = "run:agents"
_READ_SCOPE: Final = "read:executions"
# Makes what renders an answer, once its execution is there.
CreateRenderer = Callable[[Execution], AnswerRenderer]


class RunningAnswer(msgspec.Struct, frozen=True):
    """Hold a run whose answer is to be sent. `is_own` tells that it ends with its request.

    `scope` is what its caller needs until the end.
    """

    execution: Execution
    caller: Caller
    renderer: AnswerRenderer
    reader: RunAnswerReader
    is_own: bool
    scope: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers that name the run."""
        return name_run(self.execution)


class AnswerSender:
    """Send the answers of runs."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        creator: ResourceCreator,
        event_feed: EventFeed,
        authenticator: Authenticator,
        storage_quota: int,
    ) -> None:
        self._store, self._creator, self._event_feed = store, creator, event_feed
        self._authenticator, self._blobs, self._storage_quota = authenticator, blobs, storage_quota
        self._cancelling: set[asyncio.Task[None]] = set()

    async def start_run(self, request: HttpRequest, caller: Caller, task: AnswerTask) -> Execution:
        """Start what a request asks for, once per Idempotency-Key. Errors: `WireRefusal`, and those of starting it."""

        stored = await store_attachments(self._blobs, caller, task.attachments, self._storage_quota)
        task = msgspec.structs.replace(task, stored=stored)

        async def start(tx: Tx) -> Execution:
            return await start_answer(tx, caller, task)

        answer = await self._creator.create_idempotently(request, caller, start)
        content = answer.content
        return content if isinstance(content, Execution) else await self._load_execution(caller, content["id"])

    async def answer_request(
        self, request: HttpRequest, caller: Caller, task: AnswerTask, create_renderer: CreateRenderer
    ) -> Response[Any] | Stream:
        """Start a run and send its answer. A run whose client hangs up is cancelled, unless it can be asked for again.

        Errors: `WireRefusal`, and those of starting it.
        """
        execution = await self.start_run(request, caller, task)
        is_streamed = task.request.stream
        reader = await self._create_reader(execution, is_streamed)
        is_own = read_idempotency_key(request) is None and not task.settings.is_background
        answer = RunningAnswer(execution, caller, create_renderer(execution), reader, is_own, _START_SCOPE)
        try:
            return await (self._send_stream if is_streamed else self._send_whole)(request, answer)
        except WebSocketDisconnect:
            self._cancel_run(answer)
            return Response(None, status_code=CLIENT_CLOSED_STATUS)
        except asyncio.CancelledError:
            self._cancel_run(answer)
            raise

    async def _send_whole(self, request: HttpRequest, answer: RunningAnswer) -> Response[Any]:
        async with (
            watch_disconnect(request) as gone,
            contextlib.aclosing(self._read_parts(request, answer, gone)) as parts,
        ):
            reply = await _collect_parts(answer.renderer, parts)
        execution = await self._load_execution(answer.caller, answer.execution.id)
        headers = {**answer.headers, "x-paddock-cost": f"{execution.total_cost:.8f}"}
        return Response(answer.renderer.render_whole(reply), headers=headers, status_code=200)

    async def _send_stream(self, request: HttpRequest, answer: RunningAnswer) -> Stream:
        parts = self._read_parts(request, answer, None)
        next_part: asyncio.Future[ReplyPart] = asyncio.ensure_future(anext(parts))
        try:
            async with watch_disconnect(request) as gone:
                await _wait_for_first(next_part, gone)
            if next_part.done():
                # A run that fails before its first part is answered with the status of its error.
                next_part.result()
        except BaseException:
            await _stop_reading(next_part, parts)
            raise
        chunks = self._render_stream(answer, parts, next_part)
        # From its first chunk on, the stream is closed even if its response is never sent.
        headers = {**_STREAM_HEADERS, **answer.headers}
        return Stream(
            _yield_from_first(await anext(chunks), chunks), headers=headers, media_type=_EVENT_STREAM, status_code=200
        )

    async def _render_stream(
        self, answer: RunningAnswer, parts: AsyncGenerator[ReplyPart, None], next_part: "asyncio.Future[ReplyPart]"
    ) -> AsyncIterator[bytes]:
        renderer, has_ended = answer.renderer, False
        try:
            yield renderer.render_first()
            while not has_ended:
                done, _ = await asyncio.wait((next_part,), timeout=KEEPALIVE_SECONDS)
                if not done:
                    yield _KEEPALIVE_COMMENT
                    continue
                try:
                    part = next_part.result()
                except Exception as error:
                    # A run that goes on without its reader, for example after an answer that changed, is stopped too.
                    yield renderer.render_failure(_refuse_failure(error))
                    return
                if isinstance(part, ModelReply):
                    has_ended = True
                    yield renderer.render_last(part)
                    return
                next_part = asyncio.ensure_future(anext(parts))
                if chunk := renderer.render_part(part):
                    yield chunk
        finally:
            if not has_ended:
                self._cancel_run(answer)
            with contextlib.suppress(asyncio.CancelledError):
                await _stop_reading(next_part, parts)

    async def _read_parts(
        self, request: HttpRequest, answer: RunningAnswer, gone: asyncio.Event | None
    ) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer as the run makes them, its `ModelReply` last.

        Errors: `WireRefusal` of a run that is not completed, `AnswerChanged`, and those of `EventFeed`.
        """
        execution = answer.execution
        position = EventQuery(tenant_id=execution.tenant_id, execution_id=execution.id, seq=0)
        access = StreamAccess(self._authenticator, request, answer.caller, answer.scope)
        async with contextlib.aclosing(self._event_feed.follow_events(position, access, gone)) as events:
            async for event in events:
                for part in answer.reader.read_event(event):
                    yield part
        ended = await self._load_execution(answer.caller, execution.id)
        if ended.status != "completed":
            raise refuse_ended_run(ended)
        usage = await self._sum_usage(ended) if ended.lane == "plan" else None
        for part in answer.reader.end_answer(ended, usage):
            yield part

    async def render_run(
        self, request: HttpRequest, caller: Caller, execution: Execution, create_renderer: CreateRenderer
    ) -> dict[str, Any]:
        """Return the whole answer of a completed run again."""
        reader = await self._create_reader(execution, is_streamed=False)
        answer = RunningAnswer(execution, caller, create_renderer(execution), reader, False, _READ_SCOPE)
        async with contextlib.aclosing(self._read_parts(request, answer, None)) as parts:
            reply = await _collect_parts(answer.renderer, parts)
        return answer.renderer.render_whole(reply)

    async def stream_run(
        self, request: HttpRequest, caller: Caller, execution: Execution, create_renderer: CreateRenderer
    ) -> Response[Any] | Stream:
        """Send the answer of a run as a stream from its beginning, which goes on without its reader."""
        reader = await self._create_reader(execution, is_streamed=True)
        return await self._send_stream(
            request, RunningAnswer(execution, caller, create_renderer(execution), reader, False, _READ_SCOPE)
        )

    async def _create_reader(self, execution: Execution, is_streamed: bool) -> RunAnswerReader:
        """Return what reads the answer of a run. That of a model agent with a schema is JSON."""
        if execution.lane != "llm":
            return RunAnswerReader(is_streamed=is_streamed)
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            spec = await tx.executions.get_spec(execution.id)
        return RunAnswerReader(spec is not None and spec.expected_schema is not None, is_streamed)

    async def _sum_usage(self, execution: Execution) -> ModelUsage:
        """Return the tokens of a crew or a workflow, whose steps are runs of their own."""
        async with self._store.tenant_transaction(execution.tenant_id) as tx:
            return await tx.costs.sum_usage(execution.id)

    async def _load_execution(self, caller: Caller, execution_id: str) -> Execution:
        async with self._store.transaction(caller) as tx:
            return await executions.get_execution(tx, execution_id)

    def _cancel_run(self, answer: RunningAnswer) -> None:
        """Cancel a run in the background: the task of its request is being cancelled itself."""
        if not answer.is_own:
            return
        task = asyncio.create_task(self._cancel_execution(answer))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel_execution(self, answer: RunningAnswer) -> None:
        with contextlib.suppress(DomainError):
            async with self._store.transaction(answer.caller) as tx:
                await executions.cancel_execution(tx, answer.execution.id, "The client hung up.")


def name_run(execution: Execution) -> dict[str, str]:
    """Return the headers that name a run, its thread and its trace."""
    thread = {} if execution.thread_id is None else {"x-paddock-thread-id": execution.thread_id}
    trace_id = traces.format_trace_id(execution.root_id or execution.id)
    return {"x-paddock-execution-id": execution.id, "x-paddock-trace-id": trace_id, **thread}


async def _yield_from_first(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _collect_parts(renderer: AnswerRenderer, parts: AsyncGenerator[ReplyPart, None]) -> ModelReply:
    """Give the parts of an answer to what renders it, and return its last one."""
    async for part in parts:
        if isinstance(part, ModelReply):
            return part
        renderer.add_part(part)
    raise AssertionError("an answer ends with its reply")


async def _wait_for_first(part: "asyncio.Future[ReplyPart]", gone: asyncio.Event) -> None:
    """Wait a while for the first part. Errors: `WebSocketDisconnect` once the client is gone."""
    leaving = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((part, leaving), timeout=FIRST_PART_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if gone.is_set():
        raise WebSocketDisconnect(detail="the client disconnected")


async def _stop_reading(part: "asyncio.Future[ReplyPart]", parts: AsyncGenerator[ReplyPart, None]) -> None:
    part.cancel()
    await asyncio.gather(part, return_exceptions=True)
    await parts.aclose()


def _refuse_failure(error: Exception) -> WireRefusal:
    match error:
        case WireRefusal():
            return error
        case AnswerChanged():
            return _CHANGED_ANSWER
        case DomainError():
            return refuse_domain_error(error, 500)
    _log.error("an answer failed", exc_info=error)
    return _INTERNAL_ERROR
