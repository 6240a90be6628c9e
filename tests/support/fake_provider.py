"""Run a scripted model provider on 127.0.0.1. It speaks both OpenAI APIs and Anthropic's, and sends the answers of a test's script.

    async with run_fake_provider() as provider:        # provider.url is http://127.0.0.1:PORT/v1
        provider.queue_text("Hello there")             # the next answer, for any model
        provider.queue_text("Hi", to="gpt-x")          # the next answer of that model alone; also a name like `script:NAME`
        provider.queue_tool_call("add", {"a": 1})      # a tool call; queue_text(text, calls=[build_call(…)]) for several
        provider.queue_failure(429, retry_after=3)     # queue_cut(3), queue_malformed(), queue_hang(), queue_slow(…), …
        provider.add_rule(lambda asked: None)          # returns a ScriptedAnswer, or None to leave it to the script
        …
        provider.requests[-1].body["messages"]         # every request, with its headers
        await provider.wait_for_hang_up()              # the client hung up before the end

An answer is the first of: what a rule returns; what is queued for exactly that model; what the model's name says (below);
what is queued for any model; an echo of the last user message. Names that need no script, so that a separate process can
serve them: `echo` · `tokens-500` · `tokens-500-delay-20` (milliseconds between two; `stamped-` before it adds the time of
sending) · `status-429` · `cut-5` · `malformed` · `hang` · `nothing` · `unfinished` · `call-NAME` (calls that tool with the
last user message if it is a JSON object, else {}; then answers with the result).
A word is a token. An answer is trimmed at `max_tokens`. Alone, for benchmarks: `python -m tests.support.fake_provider PORT`
(records nothing).
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

from tests.support.fake_responses_api import (
    TOOLS_REFUSED,
    ResponsesFormat,
    find_reasoning_problem,
    find_thinking_problem,
    list_messages,
)

MALFORMED_JSON = '{"id": "chatcmpl-1", "choices": [{"delta": oops'


@dataclass(frozen=True, kw_only=True)
class ScriptedCall:
    """A tool call. `arguments` is sent unchanged if it is text, valid or not."""

    name: str
    arguments: dict[str, Any] | str
    id: str

    @property
    def arguments_text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


id_numbers = itertools.count(1)


def build_call(name: str, arguments: dict[str, Any] | str | None = None, id: str | None = None) -> ScriptedCall:  # noqa: A002
    """Build a tool call. Without an id it gets a unique one."""
    return ScriptedCall(
        name=name, arguments={} if arguments is None else arguments, id=id or f"call_{name[:20]}_{next(id_numbers)}"
    )


@dataclass(frozen=True, kw_only=True)
class ScriptedAnswer:
    """An answer. Numbers of tokens that are None are counted; `reports_usage` False leaves usage out."""

    tokens: Sequence[str] = ()
    thinking: str = ""
    calls: Sequence[ScriptedCall] = ()
    finish: str | None = None
    delay: float = 0.0  # seconds between two tokens
    wait: float = 0.0  # seconds before anything
    status: int = 200
    message: str = ""
    retry_after: str | None = None
    ending: Literal["whole", "cut", "hang", "malformed", "unfinished"] = "whole"
    after: int = 0  # tokens before that ending
    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0
    reports_usage: bool = True

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(kw_only=True)
class ProviderRequest:
    """One request. `hung_up_at`, `answered_at` and `received_at` are monotonic times."""

    path: str
    headers: dict[str, str]  # lower case names
    body: dict[str, Any]
    received_at: float
    client_port: int = 0  # the client's
    sent_tokens: int = 0  # tokens
    answered_at: float | None = None
    hung_up_at: float | None = None

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def api_key(self) -> str | None:
        """Return the API key of the request."""
        bearer = self.headers.get("authorization", "")
        return self.headers.get("x-api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else None)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation, in the form of chat completions."""
        return list_messages(self.body) if "input" in self.body else self.body.get("messages", [])

    def get_last_text(self, role: str = "user") -> str:
        """Return the text of the last message of a role."""
        for message in reversed(self.messages):
            if message["role"] == role:
                return extract_text(message.get("content"))
        return ""


def get_client_port(request: web.Request) -> int:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer[1] if peer else 0


def extract_text(content: Any) -> str:
    """Return the text of a message's content, which is text or a list of parts."""
    if isinstance(content, list):
        return "".join(
            extract_text(part.get("content")) if part.get("type") == "tool_result" else part.get("text", "")
            for part in content
        )
    return content or ""


