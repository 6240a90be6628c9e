"""Make one call of a model: pydantic-ai makes the request, a reader of the wire yields the answer in parts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

import httpx2
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import StreamedResponse

from domain.llms import ModelCall, ModelError, ReplyPart
from infra.http import SendNotifyingTransport, on_request_sent
from infra.llm import model_errors, options, providers, request_builder
from infra.llm.answer_reader import AnswerReader, read_answer
from infra.llm.anthropic_reader import AnthropicReader
from infra.llm.bedrock_reader import BedrockReader
from infra.llm.chat_reader import ChatReader
from infra.llm.embeddings import embed_texts
from infra.llm.gemini_reader import GeminiReader
from infra.llm.providers import Wire
from infra.llm.responses_reader import ResponsesReader

__all__ = ["create_local_client", "embed_texts", "stream_parts"]

_WIRE_READERS: Final[dict[Wire, type[AnswerReader]]] = {
    "anthropic": AnthropicReader,
    "responses": ResponsesReader,
    "chat": ChatReader,
    "gemini": GeminiReader,
    "bedrock": BedrockReader,
}


class ChatOnlyServer(Exception):
    """Report that a server does not know OpenAI's Responses."""


async def stream_parts(
    ask: ModelCall, base_url: str | None, http: httpx2.AsyncClient
) -> AsyncGenerator[ReplyPart, None]:
    """Yield the answer of a provider, at its usual address if `base_url` is None.

    Errors: every failure is a `ModelError`.
    """
    try:
        wire = providers.choose_wire(ask)
        async with aclosing(_stream_wire_parts(ask, base_url, http, wire)) as answer:
            async for part in answer:
                yield part
    except ChatOnlyServer:
        providers.record_chat_only(ask.target)
        async with aclosing(_stream_wire_parts(ask, base_url, http, "chat")) as answer:
            async for part in answer:
                yield part


async def _stream_wire_parts(
    ask: ModelCall, base_url: str | None, http: httpx2.AsyncClient, wire: Wire
) -> AsyncGenerator[ReplyPart, None]:
    answered = began = False
    try:
        model = providers.build_model(ask.target, wire, base_url, http)
        writer = providers.get_writer(ask.target, wire)
        settings, parameters = providers.build_settings(ask, wire), request_builder.build_parameters(ask, model)
        options.check_images(ask)
        options.check_options(ask, model, settings, parameters)
        messages = request_builder.build_history(ask.messages, ask.target, writer, model)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(ask.timeout):
                request = model.request_stream(messages, settings, parameters)
                token = on_request_sent.set(ask.on_sent)
                try:
                    response: Any = await stack.enter_async_context(request)
                finally:
                    on_request_sent.reset(token)
            answered = True
            if isinstance(response, StreamedResponse):
                raise model_errors.build_filter_error(ask.target)  # in place of Azure's error
            reader = _WIRE_READERS[wire](ask, writer)
            async with aclosing(read_answer(response, ask, reader)) as answer:
                async for part in answer:
                    began = True
                    yield part
    except ModelError:
        raise
    except TimeoutError:
        raise model_errors.build_timeout_error(ask, began) from None
    except ModelHTTPError as error:
        if providers.is_chat_only_response(ask.target, wire, error.status_code, error.body):
            raise ChatOnlyServer from None
        raise model_errors.convert_exception(error, ask, base_url, answered) from None
    except Exception as error:
        raise model_errors.convert_exception(error, ask, base_url, answered) from None


def create_local_client() -> httpx2.AsyncClient:
    """Create a client for our own servers on this host, which bypasses the guard for outbound requests."""
    transport = SendNotifyingTransport(trust_env=False, limits=httpx2.Limits(max_connections=None))
    return httpx2.AsyncClient(trust_env=False, transport=transport)
