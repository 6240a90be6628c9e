"""Call models served by `inputs/fake.py`, or a scripted body, through the client that workers use."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ReasoningDelta,
    ReplyNotice,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolSpec,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.model_calls import FakeLocalModel

TOOL_SPECS = tuple(
    ToolSpec(name=name, description="", parameters={"type": "object", "properties": {}})
    for name in ("filesystem_write", "filesystem_list")
)


@dataclass
class ModelCallResult:
    """The result of a call: the reply or the error, and the parts before."""

    parts: list[ReplyPart] = field(default_factory=list)
    reply: ModelReply | None = None
    error: ModelError | None = None

    @property
    def text(self) -> str:
        assert self.reply is not None, self.error
        assert "".join(part.text for part in self.parts if isinstance(part, TextDelta)) == self.reply.message.content
        return self.reply.message.content

    @property
    def thoughts(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, ReasoningDelta))

    @property
    def calls(self) -> list[tuple[str, str]]:
        assert self.reply is not None, self.error
        return [(call.name, call.arguments) for call in self.reply.message.tool_calls]

    @property
    def notices(self) -> list[str]:
        return [part.message for part in self.parts if isinstance(part, ReplyNotice)]

    @property
    def reported_usage(self) -> ReportedUsage | None:
        return next((part for part in reversed(self.parts) if isinstance(part, ReportedUsage)), None)


async def call_model(
    url: str, model: str = "m", provider: str = "openai_compatible", messages: Iterable[ChatMessage] = (), **more: Any
) -> ModelCallResult:
    """Call a model at `url`, which ends before `/v1`."""
    target = ModelTarget(
        name=model,
        provider=provider,
        model=model,
        base_url=url if provider == "anthropic" else f"{url}/v1",
        parameters=more.pop("parameters", {}),
        api=more.pop("api", None),
    )
    messages = tuple(messages) or (ChatMessage(role="user", content="x"),)
    llm, result = PydanticLlm(Outbound(("127.0.0.1",)), FakeLocalModel()), ModelCallResult()
    try:
        async for part in llm.stream(ModelCall(target=target, messages=messages, tools=TOOL_SPECS, **more)):
            if isinstance(part, ModelReply):
                result.reply = part
            else:
                result.parts.append(part)
    except ModelError as error:
        result.error = error
    finally:
        await llm.close()
    return result


@asynccontextmanager
async def serve_posts(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
) -> AsyncIterator[str]:
    """Answer every POST on a free port; yields the address. `options` are those of aiohttp's runner."""
    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_body(body: bytes | str, kind: str = "text/event-stream", status: int = 200) -> AsyncIterator[str]:
    """Serve one body as the answer to everything; yields the address."""

    async def answer(request: web.Request) -> web.Response:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, status=status, headers={"content-type": kind})

    async with serve_posts(answer) as url:
        yield url


async def call_model_with_body(
    body: bytes | str,
    kind: str = "text/event-stream",
    status: int = 200,
    provider: str = "openai_compatible",
    **more: Any,
) -> ModelCallResult:
    """Call a model whose server answers with one body."""
    async with serve_body(body, kind, status) as url:
        return await call_model(url, provider=provider, options=more.pop("options", ModelOptions()), **more)