def split_tokens(text: str) -> list[str]:
    """Split a text into words, each with the space before it: joined, they are the text."""
    return re.findall(r"\s*\S+|\s+$", text)


AnswerRule = Callable[[ProviderRequest], ScriptedAnswer | None]


class FakeProvider:
    """Serve scripted answers and record the requests."""

    def __init__(self, records_requests: bool = True) -> None:
        self.url = self.root = ""
        self.requests: list[ProviderRequest] = []
        self.accepted_keys: set[str] = set()  # empty: every key is accepted
        self.models: list[str] = ["echo"]
        self.open_answers = 0  # answers being sent
        self.is_strict = False  # like current models: tools over Responses only, reasoning sent back unchanged
        self._records_requests = records_requests
        self._queues: dict[str | None, deque[ScriptedAnswer]] = defaultdict(deque)
        self._rules: list[AnswerRule] = []
        self._changed = asyncio.Event()
        self._answering: set[asyncio.Task[Any]] = set()

    @property
    def hung_up_requests(self) -> list[ProviderRequest]:
        """Return the requests whose client hung up before the end of the answer."""
        return [asked for asked in self.requests if asked.hung_up_at is not None]

    # Scripting answers

    def queue_answer(self, answer: ScriptedAnswer, to: str | None = None) -> None:
        """Queue an answer, for one model or for the next request of any model."""
        self._queues[to].append(answer)

    def queue_text(self, text: str, calls: Iterable[ScriptedCall] = (), to: str | None = None, **more: Any) -> None:
        """Queue text and tool calls; `more` as in `ScriptedAnswer`: thinking, usage (prompt, completion, cached, reasoning), delay."""
        self.queue_answer(ScriptedAnswer(tokens=split_tokens(text), calls=tuple(calls), **more), to)

    def queue_tool_call(
        self,
        name: str,
        arguments: dict[str, Any] | str | None = None,
        id: str | None = None,  # noqa: A002
        text: str = "",
        **more: Any,
    ) -> None:
        self.queue_text(text, calls=[build_call(name, arguments, id)], **more)

    def queue_failure(
        self, status: int, message: str = "", retry_after: float | str | None = None, to: str | None = None
    ) -> None:
        after = None if retry_after is None else str(retry_after)
        self.queue_answer(ScriptedAnswer(status=status, message=message, retry_after=after), to)

    def queue_cut(self, after_tokens: int = 3, to: str | None = None) -> None:
        """Queue a connection that drops after some tokens; 0: before the headers."""
        self.queue_answer(
            ScriptedAnswer(tokens=list_numbered_tokens(after_tokens), ending="cut", after=after_tokens), to
        )

    def queue_malformed(self, after_tokens: int = 1, to: str | None = None) -> None:
        self.queue_answer(
            ScriptedAnswer(tokens=list_numbered_tokens(after_tokens), ending="malformed", after=after_tokens), to
        )

    def queue_hang(self, after_tokens: int = 0, to: str | None = None) -> None:
        """Queue headers and some tokens, followed by silence."""
        self.queue_answer(
            ScriptedAnswer(tokens=list_numbered_tokens(after_tokens), ending="hang", after=after_tokens), to
        )

    def queue_unfinished(self, text: str = "so far", to: str | None = None) -> None:
        """Queue an answer that ends without a finish reason."""
        tokens = split_tokens(text)
        self.queue_answer(ScriptedAnswer(tokens=tokens, ending="unfinished", after=len(tokens)), to)

    def queue_empty(self, to: str | None = None) -> None:
        """Queue an empty stream."""
        self.queue_answer(ScriptedAnswer(ending="unfinished"), to)

    def queue_slow(self, tokens: int, delay: float, to: str | None = None) -> None:
        """Queue numbered tokens with `delay` seconds between them."""
        self.queue_answer(ScriptedAnswer(tokens=list_numbered_tokens(tokens), delay=delay), to)

    def add_rule(self, rule: AnswerRule) -> None:
        """Add a rule, which is asked before the script, the latest rule first."""
        self._rules.insert(0, rule)

    def reset_scripts(self) -> None:
        """Forget scripts, rules, keys and requests."""
        self.requests.clear()
        self._queues.clear()
        self._rules.clear()
        self.accepted_keys.clear()
        self.is_strict = False

    # Waiting for requests

    async def wait_for_request(self, count: int = 1, timeout: float = 60.0) -> ProviderRequest:
        """Return the last request, once there are `count`."""
        await self._wait_until(lambda: len(self.requests) >= count, timeout)
        return self.requests[-1]

    async def wait_for_hang_up(self, count: int = 1, timeout: float = 60.0) -> ProviderRequest:
        """Return the last request whose client hung up early, once there are `count`."""
        await self._wait_until(lambda: len(self.hung_up_requests) >= count, timeout)
        return self.hung_up_requests[-1]

    async def _wait_until(self, true: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    # Serving

    def choose_answer(self, asked: ProviderRequest) -> ScriptedAnswer:
        for rule in self._rules:
            if (answer := rule(asked)) is not None:
                break
        else:
            if queue := self._queues.get(asked.model):
                answer = queue.popleft()
            elif (named := answer_by_model_name(asked)) is not None:
                answer = named
            elif queue := self._queues.get(None):
                answer = queue.popleft()
            else:
                answer = ScriptedAnswer(tokens=split_tokens(asked.get_last_text()))
        names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        limit = next((asked.body[name] for name in names if asked.body.get(name)), None)
        if limit and len(answer.tokens) > limit and not answer.calls:
            answer = replace(answer, tokens=answer.tokens[:limit], finish="length")
        return answer

    async def serve_request(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = ProviderRequest(
            path=request.path,
            headers=headers,
            body=body,
            received_at=time.monotonic(),
            client_port=get_client_port(request),
        )
        if self._records_requests:
            self.requests.append(asked)
            self._changed.set()
        wire_format = _WIRE_FORMATS[request.path.rpartition("/")[2]](asked)
        if self.accepted_keys and asked.api_key not in self.accepted_keys:
            asked.answered_at = time.monotonic()
            return build_refusal(
                wire_format, ScriptedAnswer(status=401, message=f"Incorrect API key provided: {asked.api_key}")
            )
        if self.is_strict and (problem := find_strict_problem(asked)) is not None:
            asked.answered_at = time.monotonic()
            return build_refusal(wire_format, ScriptedAnswer(status=400, message=problem))
        answer = self.choose_answer(asked)
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        self.open_answers += 1
        try:
            return await self._send_answer(request, asked, answer, wire_format)
        except (asyncio.CancelledError, ConnectionError):
            if asked.answered_at is None:
                asked.hung_up_at = time.monotonic()
            raise asyncio.CancelledError from None  # the connection is lost: nothing to log
        finally:
            self._answering.discard(task)
            self.open_answers -= 1
            self._changed.set()

    async def _send_answer(
        self, request: web.Request, asked: ProviderRequest, answer: ScriptedAnswer, wire_format: "WireFormat"
    ) -> web.StreamResponse:
        if answer.wait:
            await asyncio.sleep(answer.wait)
        if answer.status != 200:
            asked.answered_at = time.monotonic()
            return build_refusal(wire_format, answer)
        if answer.ending == "cut" and not answer.after:
            return await self._drop_connection(request, asked)
        if not asked.body.get("stream"):
            return await self._send_whole(request, asked, answer, wire_format)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        if answer.ending == "unfinished" and not answer.tokens and not answer.calls:
            asked.answered_at = time.monotonic()
            return response
        if answer.ending != "hang" or answer.after:
            for frame in wire_format.render_head(answer):
                await response.write(frame)
        shown_tokens = answer.tokens if answer.ending == "whole" else answer.tokens[: answer.after]
        delay, write, frame_of = answer.delay, response.write, wire_format.render_token
        for token in shown_tokens:
            await write(frame_of(token))
            asked.sent_tokens += 1
            await asyncio.sleep(delay)  # also 0, so that streams take turns
        match answer.ending:
            case "whole":
                for frame in wire_format.render_tail(answer):
                    await write(frame)
                asked.answered_at = time.monotonic()
            case "malformed":
                await write(wire_format.render_malformed())
                asked.answered_at = time.monotonic()
            case "unfinished":
                asked.answered_at = time.monotonic()
            case "cut":
                return await self._drop_connection(request, asked, response)
            case "hang":
                await asyncio.Event().wait()
        await response.write_eof()
        return response

    async def _send_whole(
        self, request: web.Request, asked: ProviderRequest, answer: ScriptedAnswer, wire_format: "WireFormat"
    ) -> web.StreamResponse:
        match answer.ending:
            case "hang":
                await asyncio.Event().wait()
            case "malformed":
                asked.answered_at = time.monotonic()
                return web.Response(text=MALFORMED_JSON, content_type="application/json")
            case "cut":
                response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
                await response.prepare(request)
                await response.write(b'{"id": "x", ')
                return await self._drop_connection(request, asked, response)
        if answer.delay:
            await asyncio.sleep(answer.delay * len(answer.tokens))
        asked.sent_tokens, asked.answered_at = len(answer.tokens), time.monotonic()
        return web.json_response(wire_format.render_whole(answer))

    async def _drop_connection(
        self, request: web.Request, asked: ProviderRequest, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        asked.answered_at = time.monotonic()
        if request.transport is not None:
            # Written data is sent first; then the connection ends without the last chunk.
            request.transport.close()
        await asyncio.Event().wait()  # until the server has noticed, and ends this handler
        raise AssertionError

    async def embed_texts(self, request: web.Request) -> web.Response:
        """A vector of a text is its length, then zeros. A queued failure comes first."""
        body = json.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        now = time.monotonic()
        asked = ProviderRequest(path=request.path, headers=headers, body=body, received_at=now, answered_at=now)
        self.requests.append(asked)
        self._changed.set()
        if (queue := self._queues.get(asked.model)) and (answer := queue.popleft()).status != 200:
            return build_refusal(OpenAIFormat(asked), answer)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        size = body.get("dimensions", 3)
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), *([0.0] * (size - 1))]}
            for index, text in enumerate(texts)
        ]
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "model": asked.model, "data": data[::-1], "usage": usage})

    async def list_models(self, request: web.Request) -> web.Response:
        self.requests.append(
            ProviderRequest(
                path=request.path,
                headers={name.lower(): value for name, value in request.headers.items()},
                body={},
                received_at=time.monotonic(),
                answered_at=time.monotonic(),
            )
        )
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def drop_answers(self) -> None:
        """Drop every answer that is being sent."""
        for task in list(self._answering):
            task.cancel()


