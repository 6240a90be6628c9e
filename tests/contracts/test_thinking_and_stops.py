"""Convert thinking for each API, and carry stop sequences and failed results of tools there and back."""

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.llms import ChatMessage, ModelOptions, ModelToolCall, ThinkingOptions
from infra.llm import PydanticLlm
from infra.llm.thinking import convert_thinking
from tests.support.fake_provider import FakeProvider
from tests.support.model_calls import ADD_TOOL, build_model_call, collect_reply
from tests.support.scripted_model import call_model_with_body

ADAPTIVE: Final = {"anthropic_supports_adaptive_thinking": True}
THINKING: Final[list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]] = [
    # wire, what is asked, the model's profile, the settings
    ("chat", {"mode": "enabled", "max_tokens": 1024}, {}, {"openai_reasoning_effort": "low"}),
    ("chat", {"mode": "enabled", "max_tokens": 4096}, {}, {"openai_reasoning_effort": "low"}),
    ("chat", {"mode": "enabled", "max_tokens": 4097}, {}, {"openai_reasoning_effort": "medium"}),
    ("responses", {"mode": "enabled", "max_tokens": 16_385}, {}, {"openai_reasoning_effort": "high"}),
    ("responses", {"mode": "adaptive"}, {}, {"openai_reasoning_effort": "medium"}),
    ("chat", {"mode": "disabled"}, {}, {"thinking": False}),
    ("chat", {"mode": "disabled", "effort": "none"}, {}, {"openai_reasoning_effort": "none"}),
    ("chat", {"effort": "xhigh"}, {}, {"openai_reasoning_effort": "xhigh"}),
    ("chat", {"summary": "auto"}, {}, {}),
    ("responses", {"summary": "auto"}, {}, {"openai_reasoning_summary": "auto"}),
    (
        "responses",
        {"mode": "adaptive", "effort": "low", "summary": "concise"},
        {},
        {"openai_reasoning_effort": "low", "openai_reasoning_summary": "concise"},
    ),
    ("gemini", {"mode": "adaptive", "effort": "low"}, {}, {"thinking": "low"}),
    ("gemini", {"mode": "disabled", "effort": "none"}, {}, {"thinking": False}),
    ("gemini", {"mode": "enabled", "max_tokens": 9000}, {}, {"thinking": "medium"}),
    (
        "anthropic",
        {"mode": "enabled", "max_tokens": 2000, "display": "omitted"},
        {},
        {"anthropic_thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}},
    ),
    ("anthropic", {"mode": "adaptive"}, {}, {"anthropic_thinking": {"type": "adaptive"}}),
    (
        "anthropic",
        {"mode": "adaptive", "effort": "high"},
        ADAPTIVE,
        {"anthropic_thinking": {"type": "adaptive"}, "anthropic_effort": "high"},
    ),
    (
        "anthropic",
        {"mode": "adaptive", "effort": "minimal"},
        ADAPTIVE,
        {"anthropic_thinking": {"type": "adaptive"}, "anthropic_effort": "low"},
    ),
    (
        "anthropic",
        {"mode": "adaptive", "effort": "high"},
        {},
        {"anthropic_thinking": {"type": "enabled", "budget_tokens": 16_384}},
    ),
    ("anthropic", {"effort": "max"}, {}, {"anthropic_effort": "max"}),
    ("anthropic", {"mode": "disabled", "effort": "none"}, {}, {"anthropic_thinking": {"type": "disabled"}}),
    ("anthropic", {"summary": "auto"}, {}, {}),
]


@pytest.mark.parametrize(("wire", "asked", "profile", "expected"), THINKING)
def test_thinking_becomes_the_settings_of_each_wire(
    wire: str, asked: dict[str, Any], profile: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert convert_thinking(ThinkingOptions(**asked), wire, profile) == expected


@pytest.mark.parametrize("wire", ["chat", "responses", "anthropic", "gemini"])
def test_no_thinking_options_set_nothing(wire: str) -> None:
    assert convert_thinking(None, wire) == {}


@given(st.sampled_from(["chat", "responses", "gemini"]), st.integers(1024, 200_000), st.integers(1024, 200_000))
def test_a_larger_budget_never_becomes_a_smaller_effort(wire: str, budget: int, second_budget: int) -> None:
    efforts = ["low", "medium", "high"]
    less, more = (
        next(iter(convert_thinking(ThinkingOptions(mode="enabled", max_tokens=tokens), wire).values()))
        for tokens in sorted((budget, second_budget))
    )
    assert efforts.index(less) <= efforts.index(more)


@pytest.mark.parametrize("most", [1025, 2047, 2048, 100_000])
async def test_thinking_of_anthropic_fits_into_the_answer(
    fake_provider: FakeProvider, llm: PydanticLlm, most: int
) -> None:
    """An effort becomes a budget of older models, which Anthropic refuses unless the answer may be longer."""
    options = ModelOptions(max_tokens=most, thinking=ThinkingOptions(mode="adaptive", effort="max"))
    await collect_reply(llm, build_model_call(fake_provider, "anthropic", "claude-sonnet-4-5", options=options))
    thinking = fake_provider.requests[-1].body["thinking"]
    assert thinking["type"] == "disabled" if most < 2048 else 1024 <= thinking["budget_tokens"] < most


def render_chat_stop(**ending: Any) -> str:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "one "}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **ending}]},
    ]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("ending", "stop_sequence"),
    [
        ({"stop_reason": "END"}, "END"),  # vLLM
        ({"matched_stop": "END"}, "END"),  # SGLang
        ({"matched_stop": 151_643}, None),  # the number of a token
        ({"stop_reason": "other"}, None),
        ({}, None),
    ],
)
async def test_the_stop_sequence_of_chat_completions_is_reported(
    ending: dict[str, Any], stop_sequence: str | None
) -> None:
    result = await call_model_with_body(render_chat_stop(**ending), options=ModelOptions(stop=("END",)))
    assert result.reply is not None, result.error
    assert (result.reply.finish, result.reply.stop_sequence) == ("stop", stop_sequence)


