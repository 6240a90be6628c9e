"""Test ids of tool calls on the wire: valid for the provider, unique, equal in call and result, and stable."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.llms import ChatMessage, ModelTarget, ModelToolCall
from infra.llm.call_ids import map_call_ids

CLAUDE_TARGET = (ModelTarget(name="m", provider="anthropic", model="m"), False)
OPENAI_TARGET = (ModelTarget(name="m", provider="openai", model="m"), False)
MOONSHOT_TARGET = (
    ModelTarget(name="m", provider="openai_compatible", model="m", base_url="https://api.moonshot.ai/v1"),
    True,
)
MISTRAL_TARGET = (
    ModelTarget(name="m", provider="openai_compatible", model="m", base_url="https://api.mistral.ai/v1"),
    True,
)
ID_PATTERNS = [
    (CLAUDE_TARGET, r"[a-zA-Z0-9_-]{1,64}"),
    (OPENAI_TARGET, r"[a-zA-Z0-9_-]{1,64}"),
    (MOONSHOT_TARGET, r"[!-~]{1,40}"),
    (MISTRAL_TARGET, r"[a-zA-Z0-9]{9}"),
]


def build_turn(*ids: str) -> list[ChatMessage]:
    """Return an answer with calls of these ids, and their results in order."""
    calls = tuple(ModelToolCall(id=call_id, name="f", arguments="{}") for call_id in ids)
    return [
        ChatMessage(role="assistant", tool_calls=calls),
        *(ChatMessage(role="tool", tool_call_id=call_id) for call_id in ids),
    ]


def list_ids(messages: list[ChatMessage]) -> tuple[list[str], list[str | None]]:
    call_ids = [call.id for message in messages for call in message.tool_calls]
    return call_ids, [message.tool_call_id for message in messages if message.role == "tool"]


@pytest.mark.parametrize(("wire", "pattern"), ID_PATTERNS)
@pytest.mark.parametrize(
    "turns",
    [
        [["functions.a:0"]],
        [["call.1"], ["call 1:0"], ["call_1_0"]],
        [["functions.a:0"], ["functions.a:0"]],
        [["c", "c"], ["c"]],
        [["", ""]],
        [["x" * 200], ["x" * 201]],
        [["toolu_01"], ["call_abc|fc_1"], ["\u540d"], ["a\udc80"]],
        [["abcdefghi"], ["abcdefgh"]],
    ],
)
def test_call_ids_are_valid_unique_and_stable(wire: Any, pattern: str, turns: list[list[str]]) -> None:
    messages = [message for ids in turns for message in build_turn(*ids)]
    call_ids, result_ids = list_ids(map_call_ids(messages, *wire))
    assert call_ids == result_ids
    assert len(set(call_ids)) == len(call_ids)
    assert all(re.fullmatch(pattern, call_id) for call_id in call_ids)
    # The next request holds more messages and maps these to the same ids.
    later_ids, _ = list_ids(map_call_ids([*messages, *build_turn("more")], *wire))
    assert later_ids[: len(call_ids)] == call_ids


def test_valid_call_ids_are_unchanged() -> None:
    for wire, ids in (
        (CLAUDE_TARGET, "toolu_01-A"),
        (OPENAI_TARGET, "call_x"),
        (MOONSHOT_TARGET, "functions.a:0"),
        (MISTRAL_TARGET, "aB3dEfGh9"),
    ):
        assert list_ids(map_call_ids(build_turn(ids), *wire)) == ([ids], [ids])


def test_reordered_and_orphaned_results_get_valid_ids() -> None:
    call, first, second = build_turn("a:1", "b:2")
    call_ids, result_ids = list_ids(map_call_ids([call, second, first], *CLAUDE_TARGET))
    assert result_ids == call_ids[::-1]
    _, [orphan_id] = list_ids(map_call_ids([ChatMessage(role="tool", tool_call_id="no:call")], *CLAUDE_TARGET))
    assert re.fullmatch("[a-zA-Z0-9_-]+", orphan_id or "")


@given(st.lists(st.lists(st.sampled_from(["a", "a:0", "a.0", "b" * 70, ""]), min_size=1, max_size=4), max_size=6))
def test_any_turns_get_valid_unique_ids(turns: list[list[str]]) -> None:
    messages = [message for ids in turns for message in build_turn(*ids)]
    for wire, pattern in ID_PATTERNS:
        call_ids, result_ids = list_ids(map_call_ids(messages, *wire))
        assert call_ids == result_ids
        assert len(set(call_ids)) == len(call_ids)
        assert all(re.fullmatch(pattern, call_id) for call_id in call_ids)
