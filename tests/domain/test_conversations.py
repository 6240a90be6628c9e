"""Test which messages of a conversation a model reads, and how messages that callers send are read."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.llms import (
    ChatMessage,
    ConversationMessage,
    MessageImage,
    ModelToolCall,
    estimate_tokens,
    list_open_calls,
    message_to_json,
    read_conversation,
    show_message,
)
from domain.shared.errors import InvalidField
from domain.threads import choose_window, close_open_calls, split_units

TEXTS = st.text(alphabet="ab ", max_size=120)


@st.composite
def draw_conversations(draw: st.DrawFn, max_turns: int = 6) -> list[ChatMessage]:
    """Return turns: a question, maybe tool calls with all their results, and an answer."""
    messages: list[ChatMessage] = []
    for turn in range(draw(st.integers(1, max_turns))):
        messages.append(ChatMessage(role="user", content=f"{turn} {draw(TEXTS)}"))
        for answer in range(draw(st.integers(0, 2))):
            ids = [
                draw(st.sampled_from([f"c{turn}.{answer}.{number}", "same"]))
                for number in range(draw(st.integers(1, 3)))
            ]
            calls = tuple(ModelToolCall(id=call_id, name="look", arguments="{}") for call_id in ids)
            messages.append(ChatMessage(role="assistant", content=draw(TEXTS), tool_calls=calls))
            messages += [ChatMessage(role="tool", content=draw(TEXTS), tool_call_id=call_id) for call_id in ids]
        messages.append(ChatMessage(role="assistant", content=f"answer {turn} {draw(TEXTS)}"))
    return messages


@given(draw_conversations(), st.integers(0, 400), st.data())
def test_a_window_is_bounded_and_never_splits_a_pair(
    messages: list[ChatMessage], limit: int, data: st.DataObject
) -> None:
    questions = [place for place, message in enumerate(messages) if message.role == "user"]
    question = data.draw(st.sampled_from(questions))
    places = choose_window(messages, question, limit)
    assert question in places
    assert len(messages) - 1 in places
    units = split_units(messages, question)
    chosen_units = [unit for unit in units if set(range(*unit)) <= set(places)]
    assert sorted(place for unit in chosen_units for place in range(*unit)) == places
    window = [messages[place] for place in places]
    assert close_open_calls(window) == window
    # Beyond the limit, there is only what always stays.
    fixed = {unit for unit in units if unit[0] <= question < unit[1]} | {units[-1]}
    if sum(map(estimate_tokens, window)) > limit:
        assert set(chosen_units) == fixed
    # What was left out before the question would not have fitted, and is older than all that stayed.
    left_out = [unit for unit in units if unit not in chosen_units]
    if left_out:
        newest_size = sum(estimate_tokens(message) for message in messages[slice(*left_out[-1])])
        assert sum(map(estimate_tokens, window)) + newest_size > limit
        assert all(unit > left_out[-1] or unit in fixed for unit in chosen_units)
    if sum(map(estimate_tokens, messages)) <= limit:
        assert places == list(range(len(messages)))


@given(draw_conversations(), st.data())
def test_calls_without_results_are_closed_at_any_place(messages: list[ChatMessage], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(messages)))
    end = data.draw(st.integers(start, len(messages)))
    closed = close_open_calls(messages[start:end])
    waiting: list[str] = []
    for message in closed:
        if message.role == "tool":
            assert message.tool_call_id in waiting
            waiting.remove(message.tool_call_id)
            continue
        assert waiting == []
        waiting = [call.id for call in message.tool_calls]
    assert waiting == []
    assert [message for message in closed if message.role != "tool"] == [
        message for message in messages[start:end] if message.role != "tool"
    ]


@given(draw_conversations())
def test_what_is_shown_can_be_sent(messages: list[ChatMessage]) -> None:
    rendered = msgspec.json.encode([message_to_json(show_message(message)) for message in messages])
    assert read_conversation(msgspec.json.decode(rendered, type=list[ConversationMessage])) == messages


def _convert(*messages: dict[str, Any]) -> list[ConversationMessage]:
    return msgspec.convert(list(messages), list[ConversationMessage])


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASKING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        ([], "messages", "1 to 2000"),
        ([{"role": "user"}], "messages[0].content", "is required"),
        ([{"role": "user", "content": []}], "messages[0].content", "is required"),
        ([USER, {"role": "tool", "content": "42"}], "messages[1].tool_call_id", "is required"),
        ([USER, RESULT], "messages[1].tool_call_id", "answers no call"),
        ([ASKING, RESULT, RESULT], "messages[2].tool_call_id", "answers no call"),
        ([USER, ASKING], "messages[1].tool_calls", "has no result"),
        ([USER, ASKING, USER, RESULT], "messages[1].tool_calls", "has no result"),
        ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls", "role assistant"),
        ([{**USER, "tool_call_id": "c1"}], "messages[0].tool_call_id", "role tool"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]", "must have 'text'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}],
            "messages[0].content[0].image_url.url",
            "https",
        ),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/y.png"}}]}],
            "messages[0].content",
            "must be text",
        ),
    ],
)
def test_what_is_wrong_with_a_message_is_named(messages: list[dict[str, Any]], field: str, reason: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_conversation(_convert(*messages))
    [error] = caught.value.errors
    assert error.field == field
    assert reason in error.message


def test_results_may_answer_the_calls_of_the_thread() -> None:
    assert list_open_calls(read_conversation(_convert(RESULT), open_calls=["c1"])) == []
    tail = [ChatMessage(role="assistant", tool_calls=(ModelToolCall(id="c1", name="look", arguments="{}"),))]
    assert list_open_calls(tail) == ["c1"]
    assert list_open_calls([*tail, ChatMessage(role="tool", content="42", tool_call_id="c1")]) == []


def test_images_stay_with_their_message() -> None:
    url = "data:image/png;base64,aGVsbG8="
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    [message] = read_conversation(_convert({"role": "user", "content": content}))
    assert message.parts[1] == MessageImage(data=b"hello", media_type="image/png", detail="low")
    stored = msgspec.json.decode(msgspec.json.encode(message), type=ChatMessage)
    assert message_to_json(show_message(stored))["content"] == content