@pytest.mark.parametrize("stop_sequence", ["END", None])
async def test_the_stop_sequence_of_anthropic_is_reported(stop_sequence: str | None) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
    reason = "end_turn" if stop_sequence is None else "stop_sequence"
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "one "}}),
        ("content_block_stop", {"index": 0}),
        (
            "message_delta",
            {"delta": {"stop_reason": reason, "stop_sequence": stop_sequence}, "usage": {"output_tokens": 2}},
        ),
        ("message_stop", {}),
    ]
    body = "".join(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in events)
    options = ModelOptions(stop=("END",))
    result = await call_model_with_body(body, provider="anthropic", model="claude-sonnet-4-5", options=options)
    assert result.reply is not None, result.error
    assert (result.reply.finish, result.reply.stop_sequence) == ("stop", stop_sequence)


FAILED_CALL: Final = (
    ChatMessage(role="user", content="add"),
    ChatMessage(role="assistant", tool_calls=(ModelToolCall(id="c1", name="add", arguments="{}"),)),
    ChatMessage(role="tool", tool_call_id="c1", name="add", content="no such number", is_error=True),
)


@pytest.mark.parametrize("is_error", [True, False])
async def test_a_failed_result_is_marked_for_each_api(
    fake_provider: FakeProvider, llm: PydanticLlm, is_error: bool
) -> None:
    *talk, result = FAILED_CALL
    messages = (*talk, ChatMessage(role="tool", tool_call_id="c1", name="add", content="3") if not is_error else result)
    for provider in ("openai", "openai_compatible", "anthropic"):
        fake_provider.queue_text("seen")
        await collect_reply(llm, build_model_call(fake_provider, provider, messages=messages, tools=(ADD_TOOL,)))
    over_responses, over_chat, over_anthropic = (request.body for request in fake_provider.requests[-3:])
    block = over_anthropic["messages"][-1]["content"][0]
    assert block["is_error"] is is_error
    for text in (over_responses["input"][-1]["output"], over_chat["messages"][-1]["content"]):
        assert json.loads(text) == ({"error": "no such number"} if is_error else 3)
