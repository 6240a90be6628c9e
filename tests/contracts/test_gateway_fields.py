"""Send fields to the gateway with the packages of OpenAI and Anthropic, and see what providers receive of them."""

import base64
from collections.abc import AsyncIterator
from typing import Any, Final

import anthropic
import openai
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
    """Return the value at a path like `messages.0.content`, or None."""
    for step in path.split("."):
        if isinstance(body, list):
            body = body[int(step)] if int(step) < len(body) else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body


def compare_values(body: Any, expected: dict[str, Any]) -> None:
    assert {path: look_up(body, path) for path in expected} == expected


def build_question(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


def build_chat_image(**link: Any) -> list[dict[str, Any]]:
    return build_question({"type": "image_url", "image_url": link})


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
    ("chat", {"messages": build_chat_image(url=PHOTO_URL, detail="low")},
     {"messages.0.content": [{"type": "text", "text": "What is this?"},
                             {"type": "image_url", "image_url": {"url": PHOTO_URL, "detail": "low"}}]}),
    ("chat", {"messages": build_chat_image(url=DATA_URL)},
     {"messages.0.content.1": {"type": "image_url", "image_url": {"url": DATA_URL}}}),
    ("vllm", {"messages": build_chat_image(url=DATA_URL)},
     {"messages.0.content.1": {"type": "image_url", "image_url": {"url": DATA_URL}}}),
    ("responses", {"messages": build_chat_image(url=PHOTO_URL)},
     {"input.0.content.1": {"type": "input_image", "image_url": PHOTO_URL, "detail": "auto"}}),
    ("claude", {"messages": build_chat_image(url=DATA_URL)}, {"messages.0.content.1": CLAUDE_IMAGE}),
    ("claude", {"messages": build_chat_image(url=PHOTO_URL)}, {"messages.0.content.1": CLAUDE_PHOTO}),
    ("claude", {"messages": MARKED},
     {"system": [{"type": "text", "text": "Rules.", "cache_control": LONG_MARK}, {"type": "text", "text": "Now."}],
      "messages.0.content": [{"type": "text", "text": "Book.", "cache_control": MARK}, {"type": "text", "text": "Ask."}]}),
    ("chat", {"messages": MARKED}, {"messages.2.content": [{"type": "text", "text": "Book."}, {"type": "text", "text": "Ask."}]}),
    ("cached", {"messages": MARKED},
     {"messages.2.content.0": {"type": "text", "text": "Book.", "prompt_cache_breakpoint": {"mode": "explicit"}}}),
    ("claude", {"tools": [{**TOOLS[0], "cache_control": MARK}, TOOLS[1]]},
     {"tools.0.cache_control": MARK, "tools.1.cache_control": None}),
]  # fmt: skip


