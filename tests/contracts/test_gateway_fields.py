"""Send fields to the gateway with the packages of OpenAI and Anthropic, and see what providers receive of them."""

import base64
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider
from tests.support.gateway_client import HELLO, GatewayClient
from tests.support.provider_gateway import serve_provider

PIXEL: Final = base64.b64encode(b"\x89PNG not really").decode()
DATA_URL: Final = f"data:image/png;base64,{PIXEL}"
PHOTO_URL: Final = "https://example.com/photo?size=1"
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS: Final = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": SCHEMA}} for name in ("add", "mul")
]
FLAT_TOOLS: Final = [{"type": "function", **tool["function"]} for tool in TOOLS]
CLAUDE_TOOLS: Final = [{"name": name, "input_schema": SCHEMA} for name in ("add", "mul")]
ADD_BY_NAME: Final = {"type": "function", "function": {"name": "add"}}


@pytest.fixture
async def served(llm: PydanticLlm, fake_provider: FakeProvider) -> AsyncIterator[GatewayClient]:
    async with serve_provider(llm, fake_provider) as client:
        yield client


def look_up(body: Any, path: str) -> Any:
    """Return the value at a path such as `messages.0.content`, None where there is none."""
    for step in path.split("."):
        if isinstance(body, list):
            body = body[int(step)] if int(step) < len(body) else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body


def compare(body: Any, wanted: dict[str, Any]) -> None:
    assert {path: look_up(body, path) for path in wanted} == wanted


