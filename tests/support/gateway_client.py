"""Ask a gateway whose calls of models are scripted, through the real client libraries or by hand."""

import asyncio
import contextlib
import json
import socket
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

import anthropic
import openai
from pydantic import BaseModel

from domain.egress import parse_entries
from domain.llms import (
    ChatMessage,
    EmbeddingReply,
    ModelOptions,
    ModelReply,
    ModelToolCall,
    ModelUsage,
    ReasoningItem,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolSpec,
)
from domain.ports import GATEWAY_LISTENER
from domain.shared.secrets import Secret
from infra.credentials import Keyring
from workers.run import ReasoningSealer
from workers.run.gateway import GatewayLimits, serve_gateway

HELLO: Final[list[dict[str, Any]]] = [{"role": "user", "content": "hello"}]
USUAL_LIMITS: Final = GatewayLimits()


class City(BaseModel):
    """Describe the answer that clients of structured output ask for."""

    name: str


class ScriptedCalls:
    """Calls of models that answer with a script, and remember what they were asked and how they ended."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[ChatMessage, ...], tuple[ToolSpec, ...], ModelOptions]] = []
        self.parts: list[ReplyPart | Exception] = []
        self.delay = 0.0
        self.running = self.most = self.closed = 0
        self.endless = False
        self.embedded: list[tuple[str, tuple[str, ...], int | None]] = []
        self.vector_size = 0
        self._sealer = ReasoningSealer(Keyring((Secret("k" * 32),), "s" * 32), "tenant_1")

    def script_text(self, *words: str, **more: Any) -> None:
        self.parts = [*map(TextDelta, words), build_reply("".join(words), **more)]

    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        self.asked.append((name, messages, tools, options))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while self.endless:
                yield TextDelta("x" * 10_000)
            for part in list(self.parts):
                await asyncio.sleep(self.delay)
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            # As the real one does: what was used is written down, which takes a moment.
            await asyncio.sleep(0)
            self.running -= 1
            self.closed += 1

    async def embed_texts(self, name: str, texts: tuple[str, ...], dimensions: int | None) -> EmbeddingReply:
        self.embedded.append((name, texts, dimensions))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay)
            for part in self.parts:
                if isinstance(part, Exception):
                    raise part
            vectors = tuple(array("d", [len(text), -0.1, *([0.25] * self.vector_size)]) for text in texts)
            return EmbeddingReply(vectors=vectors, usage=ReportedUsage(prompt_tokens=7))
        finally:
            self.running -= 1
            self.closed += 1

    def seal_reasoning(self, item: ReasoningItem) -> str:
        return self._sealer.seal_reasoning(item)

    def open_reasoning(self, sealed: str) -> ReasoningItem | None:
        return self._sealer.open_reasoning(sealed)


def build_reply(
    content: str = "", calls: tuple[ModelToolCall, ...] = (), finish: Any = "stop", usage: ModelUsage | None = None
) -> ModelReply:
    return ModelReply(
        message=ChatMessage(role="assistant", content=content, tool_calls=calls), finish=finish, usage=usage
    )


class GatewayClient:
    def __init__(self, calls: ScriptedCalls, port: int) -> None:
        self.calls, self.port = calls, port
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.client = openai.AsyncOpenAI(base_url=self.url, api_key="paddock", max_retries=0, timeout=10)
        self.anthropic = anthropic.AsyncAnthropic(base_url=self.root, api_key="paddock", max_retries=0, timeout=10)

    async def ask_chat(self, **fields: Any) -> Any:
        return await self.client.chat.completions.create(**{"model": "small", "messages": HELLO, **fields})

    async def ask_response(self, **fields: Any) -> Any:
        return await self.client.responses.create(**{"model": "small", "input": "hello", **fields})

    async def ask_message(self, **fields: Any) -> Any:
        usual = {"model": "small", "messages": HELLO, "max_tokens": 100}
        return await self.anthropic.messages.create(**{**usual, **fields})

    async def open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def post(
        self, body: Any, path: str = "/v1/chat/completions", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
            + "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
            + "\r\n",
            data,
        )

    async def send(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], Any]:
        reader, writer = await self.open_connection()
        with contextlib.suppress(ConnectionError):
            writer.write(head.encode() + body)
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        first, _, rest = answer.partition(b"\r\n\r\n")
        lines = first.decode().split("\r\n")
        return (
            int(lines[0].split()[1]),
            dict(line.lower().split(": ", 1) for line in lines[1:]),
            json.loads(rest or b"null"),
        )


@contextlib.asynccontextmanager
async def serve_scripted(
    calls: ScriptedCalls, limits: GatewayLimits = USUAL_LIMITS, models: tuple[str, ...] = ("small", "large")
) -> AsyncIterator[GatewayClient]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.setblocking(False)
    async with serve_gateway(calls, models, limits, parse_entries(["example.com"]))({GATEWAY_LISTENER: listener}):
        client = GatewayClient(calls, listener.getsockname()[1])
        async with client.client, client.anthropic:
            yield client
    listener.close()


async def wait_until(is_true: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.005)