RESPONSES: Final[list[tuple[str, dict[str, Any], dict[str, Any]]]] = [
    ("responses", {"temperature": 0.5, "top_p": 0.4, "max_output_tokens": 99},
     {"temperature": 0.5, "top_p": 0.4, "max_output_tokens": 99}),
    ("reasoner", {"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning.effort": "high", "reasoning.summary": "auto"}),
    ("reasoner", {"reasoning": {"generate_summary": "concise"}}, {"reasoning.summary": "concise", "reasoning.effort": None}),
    ("chat", {"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
    ("claude", {"reasoning": {"effort": "low"}}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
    ("claude-newer", {"reasoning": {"effort": "minimal"}}, {"thinking": {"type": "adaptive"}, "output_config.effort": "low"}),
    ("responses", {"text": {"verbosity": "low"}}, {"text.verbosity": "low"}),
    ("responses", {"service_tier": "flex"}, {"service_tier": "flex"}),
    ("claude", {"extra_body": {"top_k": 9}}, {"top_k": 9}),
    ("responses", {"tools": FLAT_TOOLS, "tool_choice": {"type": "function", "name": "mul"}},
     {"tool_choice": {"type": "function", "name": "mul"}, "tools.0.name": "add"}),
    ("responses", {"tools": FLAT_TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "mul"}]}},
     {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "mul"}]}, "tools.0.name": "add"}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PHOTO_URL, "detail": "high"}]}]},
     {"input.0.content": [{"type": "input_image", "image_url": PHOTO_URL, "detail": "high"}]}),
    ("claude", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA_URL}]}]},
     {"messages.0.content": [CLAUDE_IMAGE]}),
    ("responses", {"input": [{"role": "user", "content": "x"}, {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
                             {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": DATA_URL}]}]},
     {"input.2.output": [{"type": "input_image", "image_url": DATA_URL, "detail": "auto"}]}),
]  # fmt: skip


TOOL_TALK: Final = [
    {"role": "user", "content": "look"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "add", "input": {}, "cache_control": MARK}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True, "cache_control": LONG_MARK,
                                  "content": [{"type": "text", "text": "seen"}, CLAUDE_IMAGE]}]},
]  # fmt: skip
MESSAGES: Final[list[tuple[str, dict[str, Any], dict[str, Any]]]] = [
    ("claude", {"extra_body": {"temperature": 0.5, "top_p": 0.4, "top_k": 5}, "stop_sequences": ["x"]},
     {"temperature": 0.5, "top_p": 0.4, "top_k": 5, "stop_sequences": ["x"]}),
    ("vllm", {"extra_body": {"top_k": 5}, "stop_sequences": ["x"]}, {"top_k": 5, "stop": ["x"]}),
    ("claude", {"service_tier": "standard_only"}, {"service_tier": "standard_only"}),
    ("chat", {"service_tier": "standard_only"}, {"service_tier": "default"}),
    ("claude", {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 4000},
     {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("reasoner", {"thinking": {"type": "enabled", "budget_tokens": 20_000}, "max_tokens": 30_000}, {"reasoning.effort": "high"}),
    ("claude-newer", {"output_config": {"effort": "xhigh"}}, {"output_config.effort": "xhigh", "thinking": None}),
    ("reasoner", {"output_config": {"effort": "low"}}, {"reasoning.effort": "low"}),
    ("claude", {"tools": CLAUDE_TOOLS, "tool_choice": {"type": "tool", "name": "mul", "disable_parallel_tool_use": True}},
     {"tool_choice": {"type": "tool", "name": "mul", "disable_parallel_tool_use": True}, "tools.0.name": "add"}),
    ("chat", {"tools": CLAUDE_TOOLS, "tool_choice": {"type": "tool", "name": "add"}}, {"tool_choice": ADD_BY_NAME}),
    ("claude", {"cache_control": LONG_MARK}, {"cache_control": LONG_MARK}),
    ("claude", {"tools": [CLAUDE_TOOLS[0], {**CLAUDE_TOOLS[1], "cache_control": LONG_MARK}]},
     {"tools.0.cache_control": None, "tools.1.cache_control": LONG_MARK}),
    ("claude", {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": LONG_MARK}]},
     {"system": [{"type": "text", "text": "a\n\nb", "cache_control": LONG_MARK}]}),
    ("claude", {"messages": build_question(CLAUDE_IMAGE)}, {"messages.0.content.1": CLAUDE_IMAGE}),
    ("claude", {"messages": build_question(CLAUDE_PHOTO)}, {"messages.0.content.1": CLAUDE_PHOTO}),
    ("claude", {"messages": build_question({**CLAUDE_IMAGE, "cache_control": MARK})},
     {"messages.0.content.1": {**CLAUDE_IMAGE, "cache_control": MARK}}),
    ("chat", {"messages": build_question(CLAUDE_IMAGE)},
     {"messages.0.content.1": {"type": "image_url", "image_url": {"url": DATA_URL}}}),
    ("claude", {"messages": TOOL_TALK, "tools": CLAUDE_TOOLS},
     {"messages.1.content.0.cache_control": {"type": "ephemeral", "ttl": "1h"},
      "messages.2.content.0.is_error": True,
      "messages.2.content.0.cache_control": LONG_MARK,
      "messages.2.content.0.content": [{"type": "text", "text": "seen"}, CLAUDE_IMAGE]}),
]  # fmt: skip


WIRE_CASES: Final = [
    (method, *case)
    for method, cases in (("ask_chat", CHAT), ("ask_response", RESPONSES), ("ask_message", MESSAGES))
    for case in cases
]


@pytest.mark.parametrize(
    ("method", "model", "sent", "received"),
    WIRE_CASES,
    ids=[f"{method}-{model}-{'+'.join(sent)}" for method, model, sent, _ in WIRE_CASES],
)
async def test_fields_of_each_wire_reach_the_provider(
    served: GatewayClient,
    fake_provider: FakeProvider,
    method: str,
    model: str,
    sent: dict[str, Any],
    received: dict[str, Any],
) -> None:
    fake_provider.queue_text("seen")
    await getattr(served, method)(**{"model": model, **sent})
    compare_values(fake_provider.requests[-1].body, received)


UNSUPPORTED: Final[list[tuple[str, dict[str, Any], str]]] = [
    # model, what the client sends, the field that its model cannot apply
    ("claude", {"seed": 1}, "seed"),
    ("claude", {"logit_bias": {"1": 1}}, "logit_bias"),
    ("claude", {"presence_penalty": 0.5}, "presence_penalty"),
    ("claude", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("claude", {"verbosity": "low"}, "verbosity"),
    ("claude-newer", {"temperature": 0.5}, "temperature"),
    ("claude-newer", {"top_p": 0.5}, "top_p"),
    ("reasoner", {"temperature": 0.5}, "temperature"),
    ("reasoner", {"logit_bias": {"1": 1}}, "logit_bias"),
    ("chat", {"extra_body": {"top_k": 5}}, "top_k"),
    ("responses", {"extra_body": {"top_k": 5}}, "top_k"),
    ("chat", {"extra_body": {"min_p": 0.5}}, "min_p"),
    ("claude", {"extra_body": {"repetition_penalty": 1.5}}, "repetition_penalty"),
    ("ollama", {"tools": TOOLS, "tool_choice": ADD_BY_NAME}, "tool_choice"),
    ("ollama", {"logit_bias": {"1": 1}}, "logit_bias"),
    ("local", {"reasoning_effort": "low"}, "reasoning_effort"),
    ("local", {"messages": build_chat_image(url=DATA_URL)}, "messages"),
    ("deepseek", {"messages": build_chat_image(url=DATA_URL)}, "messages"),
    ("vllm", {"messages": build_chat_image(url=PHOTO_URL)}, "messages"),
    ("ollama", {"messages": build_chat_image(url=PHOTO_URL)}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "sent", "option"), UNSUPPORTED)
async def test_an_option_that_the_model_cannot_apply_is_refused_by_name(
    served: GatewayClient, fake_provider: FakeProvider, model: str, sent: dict[str, Any], option: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        await served.ask_chat(**{"model": model, "messages": HELLO, **sent})
    assert (refusal.value.param, refusal.value.code) == (option, "unsupported_option")
    assert model in refusal.value.message
    assert fake_provider.requests == []


async def test_responses_name_their_own_fields_for_what_a_model_cannot_apply(served: GatewayClient) -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": DATA_URL}]}
    for sent, param in (
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [image]}, "input"),
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            await served.ask_response(**{"model": "local", **sent})
        assert (refusal.value.param, refusal.value.code) == (param, "unsupported_option")


NEUTRAL: Final[list[tuple[str, dict[str, Any]]]] = [
    ("claude", {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "verbosity": "medium"}),
    ("claude-newer", {"temperature": 1, "top_p": 1}),
    ("reasoner", {"temperature": 1, "presence_penalty": 0}),
    ("local", {"reasoning_effort": "none", "service_tier": "flex"}),
    ("ollama", {"tools": TOOLS, "tool_choice": "auto"}),
]


@pytest.mark.parametrize(("model", "sent"), NEUTRAL)
async def test_values_that_ask_for_nothing_are_accepted_by_every_model(
    served: GatewayClient, model: str, sent: dict[str, Any]
) -> None:
    assert (await served.ask_chat(model=model, messages=HELLO, **sent)).choices[0].message.content == "hello"


async def test_chat_only_options_are_refused_for_a_model_over_responses_alone(served: GatewayClient) -> None:
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        await served.ask_chat(model="only-responses", logit_bias={"1": 1})


async def test_a_refusal_of_the_provider_is_handed_on_over_each_api(
    served: GatewayClient, fake_provider: FakeProvider
) -> None:
    for ask, refused in (
        (served.ask_chat, openai.BadRequestError),
        (served.ask_response, openai.BadRequestError),
        (served.ask_message, anthropic.BadRequestError),
    ):
        fake_provider.queue_failure(400, "Unsupported value: 'reasoning_effort' does not support 'max'.")
        with pytest.raises(refused, match="does not support 'max'"):
            await ask(model="chat")


async def test_an_image_url_of_an_undeclared_host_is_refused(
    served: GatewayClient, fake_provider: FakeProvider
) -> None:
    """A provider that loads an image would carry what its URL says out of the sandbox."""
    for url in ("https://other.example/x.png?secret", "https://example.com:8443/x", "https://127.0.0.1/x"):
        with pytest.raises(openai.BadRequestError, match="egress") as refusal:
            await served.ask_chat(model="chat", messages=build_chat_image(url=url))
        assert refusal.value.code == "image_host_not_declared"
    assert fake_provider.requests == []


BAD_IMAGES: Final[list[tuple[dict[str, Any], str]]] = [
    ({"url": "http://example.com/x.png"}, "https"),
    ({"url": "ftp://example.com/x.png"}, "https"),
    ({"url": "https://user:word@example.com/x.png"}, "https"),
    ({"url": "https://example.com/" + "x" * 3000}, "2048"),
    ({"url": "https://example.com/a b"}, "https"),
    ({"url": "data:image/png;base64,***"}, "base64"),
    ({"url": "data:image/png;base64,"}, "empty"),
    ({"url": f"data:text/html;base64,{PIXEL}"}, "text/html"),
    ({"url": f"data:image/svg+xml;base64,{PIXEL}"}, "svg"),
    ({"url": DATA_URL, "detail": "huge"}, "detail"),
    ({"url": DATA_URL, "odd": 1}, "odd"),
    ({}, "url"),
]


@pytest.mark.parametrize(("link", "word"), BAD_IMAGES)
async def test_bad_images_are_refused_with_their_place(served: GatewayClient, link: dict[str, Any], word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word) as refusal:
        await served.ask_chat(model="chat", messages=build_question({"type": "image_url", "image_url": link}))
    assert str(refusal.value.param).startswith("messages[0].content[1]")


async def test_images_are_counted_and_refused_in_other_places(served: GatewayClient) -> None:
    many = [{"type": "image_url", "image_url": {"url": DATA_URL}}] * 101
    with pytest.raises(openai.BadRequestError, match="101"):
        await served.ask_chat(model="chat", messages=[{"role": "user", "content": many}])
    for role in ("system", "assistant"):
        with pytest.raises(openai.BadRequestError, match="image_url"):
            await served.ask_chat(model="chat", messages=[{"role": role, "content": many[:1]}, *HELLO])
    file_source = {"type": "image", "source": {"type": "file", "file_id": "f"}}
    with pytest.raises(anthropic.BadRequestError, match="file"):
        await served.ask_message(model="claude", messages=build_question(file_source))
