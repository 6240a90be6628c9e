"""A scripted model provider on 127.0.0.1: it speaks OpenAI's two wires and Anthropic's, and answers what a test told it to.

    async with wire() as provider:               # provider.url is http://127.0.0.1:PORT/v1
        provider.say("Hello there")              # the next answer, whoever asks
        provider.say("Hi", to="gpt-x")           # the next answer of that model alone; `script:NAME` is such a name too
        provider.call_tool("add", {"a": 1})      # a tool call; say(text, calls=[call(…), call(…)]) for several with text
        provider.fail(429, retry_after=3)        # cut(3), malformed(), hang(), slow(tokens, delay), unfinished(), nothing()
        provider.rule(lambda asked: Answer(…))   # thinks for itself: what it returns is answered, None goes on below
        …
        provider.requests[-1].body["messages"]   # all that was asked, by whom, with which headers
        await provider.until_gone()              # the client hung up before the end

Who answers: what is queued for exactly that model; else what the model's name says (below); else what is queued for
anybody; else an echo of the last user message. Names that need no script, so that a process of its own can serve them:
`echo` · `tokens-500` · `tokens-500-delay-20` (ms between two; `stamped-` before it: each tells when it was sent) · `status-429` · `cut-5` · `malformed` · `hang` · `nothing` ·
`unfinished` · `call-NAME` (calls that tool with the last user message if it is a JSON object, else {}; then says the result).
A word is a token. An answer is trimmed at `max_tokens`. Alone, for benchmarks: `python -m tests.support.fake_provider PORT` (records nothing).
"""

import asyncio
import itertools
import json
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiohttp import web

from tests.support.fake_responses_api import TOOLS_REFUSED, Responses, messages_of, reasoning_problem, thinking_problem