_many = [f" w{number}" if number else "w0" for number in range(4096)]


def list_numbered_tokens(count: int) -> list[str]:
    return _many[:count] if count <= len(_many) else ["w0", *(f" w{number}" for number in range(1, count))]


class TimestampedTokens(Sequence[str]):
    """Tokens with the time of sending: `w7@` and the monotonic time in microseconds."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return TimestampedTokens(len(range(*place.indices(self._count))))
        if not 0 <= place < self._count:
            raise IndexError(place)
        return f"{' ' if place else ''}w{place}@{int(time.monotonic() * 1_000_000)}"


_MODEL_NAME_PATTERN = re.compile(
    r"(?P<stamped>stamped-)?tokens-(?P<tokens>\d+)(-delay-(?P<delay>\d+))?|status-(?P<status>\d{3})|cut-(?P<cut>\d+)"
    r"|call-(?P<call>[A-Za-z0-9_-]+)|(?P<word>echo|malformed|hang|nothing|unfinished)"
)


def answer_by_model_name(asked: ProviderRequest) -> ScriptedAnswer | None:
    """Return the answer that a model's name stands for, or None."""
    if (match := _MODEL_NAME_PATTERN.fullmatch(asked.model)) is None:
        return None
    if match["tokens"]:
        count = int(match["tokens"])
        return ScriptedAnswer(
            tokens=TimestampedTokens(count) if match["stamped"] else list_numbered_tokens(count),
            delay=int(match["delay"] or 0) / 1000,
        )
    if match["status"]:
        return ScriptedAnswer(status=int(match["status"]), retry_after="1" if match["status"] == "429" else None)
    if match["cut"]:
        return ScriptedAnswer(tokens=list_numbered_tokens(int(match["cut"])), ending="cut", after=int(match["cut"]))
    if match["call"]:
        last = asked.messages[-1]
        parts = last.get("content") if isinstance(last.get("content"), list) else []
        if last["role"] == "tool" or any(part.get("type") == "tool_result" for part in parts):
            return ScriptedAnswer(tokens=split_tokens(extract_text(last.get("content"))))
        text = asked.get_last_text()
        return ScriptedAnswer(calls=[build_call(match["call"], text if text.startswith("{") else {})])
    match match["word"]:
        case "echo":
            return ScriptedAnswer(tokens=split_tokens(asked.get_last_text()))
        case "malformed":
            return ScriptedAnswer(tokens=list_numbered_tokens(1), ending="malformed", after=1)
        case "hang":
            return ScriptedAnswer(ending="hang")
        case "unfinished":
            return ScriptedAnswer(tokens=list_numbered_tokens(2), ending="unfinished", after=2)
    return ScriptedAnswer(ending="unfinished")


