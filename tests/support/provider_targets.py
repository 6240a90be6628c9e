"""Describe a model of each provider that a scripted server on this host plays, and serve wires as these providers write them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from domain.llms import ChatMessage, ModelCall, ModelTarget
from domain.shared.secrets import Secret
from tests.support.scripted_model import serve_posts

AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AWS_SESSION_TOKEN = "IQoJb3JpZ2luX2VjEXAMPLETOKEN/with+signs=="
# A key of each provider, in the form in which it hands them out.
PROVIDER_KEYS = {
    "azure": "0123456789abcdef0123456789abcdef",
    "mistral": "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345",
    "groq": "gsk_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789aBcDeFgHiJkLmNoP",
    "openrouter": "sk-or-v1-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "gemini": "AIzaSyA-0123456789abcdefghijklmnopqrstu",
    "bedrock": f"AKIAIOSFODNN7EXAMPLE:{AWS_SECRET}",
}
MODEL_NAMES = {
    "azure": "gpt-4o",
    "mistral": "mistral-large-latest",
    "groq": "llama-3.3-70b-versatile",
    "openrouter": "deepseek/deepseek-chat",
    "gemini": "gemini-3-pro-preview",
    "bedrock": "us.anthropic.claude-sonnet-4-20250514-v1:0",
}


def build_target(provider: str, url: str | None, **fields: Any) -> ModelTarget:
    """Describe a model of a provider at `url`, which ends before any path."""
    paths = {"mistral": "/v1", "groq": "/openai/v1", "openrouter": "/api/v1", "gemini": "/v1beta"}
    parameters = {"region": "eu-central-1"} if provider == "bedrock" else {}
    return ModelTarget(
        name="registered",
        provider=provider,
        model=fields.pop("model", MODEL_NAMES[provider]),
        base_url=None if url is None else url + paths.get(provider, ""),
        api_key=None if (key := fields.pop("key", PROVIDER_KEYS[provider])) is None else Secret(key),
        parameters={**parameters, **fields.pop("parameters", {})},
        **fields,
    )


def build_call(provider: str, url: str | None, **fields: Any) -> ModelCall:
    """Build a call of a model at `url`; `target` holds fields of the target."""
    messages = fields.pop("messages", (ChatMessage(role="user", content="Hello"),))
    return ModelCall(target=build_target(provider, url, **fields.pop("target", {})), messages=messages, **fields)


def format_events(*events: Any, newline: str = "\n") -> bytes:
    """Write server-sent events: texts unchanged, everything else as JSON."""
    texts = [event if isinstance(event, str) else msgspec.json.encode(event).decode() for event in events]
    return "".join(f"data: {text}{newline}{newline}" for text in texts).encode()


@dataclass
class WireRequest:
    """A request that a wire server got."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class WireServer:
    """A server that gives its answers in turn, and the last one again and again."""

    url: str = ""
    answers: list[web.Response] = field(default_factory=list)
    requests: list[WireRequest] = field(default_factory=list)

    def queue_events(self, body: bytes, kind: str = "text/event-stream") -> None:
        """Queue an answer of status 200."""
        self.queue(200, body, {"content-type": kind})

    def queue_error(self, status: int, body: Any, **headers: str) -> None:
        """Queue an error with a JSON body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.queue(status, msgspec.json.encode(body), {"content-type": "application/json", **named})

    def queue_cut(self, body: bytes, kind: str = "text/event-stream") -> None:
        """Queue the beginning of an answer, after which the connection is dropped."""
        self.queue(200, body, {"content-type": kind, "x-drop": "1"})

    def queue(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Queue an answer."""
        self.answers.append(web.Response(status=status, body=body, headers=headers))


@asynccontextmanager
async def run_wire_server(answers: Sequence[web.Response] = ()) -> AsyncIterator[WireServer]:
    """Run a wire server on a free port."""
    server = WireServer(answers=list(answers))

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = msgspec.json.decode(await request.read())
        server.requests.append(WireRequest(request.rel_url.raw_path, dict(request.query), headers, body))
        scripted = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if "x-drop" not in scripted.headers:
            return web.Response(status=scripted.status, body=scripted.body, headers=scripted.headers)
        response = web.StreamResponse(headers={"content-type": scripted.headers["content-type"]})
        await response.prepare(request)
        assert isinstance(scripted.body, bytes)
        await response.write(scripted.body)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serve_posts(answer) as url:
        server.url = url
        yield server