GARBAGE = '{"id": "chatcmpl-1", "choices": [{"delta": oops'


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call. `arguments` is sent as it stands if it is text, valid or not."""

    name: str
    arguments: dict[str, Any] | str
    id: str

    @property
    def written(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


_numbers = itertools.count(1)


def call(name: str, arguments: dict[str, Any] | str | None = None, id: str | None = None) -> Call:  # noqa: A002
    """A tool call to say. Without an id it gets one that nobody else has."""
    return Call(
        name=name, arguments={} if arguments is None else arguments, id=id or f"call_{name[:20]}_{next(_numbers)}"
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is answered. Numbers of tokens that are None are counted; `tells` False leaves usage out."""

    tokens: Sequence[str] = ()
    thinking: str = ""
    calls: Sequence[Call] = ()
    finish: str | None = None
    delay: float = 0.0  # seconds between two tokens
    wait: float = 0.0  # seconds before anything
    status: int = 200
    message: str = ""
    retry_after: str | None = None
    ending: Literal["whole", "cut", "hang", "malformed", "unfinished"] = "whole"
    after: int = 0  # tokens before such an ending
    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0
    tells: bool = True

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(kw_only=True)
class Asked:
    """One request. `gone` is when the client hung up, `done` when the answer had ended, `at` when it came (monotonic)."""

    path: str
    headers: dict[str, str]  # lower case names
    body: dict[str, Any]
    at: float
    port: int = 0  # the client's
    sent: int = 0  # tokens
    done: float | None = None
    gone: float | None = None

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def key(self) -> str | None:
        """The API key that came with it."""
        bearer = self.headers.get("authorization", "")
        return self.headers.get("x-api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else None)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, whichever wire it came over."""
        return messages_of(self.body) if "input" in self.body else self.body.get("messages", [])

    def said(self, role: str = "user") -> str:
        """The text of the last message of a role."""
        for message in reversed(self.messages):
            if message["role"] == role:
                return text_of(message.get("content"))
        return ""


def port_of(request: web.Request) -> int:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer[1] if peer else 0


def text_of(content: Any) -> str:
    """The text of a message's content, be it text or parts."""
    if isinstance(content, list):
        return "".join(
            text_of(part.get("content")) if part.get("type") == "tool_result" else part.get("text", "")
            for part in content
        )
    return content or ""


def tokens_of(text: str) -> list[str]:
    """Its words, each with the space before it: joined, they are the text."""
    return re.findall(r"\s*\S+|\s+$", text)


Rule = Callable[[Asked], Answer | None]


class Wire:
    """The server. Its scripts and what it saw."""

    def __init__(self, keeps: bool = True) -> None:
        self.url = self.root = ""
        self.requests: list[Asked] = []
        self.keys: set[str] = set()  # those accepted; none: anybody may ask
        self.models: list[str] = ["echo"]
        self.open = 0  # answers under way
        self.is_strict = False  # as today's models are: tools over Responses alone, reasoning given back as it was
        self._keeps = keeps
        self._queues: dict[str | None, deque[Answer]] = defaultdict(deque)
        self._rules: list[Rule] = []
        self._changed = asyncio.Event()
        self._answering: set[asyncio.Task[Any]] = set()

    @property
    def gone(self) -> list[Asked]:
        """Requests whose client hung up before the end of the answer."""
        return [asked for asked in self.requests if asked.gone is not None]

    # What to answer

    def queue(self, answer: Answer, to: str | None = None) -> None:
        """Any answer, for a model alone or for whoever asks next."""
        self._queues[to].append(answer)

    def say(self, text: str, calls: Iterable[Call] = (), to: str | None = None, **more: Any) -> None:
        """Text and tool calls; `more` as in `Answer`: thinking, usage (prompt, completion, cached, reasoning), delay."""
        self.queue(Answer(tokens=tokens_of(text), calls=tuple(calls), **more), to)

    def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | str | None = None,
        id: str | None = None,  # noqa: A002
        text: str = "",
        **more: Any,
    ) -> None:
        self.say(text, calls=[call(name, arguments, id)], **more)

    def fail(
        self, status: int, message: str = "", retry_after: float | str | None = None, to: str | None = None
    ) -> None:
        after = None if retry_after is None else str(retry_after)
        self.queue(Answer(status=status, message=message, retry_after=after), to)

    def cut(self, after_tokens: int = 3, to: str | None = None) -> None:
        """The connection drops after some tokens; 0: before the headers."""
        self.queue(Answer(tokens=numbered(after_tokens), ending="cut", after=after_tokens), to)

    def malformed(self, after_tokens: int = 1, to: str | None = None) -> None:
        self.queue(Answer(tokens=numbered(after_tokens), ending="malformed", after=after_tokens), to)

    def hang(self, after_tokens: int = 0, to: str | None = None) -> None:
        """Headers, some tokens, then nothing for ever."""
        self.queue(Answer(tokens=numbered(after_tokens), ending="hang", after=after_tokens), to)

    def unfinished(self, text: str = "so far", to: str | None = None) -> None:
        """The answer ends in good order but nobody says that it was finished."""
        tokens = tokens_of(text)
        self.queue(Answer(tokens=tokens, ending="unfinished", after=len(tokens)), to)

    def nothing(self, to: str | None = None) -> None:
        """A stream of nothing at all."""
        self.queue(Answer(ending="unfinished"), to)

    def slow(self, tokens: int, delay: float, to: str | None = None) -> None:
        """Numbered tokens with `delay` seconds between."""
        self.queue(Answer(tokens=numbered(tokens), delay=delay), to)

    def rule(self, rule: Rule) -> None:
        """Asked before anything else, the latest rule first."""
        self._rules.insert(0, rule)

    def reset(self) -> None:
        """Forgets scripts, rules, keys and requests."""
        self.requests.clear()
        self._queues.clear()
        self._rules.clear()
        self.keys.clear()
        self.is_strict = False

    # What it saw

    async def until_asked(self, count: int = 1, timeout: float = 60.0) -> Asked:
        """The last request, once there are as many."""
        await self._until(lambda: len(self.requests) >= count, timeout)
        return self.requests[-1]

    async def until_gone(self, count: int = 1, timeout: float = 60.0) -> Asked:
        """The last request whose client hung up early, once there are as many."""
        await self._until(lambda: len(self.gone) >= count, timeout)
        return self.gone[-1]

    async def _until(self, true: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    # Serving

    def answer_to(self, asked: Asked) -> Answer:
        for rule in self._rules:
            if (answer := rule(asked)) is not None:
                break
        else:
            if queue := self._queues.get(asked.model):
                answer = queue.popleft()
            elif (named := by_name(asked)) is not None:
                answer = named
            elif queue := self._queues.get(None):
                answer = queue.popleft()
            else:
                answer = Answer(tokens=tokens_of(asked.said()))
        names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        limit = next((asked.body[name] for name in names if asked.body.get(name)), None)
        if limit and len(answer.tokens) > limit and not answer.calls:
            answer = replace(answer, tokens=answer.tokens[:limit], finish="length")
        return answer

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(path=request.path, headers=headers, body=body, at=time.monotonic(), port=port_of(request))
        if self._keeps:
            self.requests.append(asked)
            self._changed.set()
        voice = _VOICES[request.path.rpartition("/")[2]](asked)
        if self.keys and asked.key not in self.keys:
            asked.done = time.monotonic()
            return refusal(voice, Answer(status=401, message=f"Incorrect API key provided: {asked.key}"))
        if self.is_strict and (problem := strict_problem(asked)) is not None:
            asked.done = time.monotonic()
            return refusal(voice, Answer(status=400, message=problem))
        answer = self.answer_to(asked)
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        self.open += 1
        try:
            return await self._answer(request, asked, answer, voice)
        except (asyncio.CancelledError, ConnectionError):
            if asked.done is None:
                asked.gone = time.monotonic()
            raise asyncio.CancelledError from None  # of a connection that is lost: nothing to be said about it
        finally:
            self._answering.discard(task)
            self.open -= 1
            self._changed.set()

    async def _answer(self, request: web.Request, asked: Asked, answer: Answer, voice: "Voice") -> web.StreamResponse:
        if answer.wait:
            await asyncio.sleep(answer.wait)
        if answer.status != 200:
            asked.done = time.monotonic()
            return refusal(voice, answer)
        if answer.ending == "cut" and not answer.after:
            return await self._drop(request, asked)
        if not asked.body.get("stream"):
            return await self._whole(request, asked, answer, voice)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        if answer.ending == "unfinished" and not answer.tokens and not answer.calls:
            asked.done = time.monotonic()
            return response
        if answer.ending != "hang" or answer.after:
            for frame in voice.head(answer):
                await response.write(frame)
        shown = answer.tokens if answer.ending == "whole" else answer.tokens[: answer.after]
        delay, write, frame_of = answer.delay, response.write, voice.token
        for token in shown:
            await write(frame_of(token))
            asked.sent += 1
            await asyncio.sleep(delay)  # 0 too: streams take turns
        match answer.ending:
            case "whole":
                for frame in voice.tail(answer):
                    await write(frame)
                asked.done = time.monotonic()
            case "malformed":
                await write(voice.garbage())
                asked.done = time.monotonic()
            case "unfinished":
                asked.done = time.monotonic()
            case "cut":
                return await self._drop(request, asked, response)
            case "hang":
                await asyncio.Event().wait()
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, asked: Asked, answer: Answer, voice: "Voice") -> web.StreamResponse:
        match answer.ending:
            case "hang":
                await asyncio.Event().wait()
            case "malformed":
                asked.done = time.monotonic()
                return web.Response(text=GARBAGE, content_type="application/json")
            case "cut":
                response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
                await response.prepare(request)
                await response.write(b'{"id": "x", ')
                return await self._drop(request, asked, response)
        if answer.delay:
            await asyncio.sleep(answer.delay * len(answer.tokens))
        asked.sent, asked.done = len(answer.tokens), time.monotonic()
        return web.json_response(voice.whole(answer))

    async def _drop(
        self, request: web.Request, asked: Asked, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        asked.done = time.monotonic()
        if request.transport is not None:
            # What was written goes out first; then the connection ends without the last chunk.
            request.transport.close()
        await asyncio.Event().wait()  # until the server has noticed, and ends this handler
        raise AssertionError

    async def list_models(self, request: web.Request) -> web.Response:
        self.requests.append(
            Asked(
                path=request.path,
                headers={name.lower(): value for name, value in request.headers.items()},
                body={},
                at=time.monotonic(),
                done=time.monotonic(),
            )
        )
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def hang_up(self) -> None:
        """Drops every answer that is under way."""
        for task in list(self._answering):
            task.cancel()


_many = [f" w{number}" if number else "w0" for number in range(4096)]


def numbered(count: int) -> list[str]:
    return _many[:count] if count <= len(_many) else ["w0", *(f" w{number}" for number in range(1, count))]


class Stamped(Sequence[str]):
    """Tokens that tell when they were sent: `w7@` and the monotonic time in microseconds."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Stamped(len(range(*place.indices(self._count))))
        if not 0 <= place < self._count:
            raise IndexError(place)
        return f"{' ' if place else ''}w{place}@{int(time.monotonic() * 1_000_000)}"


_NAMES = re.compile(
    r"(?P<stamped>stamped-)?tokens-(?P<tokens>\d+)(-delay-(?P<delay>\d+))?|status-(?P<status>\d{3})|cut-(?P<cut>\d+)"
    r"|call-(?P<call>[A-Za-z0-9_-]+)|(?P<word>echo|malformed|hang|nothing|unfinished)"
)


def by_name(asked: Asked) -> Answer | None:
    """What the model's name says, if it says anything."""
    if (told := _NAMES.fullmatch(asked.model)) is None:
        return None
    if told["tokens"]:
        count = int(told["tokens"])
        return Answer(
            tokens=Stamped(count) if told["stamped"] else numbered(count), delay=int(told["delay"] or 0) / 1000
        )
    if told["status"]:
        return Answer(status=int(told["status"]), retry_after="1" if told["status"] == "429" else None)
    if told["cut"]:
        return Answer(tokens=numbered(int(told["cut"])), ending="cut", after=int(told["cut"]))
    if told["call"]:
        last = asked.messages[-1]
        parts = last.get("content") if isinstance(last.get("content"), list) else []
        if last["role"] == "tool" or any(part.get("type") == "tool_result" for part in parts):
            return Answer(tokens=tokens_of(text_of(last.get("content"))))
        said = asked.said()
        return Answer(calls=[call(told["call"], said if said.startswith("{") else {})])
    match told["word"]:
        case "echo":
            return Answer(tokens=tokens_of(asked.said()))
        case "malformed":
            return Answer(tokens=numbered(1), ending="malformed", after=1)
        case "hang":
            return Answer(ending="hang")
        case "unfinished":
            return Answer(tokens=numbered(2), ending="unfinished", after=2)
    return Answer(ending="unfinished")


def strict_problem(asked: Asked) -> str | None:
    """What today's models refuse a request for."""
    if asked.path.endswith("/messages"):
        return thinking_problem(asked)
    if asked.path.endswith("/responses"):
        return reasoning_problem(asked)
    return TOOLS_REFUSED if asked.body.get("tools") else None


def refusal(voice: "Voice", answer: Answer) -> web.Response:
    headers = {} if answer.retry_after is None else {"retry-after": answer.retry_after}
    message = answer.message or f"scripted failure {answer.status}"
    return web.json_response(voice.error(answer.status, message), status=answer.status, headers=headers)


def _usage(asked: Asked, answer: Answer) -> tuple[int, int]:
    prompt = answer.prompt
    if prompt is None:
        prompt = sum(len(text_of(message.get("content")).split()) for message in asked.messages)
        prompt += len(text_of(asked.body.get("system")).split())
    completion = answer.completion
    if completion is None:
        completion = len(answer.tokens) + sum(1 + len(one.written.split()) for one in answer.calls) + answer.reasoning
    return prompt, completion


def _pieces(text: str, length: int = 12) -> list[str]:
    return [text[at : at + length] for at in range(0, len(text), length)]


class OpenAI:
    """How OpenAI says it."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.id = asked, f"chatcmpl-{next(_numbers)}"
        self.common = {"id": self.id, "object": "chat.completion.chunk", "created": 1893456000, "model": asked.model}
        self.front = (
            "data: "
            + json.dumps({**self.common, "system_fingerprint": "fp_wire"})[:-1]
            + ', "choices": [{"index": 0, "finish_reason": null, "delta": {"content": '
        )

    def head(self, answer: Answer) -> list[bytes]:
        frames = [self.chunk({"role": "assistant", "content": ""})]
        return frames + [self.chunk({"reasoning_content": token}) for token in tokens_of(answer.thinking)]

    def token(self, token: str) -> bytes:
        return f"{self.front}{json.dumps(token)}}}}}]}}\n\n".encode()

    def tail(self, answer: Answer) -> list[bytes]:
        frames = []
        for index, one in enumerate(answer.calls):
            function = {"name": one.name, "arguments": ""}
            frames.append(
                self.chunk({"tool_calls": [{"index": index, "id": one.id, "type": "function", "function": function}]})
            )
            for piece in _pieces(one.written):
                frames.append(self.chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
        frames.append(self.chunk({}, finish=self.finish(answer)))
        if (self.asked.body.get("stream_options") or {}).get("include_usage") and answer.tells:
            frames.append(self.event({**self.common, "choices": [], "usage": self.usage(answer)}))
        return [*frames, b"data: [DONE]\n\n"]

    def whole(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.written}}
                for one in answer.calls
            ]
        finish = None if answer.ending == "unfinished" else self.finish(answer)
        choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
        told = {"usage": self.usage(answer)} if answer.tells else {}
        return {**self.common, "object": "chat.completion", "choices": choices, **told}

    def finish(self, answer: Answer) -> str:
        return answer.finish or ("tool_calls" if answer.calls else "stop")

    def usage(self, answer: Answer) -> dict[str, Any]:
        prompt, completion = _usage(self.asked, answer)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": answer.cached},
            "completion_tokens_details": {"reasoning_tokens": answer.reasoning},
        }

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self.event({**self.common, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def event(self, data: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(data)}\n\n".encode()

    def garbage(self) -> bytes:
        return f"data: {GARBAGE}\n\n".encode()

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "scripted", "param": None, "code": f"status_{status}"}}


class Anthropic:
    """How Anthropic says it: numbered blocks, each opened and closed; prompt tokens without the cached ones."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.id = asked, f"msg_{next(_numbers)}"
        self.block = 0
        self.front = ""

    def head(self, answer: Answer) -> list[bytes]:
        usage = {**self.usage(answer), "output_tokens": 1}
        frames = [self.event("message_start", message={**self.common(), "content": [], "usage": usage})]
        if answer.thinking:
            frames.append(self.opened({"type": "thinking", "thinking": "", "signature": ""}))
            frames += [self.delta("thinking_delta", thinking=token) for token in tokens_of(answer.thinking)]
            frames += [self.delta("signature_delta", signature="c2lnbmVk"), self.closed()]
        if answer.tokens:
            frames.append(self.opened({"type": "text", "text": ""}))
        self.front = (
            'event: content_block_delta\ndata: {"type": "content_block_delta", "index": '
            f'{self.block}, "delta": {{"type": "text_delta", "text": '
        )
        return frames

    def token(self, token: str) -> bytes:
        return f"{self.front}{json.dumps(token)}}}}}\n\n".encode()

    def tail(self, answer: Answer) -> list[bytes]:
        frames = [self.closed()] if answer.tokens else []
        for one in answer.calls:
            frames.append(self.opened({"type": "tool_use", "id": one.id, "name": one.name, "input": {}}))
            frames += [self.delta("input_json_delta", partial_json=piece) for piece in _pieces(one.written)]
            frames.append(self.closed())
        delta = {"stop_reason": self.finish(answer), "stop_sequence": None}
        frames.append(self.event("message_delta", delta=delta, usage=self.usage(answer)))
        return [*frames, self.event("message_stop")]

    def whole(self, answer: Answer) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking, "signature": "c2lnbmVk"})
        if answer.tokens:
            content.append({"type": "text", "text": answer.text})
        for one in answer.calls:
            given = one.arguments if isinstance(one.arguments, dict) else {"text": one.arguments}
            content.append({"type": "tool_use", "id": one.id, "name": one.name, "input": given})
        stop = None if answer.ending == "unfinished" else self.finish(answer)
        return {**self.common(), "content": content, "stop_reason": stop, "usage": self.usage(answer)}

    def common(self) -> dict[str, Any]:
        named = {"id": self.id, "type": "message", "role": "assistant", "model": self.asked.model}
        return {**named, "stop_reason": None, "stop_sequence": None}

    def finish(self, answer: Answer) -> str:
        names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        finish = answer.finish or ("tool_calls" if answer.calls else "stop")
        return names.get(finish, finish)

    def usage(self, answer: Answer) -> dict[str, Any]:
        prompt, completion = _usage(self.asked, answer)
        return {
            "input_tokens": prompt - answer.cached,
            "cache_read_input_tokens": answer.cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": completion,
            "output_tokens_details": {"thinking_tokens": answer.reasoning},
        }

    def opened(self, block: dict[str, Any]) -> bytes:
        return self.event("content_block_start", index=self.block, content_block=block)

    def delta(self, kind: str, **data: Any) -> bytes:
        return self.event("content_block_delta", index=self.block, delta={"type": kind, **data})

    def closed(self) -> bytes:
        self.block += 1
        return self.event("content_block_stop", index=self.block - 1)

    def event(self, kind: str, **data: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    def garbage(self) -> bytes:
        return f"event: content_block_delta\ndata: {GARBAGE}\n\n".encode()

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": f"status_{status}", "message": message}, "request_id": self.id}


Voice = OpenAI | Anthropic | Responses
_VOICES: dict[str, type[Voice]] = {"completions": OpenAI, "messages": Anthropic, "responses": Responses}


@asynccontextmanager
async def wire(port: int = 0, keeps: bool = True) -> AsyncIterator[Wire]:
    """A provider on a free port. What is under way when the block ends is dropped."""
    served = Wire(keeps)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/{before:.*}chat/completions", served.serve)
    app.router.add_post("/{before:.*}messages", served.serve)
    app.router.add_post("/{before:.*}responses", served.serve)
    app.router.add_get("/{before:.*}models", served.list_models)
    # `handler_cancellation`: a handler ends the moment its client hangs up, so that `gone` is true at once.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    served.root = f"http://127.0.0.1:{port}"
    served.url = f"{served.root}/v1"
    try:
        yield served
    finally:
        served.hang_up()
        await runner.cleanup()


async def _alone(port: int) -> None:
    async with wire(port, keeps=False) as served:
        print(served.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_alone(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