def find_strict_problem(asked: ProviderRequest) -> str | None:
    """Return why current models would refuse a request, or None."""
    if asked.path.endswith("/messages"):
        return find_thinking_problem(asked)
    if asked.path.endswith("/responses"):
        return find_reasoning_problem(asked)
    return TOOLS_REFUSED if asked.body.get("tools") else None


def build_refusal(wire_format: "WireFormat", answer: ScriptedAnswer) -> web.Response:
    headers = {} if answer.retry_after is None else {"retry-after": answer.retry_after}
    message = answer.message or f"scripted failure {answer.status}"
    return web.json_response(wire_format.build_error(answer.status, message), status=answer.status, headers=headers)


def count_usage(asked: ProviderRequest, answer: ScriptedAnswer) -> tuple[int, int]:
    prompt = answer.prompt
    if prompt is None:
        prompt = sum(len(extract_text(message.get("content")).split()) for message in asked.messages)
        prompt += len(extract_text(asked.body.get("system")).split())
    completion = answer.completion
    if completion is None:
        completion = (
            len(answer.tokens) + sum(1 + len(call.arguments_text.split()) for call in answer.calls) + answer.reasoning
        )
    return prompt, completion


def split_pieces(text: str, length: int = 12) -> list[str]:
    return [text[at : at + length] for at in range(0, len(text), length)]


