"""Ids of tool calls on the wire: fit for the provider, one for each call, the same in call and result, and stable."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.llms import ChatMessage, ModelTarget, ModelToolCall
from infra.llm.call_ids import map_call_ids

CLAUDE = (ModelTarget(name="m", provider="anthropic", model="m"), False)
OPENAI = (ModelTarget(name="m", provider="openai", model="m"), False)
CHAT = (ModelTarget(name="m", provider="openai_compatible", model="m", base_url="https://api.moonshot.ai/v1"), True)
MISTRAL = (ModelTarget(name="m", provider="openai_compatible", model="m", base_url="https://api.mistral.ai/v1"), True)
FITS = [
    (CLAUDE, r"[a-zA-Z0-9_-]{1,64}"),
    (OPENAI, r"[a-zA-Z0-9_-]{1,64}"),
    (CHAT, r"[!-~]{1,40}"),
    (MISTRAL, r"[a-zA-Z0-9]{9}"),
]


def turn(*ids: str) -> list[ChatMessage]:
    """An answer with calls of these ids, and their results in order."""
    calls = tuple(ModelToolCall(id=one, name="f", arguments="{}") for one in ids)
    return [
        ChatMessage(role="assistant", tool_calls=calls),
        *(ChatMessage(role="tool", tool_call_id=one) for one in ids),
    ]


def ids_of(messages: list[ChatMessage]) -> tuple[list[str], list[str | None]]:
    made = [call.id for message in messages for call in message.tool_calls]
    return made, [message.tool_call_id for message in messages if message.role == "tool"]


@pytest.mark.parametrize(("wire", "fits"), FITS)
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
def test_ids_fit_and_are_one_for_each_call(wire: Any, fits: str, turns: list[list[str]]) -> None:
    messages = [message for ids in turns for message in turn(*ids)]
    made, told = ids_of(map_call_ids(messages, *wire))
    assert made == told
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(fits, one) for one in made)
    # The same in the next request, which holds more.
    again, _ = ids_of(map_call_ids([*messages, *turn("more")], *wire))
    assert again[: len(made)] == made


def test_ids_that_fit_stay() -> None:
    for wire, ids in ((CLAUDE, "toolu_01-A"), (OPENAI, "call_x"), (CHAT, "functions.a:0"), (MISTRAL, "aB3dEfGh9")):
        assert ids_of(map_call_ids(turn(ids), *wire)) == ([ids], [ids])


def test_results_in_another_order_and_of_no_call() -> None:
    call, first, second = turn("a:1", "b:2")
    made, told = ids_of(map_call_ids([call, second, first], *CLAUDE))
    assert told == made[::-1]
    _, [alone] = ids_of(map_call_ids([ChatMessage(role="tool", tool_call_id="no:call")], *CLAUDE))
    assert re.fullmatch("[a-zA-Z0-9_-]+", alone or "")


@given(st.lists(st.lists(st.sampled_from(["a", "a:0", "a.0", "b" * 70, ""]), min_size=1, max_size=4), max_size=6))
def test_whatever_comes(turns: list[list[str]]) -> None:
    messages = [message for ids in turns for message in turn(*ids)]
    for wire, fits in FITS:
        made, told = ids_of(map_call_ids(messages, *wire))
        assert made == told
        assert len(set(made)) == len(made)
        assert all(re.fullmatch(fits, one) for one in made)
