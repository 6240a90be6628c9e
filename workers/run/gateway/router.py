"""Route the requests of one run to the wires, within the run's limits."""

import asyncio
import contextlib
from typing import Any, Final

import structlog
from aiohttp import web

from domain.egress import EgressEntry
from domain.shared.json_limits import SMALL_JSON_BYTES
from infra.wires import embeddings_wire
from infra.wires.anthropic_wire import MessagesWire, render_error
from infra.wires.common import AnswerWire, WireRefusal, check_images
from infra.wires.openai_wire import ChatWire
from infra.wires.responses_wire import ResponsesWire
from workers.run.gateway import responder
from workers.run.gateway.refusals import refuse_unknown_model
from workers.run.gateway.responder import (
    INTERNAL_ERROR,
    PrepareResponse,
    StreamSender,
    build_json_response,
    send_whole,
)
from workers.run.gateway.schema import GatewayCalls, GatewayLimits

_log = structlog.get_logger("paddock.gateway")
_EMBEDDINGS_PATH: Final = "/v1/embeddings"
_MODELS_PATH: Final = "/v1/models"
# Paths whose errors have Anthropic's shape.
_ANTHROPIC_PATHS: Final = ("/v1/messages",)
# What to do instead, by the beginnings of paths that clients may ask for.
_PATH_HINTS: Final = {
    "/v1/responses/": "Responses are not stored; `previous_response_id` continues one of this run.",
    "/v1/completions": "Send a message to /v1/chat/completions.",
    "/v1/messages/count_tokens": "Tokens are not counted ahead; `usage` of an answer has them.",
    "/v1/messages/batches": "Send the messages one by one.",
    "/v1/complete": "Send a message to /v1/messages.",
    "/v1/batches": "Send the requests one by one.",
}


