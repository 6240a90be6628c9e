"""OpenAI's stream of chunks, read as it comes off the connection.

pydantic-ai makes the request and knows the providers' habits. Its events, over the objects of OpenAI's library, cost
some 240 µs of CPU a token: two hundred streams of fifty tokens a second would want two cores and a half.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final
from uuid import uuid4

import httpx2
import msgspec
from openai import AsyncStream
from openai.types.chat import ChatCompletionChunk
from pydantic_ai.models.openai import OpenAIChatModel

from domain.chat import Ask, CallPart, Finish, Message, Part, Reply, Text, Thought, ToolCall, Usage
from infra.llm import failures

# A server that a tenant chose may send for ever. Bytes of one line, and characters of one answer.
LONGEST: Final = 8 << 20
# Seconds that a server has to end its answer after it said that it has.
LINGER: Final = 0.5
_FINISHES: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Chat(OpenAIChatModel):
    """pydantic-ai's model, but for one step: its stream is the response itself, not yet read."""

    async def _process_streamed_response(  # type: ignore[override]
        self, response: AsyncStream[ChatCompletionChunk], *args: Any, **kwargs: Any
    ) -> httpx2.Response:
        return response.response


class Growing:
    """An answer that grows piece by piece; each piece is handed back as the part to show."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._text: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._size = 0
        self.thinking = False

    def text(self, piece: str) -> Text | Thought:
        """Text, or a thought between the tags that some models put around them."""
        if piece in ("<think>", "</think>"):
            self.thinking = piece == "<think>"
            return Thought("")
        if self.thinking:
            return self.thought(piece)
        self._grow(piece)
        self._text.append(piece)
        return Text(piece)

    def thought(self, piece: str) -> Thought:
        """A thought: shown, and not kept."""
        self._grow(piece)
        return Thought(piece)

    def begin(self, id_: str | None, name: str, arguments: str) -> CallPart:
        """A tool call's first piece. Servers that name no id get one from us: results are matched by it."""
        self._grow(arguments)
        id_ = id_ or f"call_{uuid4().hex}"
        self._calls.append((id_, name, [arguments]))
        return CallPart(index=len(self._calls) - 1, id=id_, name=name, arguments=arguments)

    def go_on(self, index: int, arguments: str) -> CallPart:
        """A further piece of call number `index`."""
        self._grow(arguments)
        self._calls[index][2].append(arguments)
        return CallPart(index=index, arguments=arguments)

    def rest(self) -> Sequence[CallPart]:
        """What calls without any arguments lack to be JSON."""
        return [self.go_on(at, "{}") for at, (_, _, pieces) in enumerate(self._calls) if not any(pieces)]

    def reply(self, finish: Finish, usage: Usage | None) -> Reply:
        """The whole answer."""
        calls = tuple(ToolCall(id=id_, name=name, arguments="".join(pieces)) for id_, name, pieces in self._calls)
        if finish in ("stop", "tool_calls"):  # not every server tells them apart
            finish = "tool_calls" if calls else "stop"
        message = Message(role="assistant", content="".join(self._text), tool_calls=calls)
        return Reply(message=message, finish=finish, usage=usage)

    def _grow(self, piece: str) -> None:
        self._size += len(piece)
        if self._size > LONGEST:
            raise failures.malformed(self._ask.target, "it is too long.")


async def read(response: httpx2.Response, ask: Ask) -> AsyncGenerator[Part, None]:
    """The parts of an answer. Errors: `ModelError`, `TimeoutError`, and those of httpx2."""
    answer, calls = Growing(ask), dict[int, tuple[int, str | None]]()
    finish: str | None = None
    usage: _Usage | None = None
    seen = refused = False
    async with aclosing(_events(response, ask)) as batches:
        async for batch in batches:
            for data in batch:
                try:
                    chunk = _decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise failures.malformed(ask.target, str(error)) from None
                seen = True
                if chunk.error:
                    raise failures.in_stream(ask.target, chunk.error)
                if chunk.usage is not None:
                    usage = chunk.usage  # where each chunk tells, each tells the sum so far
                if not chunk.choices:
                    continue
                finish = chunk.choices[0].finish_reason or finish
                if (delta := chunk.choices[0].delta) is None:
                    continue
                if delta.content:
                    text = delta.content if isinstance(delta.content, str) else _joined(delta.content)
                    if (piece := answer.text(text)).text:
                        yield piece
                if (thought := delta.reasoning_content or delta.reasoning) and isinstance(thought, str):
                    yield answer.thought(thought)
                if delta.refusal:
                    refused = True
                    yield answer.text(delta.refusal)
                for call in delta.tool_calls or ():
                    if (part := _call(answer, calls, call)) is not None:
                        yield part
    if not seen:
        raise failures.malformed(ask.target, "there is nothing in it.")
    if finish is None:
        raise failures.unfinished(ask.target)
    if finish == "error":
        raise failures.in_stream(ask.target, "it broke off")
    for rest in answer.rest():
        yield rest
    yield answer.reply("content_filter" if refused else _FINISHES.get(finish, "stop"), _used(usage))


async def _events(response: httpx2.Response, ask: Ask) -> AsyncGenerator[list[bytes], None]:
    """The data of events, all that one read brought at a time. None is waited for longer than the call's timeout.

    Servers put each chunk on one line, so lines are all that is needed of the event stream's format. Comments, with
    which servers say that they are alive, count for nothing. After the last event the body is read to its end, as the
    connection can be used again then.
    """
    rest, ended = b"", False
    clock = asyncio.get_running_loop().time
    due = clock() + ask.timeout
    async with aclosing(response.aiter_bytes()) as pieces:
        while True:
            try:
                async with asyncio.timeout_at(due):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except TimeoutError:
                if ended:
                    break
                raise
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            if len(rest) > LONGEST:
                raise failures.malformed(ask.target, "a line of it is too long.")
            batch = [] if ended else [line[5:].strip() for line in lines if line.startswith(b"data:")]
            if batch and b"[DONE]" in batch:
                batch = batch[: batch.index(b"[DONE]")]
                ended, due = True, clock() + LINGER
            if batch:
                yield batch
                due = due if ended else clock() + ask.timeout
    if rest.startswith(b"data:") and not ended and (last := rest[5:].strip()) != b"[DONE]":
        yield [last]


def _call(answer: Growing, calls: dict[int, tuple[int, str | None]], call: _Call) -> CallPart | None:
    """A piece of a tool call. `calls` are the numbers and ids of those begun, by the server's numbers for them.

    A call that nobody numbered is a new one if it has an id, and else goes on with the last.
    """
    name = (call.function and call.function.name) or None
    given = call.function.arguments if call.function else None
    arguments = json.dumps(given) if isinstance(given, dict) else given or ""
    last = max(calls, default=-1)
    at = call.index if call.index is not None else (last + 1 if call.id or not calls else last)
    begun = calls.get(at)
    if begun is not None and name and call.id and begun[1] not in (None, call.id):
        at, begun = last + 1, None  # some servers give every call the number 0
    if begun is None:
        if name is None:
            return None
        part = answer.begin(call.id, name, arguments)
        calls[at] = (part.index, call.id)
        return part
    return answer.go_on(begun[0], arguments) if arguments else None


def _joined(content: list[Any]) -> str:
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _used(usage: _Usage | None) -> Usage | None:
    if usage is None or (usage.prompt_tokens is None and usage.completion_tokens is None):
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(prompt and prompt.cached_tokens) or usage.prompt_cache_hit_tokens or 0,
        reasoning_tokens=(completion and completion.reasoning_tokens) or 0,
    )