def ask_with_image(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


def chat_image(**link: Any) -> list[dict[str, Any]]:
    return ask_with_image({"type": "image_url", "image_url": link})


CLAUDE_IMAGE: Final = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
CLAUDE_PHOTO: Final = {"type": "image", "source": {"type": "url", "url": PHOTO_URL}}
MARK: Final = {"type": "ephemeral", "ttl": "5m"}
LONG_MARK: Final = {"type": "ephemeral", "ttl": "1h"}
MARKED: Final = [
    {"role": "system", "content": [{"type": "text", "text": "Rules.", "cache_control": LONG_MARK}, {"type": "text", "text": "Now."}]},
    {"role": "user", "content": [{"type": "text", "text": "Book.", "cache_control": MARK}, {"type": "text", "text": "Ask."}]},
]  # fmt: skip

CHAT: Final[list[tuple[str, dict[str, Any], dict[str, Any]]]] = [
    # model, what the client sends, what the provider receives
    ("chat", {"temperature": 0.5, "top_p": 0.4, "seed": 7, "stop": ["x"]},
     {"temperature": 0.5, "top_p": 0.4, "seed": 7, "stop": ["x"]}),
    ("chat", {"presence_penalty": 0.5, "frequency_penalty": -0.5},
     {"presence_penalty": 0.5, "frequency_penalty": -0.5}),
    ("chat", {"max_tokens": 77}, {"max_completion_tokens": 77}),
    ("chat", {"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
    ("responses", {"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}, "input": None}),
    ("chat", {"service_tier": "flex"}, {"service_tier": "flex"}),
    ("responses", {"service_tier": "priority"}, {"service_tier": "priority"}),
    ("chat", {"service_tier": "auto"}, {"service_tier": None}),
    ("claude", {"service_tier": "default"}, {"service_tier": "standard_only"}),
    ("claude", {"service_tier": "flex"}, {"service_tier": None}),
    ("chat", {"verbosity": "low"}, {"verbosity": "low"}),
    ("responses", {"verbosity": "high"}, {"text.verbosity": "high"}),
    ("chat", {"reasoning_effort": "minimal"}, {"reasoning_effort": "minimal"}),
    ("reasoner", {"reasoning_effort": "low"}, {"reasoning.effort": "low"}),
    ("vllm", {"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
    ("claude", {"reasoning_effort": "medium", "max_tokens": 20_000},
     {"thinking": {"type": "enabled", "budget_tokens": 10_000}, "output_config": None}),
    ("claude-newer", {"reasoning_effort": "high"},
     {"thinking": {"type": "adaptive"}, "output_config.effort": "high"}),
    ("claude-newer", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}, "output_config": None}),
    ("vllm", {"extra_body": {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1}},
     {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1}),
    ("claude", {"extra_body": {"top_k": 4}}, {"top_k": 4}),
    ("local", {"extra_body": {"top_k": 4}}, {"top_k": 4}),
    ("chat", {"tools": TOOLS, "tool_choice": ADD_BY_NAME, "parallel_tool_calls": False},
     {"tool_choice": ADD_BY_NAME, "tools.1.function.name": "mul", "parallel_tool_calls": False}),
    ("responses", {"tools": TOOLS, "tool_choice": ADD_BY_NAME},
     {"tool_choice": {"type": "function", "name": "add"}, "tools.1.name": "mul"}),
    ("claude", {"tools": TOOLS, "tool_choice": ADD_BY_NAME},
     {"tool_choice": {"type": "tool", "name": "add"}, "tools.1.name": "mul"}),
    ("vllm", {"tools": TOOLS, "tool_choice": ADD_BY_NAME}, {"tool_choice": ADD_BY_NAME, "tools.1.function.name": "mul"}),
    ("local", {"tools": TOOLS, "tool_choice": ADD_BY_NAME},
     {"tool_choice": "required", "tools.0.function.name": "add", "tools.1": None}),
    ("chat", {"messages": chat_image(url=PHOTO_URL, detail="low")},
     {"messages.0.content": [{"type": "text", "text": "What is this?"},
                             {"type": "image_url", "image_url": {"url": PHOTO_URL, "detail": "low"}}]}),
    ("chat", {"messages": chat_image(url=DATA_URL)},
     {"messages.0.content.1": {"type": "image_url", "image_url": {"url": DATA_URL}}}),
    ("vllm", {"messages": chat_image(url=DATA_URL)},
     {"messages.0.content.1": {"type": "image_url", "image_url": {"url": DATA_URL}}}),
    ("responses", {"messages": chat_image(url=PHOTO_URL)},
     {"input.0.content.1": {"type": "input_image", "image_url": PHOTO_URL, "detail": "auto"}}),
    ("claude", {"messages": chat_image(url=DATA_URL)}, {"messages.0.content.1": CLAUDE_IMAGE}),
    ("claude", {"messages": chat_image(url=PHOTO_URL)}, {"messages.0.content.1": CLAUDE_PHOTO}),
    ("claude", {"messages": MARKED},
     {"system": [{"type": "text", "text": "Rules.", "cache_control": LONG_MARK}, {"type": "text", "text": "Now."}],
      "messages.0.content": [{"type": "text", "text": "Book.", "cache_control": MARK}, {"type": "text", "text": "Ask."}]}),
    ("chat", {"messages": MARKED}, {"messages.2.content": [{"type": "text", "text": "Book."}, {"type": "text", "text": "Ask."}]}),
    ("cached", {"messages": MARKED},
     {"messages.2.content.0": {"type": "text", "text": "Book.", "prompt_cache_breakpoint": {"mode": "explicit"}}}),
    ("claude", {"tools": [{**TOOLS[0], "cache_control": MARK}, TOOLS[1]]},
     {"tools.0.cache_control": MARK, "tools.1.cache_control": None}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "sent", "received"), CHAT, ids=[f"{case[0]}-{'+'.join(case[1])}" for case in CHAT])
async def test_what_providers_receive_of_chat_completions(
    served: GatewayClient, fake_provider: FakeProvider, model: str, sent: dict[str, Any], received: dict[str, Any]
) -> None:
    await served.ask_chat(**{"model": model, "messages": HELLO, **sent})
    compare(fake_provider.requests[-1].body, received)