class OpenAIFormat:
    """Render answers as OpenAI's chat completions."""

    def __init__(self, asked: ProviderRequest) -> None:
        self.asked, self.id = asked, f"chatcmpl-{next(id_numbers)}"
        self.common = {"id": self.id, "object": "chat.completion.chunk", "created": 1893456000, "model": asked.model}
        self.front = (
            "data: "
            + json.dumps({**self.common, "system_fingerprint": "fp_wire"})[:-1]
            + ', "choices": [{"index": 0, "finish_reason": null, "delta": {"content": '
        )

    def render_head(self, answer: ScriptedAnswer) -> list[bytes]:
        frames = [self.render_chunk({"role": "assistant", "content": ""})]
        return frames + [self.render_chunk({"reasoning_content": token}) for token in split_tokens(answer.thinking)]

    def render_token(self, token: str) -> bytes:
        return f"{self.front}{json.dumps(token)}}}}}]}}\n\n".encode()

    def render_tail(self, answer: ScriptedAnswer) -> list[bytes]:
        frames = []
        for index, call in enumerate(answer.calls):
            function = {"name": call.name, "arguments": ""}
            frames.append(
                self.render_chunk(
                    {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}
                )
            )
            for piece in split_pieces(call.arguments_text):
                frames.append(self.render_chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
        frames.append(self.render_chunk({}, finish=self.get_finish(answer)))
        if (self.asked.body.get("stream_options") or {}).get("include_usage") and answer.reports_usage:
            frames.append(self.render_event({**self.common, "choices": [], "usage": self.build_usage(answer)}))
        return [*frames, b"data: [DONE]\n\n"]

    def render_whole(self, answer: ScriptedAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text}}
                for call in answer.calls
            ]
        finish = None if answer.ending == "unfinished" else self.get_finish(answer)
        choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
        usage = {"usage": self.build_usage(answer)} if answer.reports_usage else {}
        return {**self.common, "object": "chat.completion", "choices": choices, **usage}

    def get_finish(self, answer: ScriptedAnswer) -> str:
        return answer.finish or ("tool_calls" if answer.calls else "stop")

    def build_usage(self, answer: ScriptedAnswer) -> dict[str, Any]:
        prompt, completion = count_usage(self.asked, answer)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": answer.cached},
            "completion_tokens_details": {"reasoning_tokens": answer.reasoning},
        }

    def render_chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self.render_event({**self.common, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def render_event(self, data: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(data)}\n\n".encode()

    def render_malformed(self) -> bytes:
        return f"data: {MALFORMED_JSON}\n\n".encode()

    def build_error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "scripted", "param": None, "code": f"status_{status}"}}


