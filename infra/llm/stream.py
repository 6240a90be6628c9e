"""One call: the request made by pydantic-ai's model, its answer as parts, every failure a `ModelError`."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

import httpx2
from pydantic_ai.messages import (
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model, StreamedResponse

from domain.chat import Ask, Finish, ModelError, Part, Usage
from infra.llm import chunks, failures, providers, words

_FINISHES: Final[dict[str, Finish]] = {"length": "length", "content_filter": "content_filter"}


def plain_client() -> httpx2.AsyncClient:
    """For servers of our own on this host."""
    return httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=None))


async def parts(ask: Ask, base_url: str | None, http: httpx2.AsyncClient) -> AsyncGenerator[Part, None]:
    """The answer to `ask` from a provider, at its usual place if `base_url` is None. Errors: `ModelError`."""
    answered = began = False
    try:
        model = _model(ask, base_url, http)
        settings, parameters = providers.settings(ask), words.parameters(ask, model)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(ask.timeout):
                request = model.request_stream(words.history(ask.messages), settings, parameters)
                answer: Any = await stack.enter_async_context(request)
            answered = True
            reading = chunks.read(answer, ask) if isinstance(model, chunks.Chat) else _events(answer, ask)
            async with aclosing(reading):
                async for part in reading:
                    began = True
                    yield part
    except ModelError:
        raise
    except TimeoutError:
        raise failures.late(ask, began) from None
    except Exception as error:
        raise failures.failure(error, ask, base_url, answered) from None


def _model(ask: Ask, base_url: str | None, http: httpx2.AsyncClient) -> Model[Any]:
    if ask.target.provider == "anthropic":
        return providers.anthropic_model(ask.target, base_url, http)
    return providers.openai_model(chunks.Chat, ask.target, base_url, http)


async def _events(stream: StreamedResponse, ask: Ask) -> AsyncGenerator[Part, None]:
    """The parts of what pydantic-ai tells of an answer."""
    answer = chunks.Growing(ask)
    calls: dict[int, int] = {}  # from the part's number to the call's
    events = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(ask.timeout):
                event = await anext(events)
        except StopAsyncIteration:
            break
        match event:
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) | PartStartEvent(part=TextPart(content=text)):
                if text:
                    yield answer.text(text)
            case (
                PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text))
                | PartStartEvent(part=ThinkingPart(content=text))
            ):
                if text:
                    yield answer.thought(text)
            case PartStartEvent(index=at, part=ToolCallPart() as call):
                part = answer.begin(call.tool_call_id, call.tool_name, _arguments(call.args))
                calls[at] = part.index
                yield part
            case PartDeltaEvent(index=at, delta=ToolCallPartDelta(args_delta=more)) if more and at in calls:
                yield answer.go_on(calls[at], _arguments(more))
    raw = (stream.provider_details or {}).get("finish_reason")
    if raw is None:
        raise failures.unfinished(ask.target)
    for rest in answer.rest():
        yield rest
    yield answer.reply(_FINISHES.get(str(stream.finish_reason), "stop"), _used(stream))


def _arguments(given: str | dict[str, Any] | None) -> str:
    return given or "" if isinstance(given, str | None) else json.dumps(given) if given else ""


def _used(stream: StreamedResponse) -> Usage | None:
    usage = stream.usage
    if not usage.input_tokens and not usage.output_tokens:
        return None
    return Usage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        cached_tokens=usage.cache_read_tokens,
        reasoning_tokens=usage.details.get("thinking_tokens", usage.details.get("reasoning_tokens", 0)),
    )