class RequestRouter:
    """Answer the requests of one run."""

    def __init__(
        self, calls: GatewayCalls, models: tuple[str, ...], limits: GatewayLimits, egress: tuple[EgressEntry, ...] = ()
    ) -> None:
        self._calls, self._models, self._limits, self._egress = calls, models, limits, egress
        self._wires: dict[str, AnswerWire] = {
            "/v1/chat/completions": ChatWire(),
            "/v1/responses": ResponsesWire(calls),
            "/v1/messages": MessagesWire(calls),
        }
        self._request_slots = asyncio.Semaphore(limits.max_concurrent_requests)
        self._embedding_slots = asyncio.Semaphore(limits.max_concurrent_embeddings)
        self._read_slots = asyncio.Semaphore(limits.max_concurrent_reads)
        self._bytes_in_progress = 0

    async def answer_request(self, request: web.BaseRequest, prepare: PrepareResponse) -> web.StreamResponse:
        """Answer a request, in the worst case with an error. Errors: `ConnectionError` if the client is gone."""
        try:
            response = await self._route_request(request, prepare)
        except ConnectionError:
            raise
        except Exception as error:
            refusal = self._refuse_request(error)
            is_anthropic = request.path.startswith(_ANTHROPIC_PATHS)
            body = render_error(refusal) if is_anthropic else refusal.body
            response = build_json_response(body, refusal.status, refusal.headers)
            if refusal.status == 413:
                response.force_close()  # the rest of the body is not read
        prepare(response)
        return response

    def _refuse_request(self, error: Exception) -> WireRefusal:
        """Return the refusal for what went wrong before an answer began."""
        match error:
            case WireRefusal():
                return error
            case web.HTTPRequestEntityTooLarge():
                return WireRefusal(413, f"The body is larger than {self._limits.max_body_bytes} bytes.", "too_large")
            case web.RequestPayloadError():
                return WireRefusal(400, "The body breaks off.")
        _log.error("a request could not be answered", exc_info=error)
        return INTERNAL_ERROR

    async def _route_request(self, request: web.BaseRequest, prepare: PrepareResponse) -> web.StreamResponse:
        method, path = request.method, request.path
        if (wire := self._wires.get(path)) is not None:
            _require_method("POST", method, path)
            async with self._request_slots:
                try:
                    return await self._answer(request, wire, prepare)
                except WireRefusal as refusal:
                    raise refusal.name_field(wire.option_fields) from refusal.__cause__
        if path == _EMBEDDINGS_PATH:
            _require_method("POST", method, path)
            async with self._request_slots, self._embedding_slots:
                return await self._embed(request, prepare)
        if path == _MODELS_PATH:
            _require_method("GET", method, path)
            return build_json_response(_render_models(self._models))
        if path.startswith(f"{_MODELS_PATH}/"):
            _require_method("GET", method, path)
            return build_json_response(_render_model(self._check_model(path.removeprefix(f"{_MODELS_PATH}/"))))
        raise self._refuse_path(method, path)

    def _refuse_path(self, method: str, path: str) -> WireRefusal:
        hint = next((hint for prefix, hint in _PATH_HINTS.items() if path.startswith(prefix)), None)
        served = f"Served are {', '.join((*self._wires, _EMBEDDINGS_PATH))} and {_MODELS_PATH}."
        return WireRefusal(404, f"There is no {method} {path[:200]} here. {hint or served}", "unknown_url")

    def _check_model(self, name: str) -> str:
        if name not in self._models:
            raise refuse_unknown_model(name)
        return name

    async def _answer(self, request: web.BaseRequest, wire: AnswerWire, prepare: PrepareResponse) -> web.StreamResponse:
        body = await self._read_body(request)
        size = len(body)
        with self._count_bytes(size):
            # A large body is parsed in a thread: all other runs share this event loop.
            is_small = size <= SMALL_JSON_BYTES
            asked, renderer = (
                wire.parse_request(body) if is_small else await asyncio.to_thread(wire.parse_request, body)
            )
            del body
            self._check_model(asked.model)
            check_images(asked.messages, self._egress)
            parts = self._calls.stream_answer(asked.model, asked.messages, asked.tools, asked.options)
            async with contextlib.aclosing(parts):
                if asked.stream:
                    sender = StreamSender(request, prepare, self._limits.write_timeout)
                    return await sender.send_stream(asked.model, renderer, parts)
                return await send_whole(asked.model, renderer, parts)

    async def _embed(self, request: web.BaseRequest, prepare: PrepareResponse) -> web.StreamResponse:
        body = await self._read_body(request)
        size = len(body)
        with self._count_bytes(size):
            parse = embeddings_wire.parse_request
            asked = parse(body) if size <= SMALL_JSON_BYTES else await asyncio.to_thread(parse, body)
            del body
            self._check_model(asked.model)
            try:
                reply = await self._calls.embed_texts(asked.model, asked.texts, asked.dimensions)
            except Exception as error:
                raise responder.refuse_call(error, asked.model) from error
            sender = StreamSender(request, prepare, self._limits.write_timeout)
            return await sender.send_pieces(embeddings_wire.render_pieces(asked, reply))

    @contextlib.contextmanager
    def _count_bytes(self, size: int) -> Any:
        """Count the bytes of a request while it is being answered. Errors: `WireRefusal` if all are too many."""
        limit = self._limits.max_concurrent_bytes
        if self._bytes_in_progress + size > limit:
            message = f"All requests at work together are larger than {limit} bytes."
            raise WireRefusal(429, message, "too_large_together")
        self._bytes_in_progress += size
        try:
            yield
        finally:
            self._bytes_in_progress -= size

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise WireRefusal(415, "The body must not be compressed.")
        if (request.content_length or 0) > self._limits.max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(self._limits.max_body_bytes, request.content_length or 0)
        try:
            async with self._read_slots, asyncio.timeout(self._limits.body_timeout):
                return await request.read()
        except TimeoutError:
            raise WireRefusal(408, "The body took too long to come.") from None


def _require_method(required: str, method: str, path: str) -> None:
    if method != required:
        raise WireRefusal(405, f"{path} takes {required} only.", "method_not_allowed")


def _render_models(names: tuple[str, ...]) -> dict[str, Any]:
    """Return a list of models: at once OpenAI's, and a page of Anthropic's."""
    page = {"has_more": False, "first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return {"object": "list", "data": [_render_model(name) for name in names], **page}


def _render_model(name: str) -> dict[str, Any]:
    """Return a model as an entry of that list."""
    anthropic = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z", "lifecycle": "active"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "paddock", **anthropic}