class AnthropicFormat:
    """Render answers as Anthropic's messages: numbered blocks with start and end; prompt tokens without the cached ones."""

    def __init__(self, asked: ProviderRequest) -> None:
        self.asked, self.id = asked, f"msg_{next(id_numbers)}"
        self.block = 0
        self.front = ""

    def render_head(self, answer: ScriptedAnswer) -> list[bytes]:
        usage = {**self.build_usage(answer), "output_tokens": 1}
        frames = [self.render_event("message_start", message={**self.build_common(), "content": [], "usage": usage})]
        if answer.thinking:
            frames.append(self.render_block_start({"type": "thinking", "thinking": "", "signature": ""}))
            frames += [self.render_delta("thinking_delta", thinking=token) for token in split_tokens(answer.thinking)]
            frames += [self.render_delta("signature_delta", signature="c2lnbmVk"), self.render_block_end()]
        if answer.tokens:
            frames.append(self.render_block_start({"type": "text", "text": ""}))
        self.front = (
            'event: content_block_delta\ndata: {"type": "content_block_delta", "index": '
            f'{self.block}, "delta": {{"type": "text_delta", "text": '
        )
        return frames

    def render_token(self, token: str) -> bytes:
        return f"{self.front}{json.dumps(token)}}}}}\n\n".encode()

    def render_tail(self, answer: ScriptedAnswer) -> list[bytes]:
        frames = [self.render_block_end()] if answer.tokens else []
        for call in answer.calls:
            frames.append(self.render_block_start({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}))
            frames += [
                self.render_delta("input_json_delta", partial_json=piece) for piece in split_pieces(call.arguments_text)
            ]
            frames.append(self.render_block_end())
        delta = {"stop_reason": self.get_finish(answer), "stop_sequence": None}
        frames.append(self.render_event("message_delta", delta=delta, usage=self.build_usage(answer)))
        return [*frames, self.render_event("message_stop")]

    def render_whole(self, answer: ScriptedAnswer) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking, "signature": "c2lnbmVk"})
        if answer.tokens:
            content.append({"type": "text", "text": answer.text})
        for call in answer.calls:
            tool_input = call.arguments if isinstance(call.arguments, dict) else {"text": call.arguments}
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": tool_input})
        stop = None if answer.ending == "unfinished" else self.get_finish(answer)
        return {**self.build_common(), "content": content, "stop_reason": stop, "usage": self.build_usage(answer)}

    def build_common(self) -> dict[str, Any]:
        fields = {"id": self.id, "type": "message", "role": "assistant", "model": self.asked.model}
        return {**fields, "stop_reason": None, "stop_sequence": None}

    def get_finish(self, answer: ScriptedAnswer) -> str:
        names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        finish = answer.finish or ("tool_calls" if answer.calls else "stop")
        return names.get(finish, finish)

    def build_usage(self, answer: ScriptedAnswer) -> dict[str, Any]:
        prompt, completion = count_usage(self.asked, answer)
        return {
            "input_tokens": prompt - answer.cached,
            "cache_read_input_tokens": answer.cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": completion,
            "output_tokens_details": {"thinking_tokens": answer.reasoning},
        }

    def render_block_start(self, block: dict[str, Any]) -> bytes:
        return self.render_event("content_block_start", index=self.block, content_block=block)

    def render_delta(self, kind: str, **data: Any) -> bytes:
        return self.render_event("content_block_delta", index=self.block, delta={"type": kind, **data})

    def render_block_end(self) -> bytes:
        self.block += 1
        return self.render_event("content_block_stop", index=self.block - 1)

    def render_event(self, kind: str, **data: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    def render_malformed(self) -> bytes:
        return f"event: content_block_delta\ndata: {MALFORMED_JSON}\n\n".encode()

    def build_error(self, status: int, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": f"status_{status}", "message": message}, "request_id": self.id}


WireFormat = OpenAIFormat | AnthropicFormat | ResponsesFormat
_WIRE_FORMATS: dict[str, type[WireFormat]] = {
    "completions": OpenAIFormat,
    "messages": AnthropicFormat,
    "responses": ResponsesFormat,
}


@asynccontextmanager
async def run_fake_provider(port: int = 0, keeps: bool = True) -> AsyncIterator[FakeProvider]:
    """Run a provider on a free port. Answers being sent when the block ends are dropped."""
    served = FakeProvider(keeps)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/{before:.*}chat/completions", served.serve_request)
    app.router.add_post("/{before:.*}messages", served.serve_request)
    app.router.add_post("/{before:.*}responses", served.serve_request)
    app.router.add_post("/{before:.*}embeddings", served.embed_texts)
    app.router.add_get("/{before:.*}models", served.list_models)
    # `handler_cancellation` ends a handler the moment its client hangs up, so that `hung_up_at` is set at once.
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
        served.drop_answers()
        await runner.cleanup()


async def _serve_alone(port: int) -> None:
    async with run_fake_provider(port, keeps=False) as served:
        print(served.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve_alone(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
