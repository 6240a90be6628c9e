"""The answer of a run is the same whether it is read while it comes or at its end, or reading it fails."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.reader import AnswerChanged, RunAnswerReader, render_result
from domain.events import ExecutionEvent
from domain.llms import ModelReply, ReasoningDelta, TextDelta, ToolCallDelta

AT = datetime(2026, 1, 1, tzinfo=UTC)
# What an agent's model wrote at a step: tries that were discarded, and the one that stayed.
STEPS = st.lists(st.lists(st.lists(st.sampled_from("ab"), max_size=4), min_size=1, max_size=3), min_size=1, max_size=3)


def build_event(kind: Any, **data: Any) -> ExecutionEvent:
    return ExecutionEvent(type=kind, data=data, at=AT)


def build_log(steps: list[list[list[str]]]) -> list[ExecutionEvent]:
    events = []
    for number, tries in enumerate(steps, 1):
        for place, pieces in enumerate(tries):
            if place:
                events.append(build_event("warning", message="again", step=str(number), discards=str(number)))
            events += [build_event("token", content=piece, step=str(number)) for piece in pieces]
    return events


def read_answer(events: list[ExecutionEvent], result: Any, **options: Any) -> tuple[str, ModelReply]:
    """Return the text of the pieces, and the reply."""
    reader = RunAnswerReader(**options)
    parts = [part for event in events for part in reader.read_event(event)]
    parts += reader.end_answer(SimpleNamespace(output_data=result))  # type: ignore[arg-type]
    reply = parts[-1]
    assert isinstance(reply, ModelReply)
    return "".join(part.text for part in parts if isinstance(part, TextDelta)), reply


@given(STEPS)
def test_streamed_text_is_the_whole_answer_or_fails(steps: list[list[list[str]]]) -> None:
    events, result = build_log(steps), {"content": "".join(steps[-1][-1])}
    whole, reply = read_answer(events, result, is_streamed=False)
    kept_texts = ["".join(tries[-1]) for tries in steps]
    assert whole == reply.message.content == "\n\n".join(text for text in kept_texts if text)
    try:
        streamed, streamed_reply = read_answer(events, result)
    except AnswerChanged:
        # Only where a try was discarded whose text is no beginning of the one that stayed.
        assert any(not "".join(tries[-1]).startswith("".join(pieces)) for tries in steps for pieces in tries[:-1])
        return
    assert streamed == streamed_reply.message.content == whole


def test_steps_of_other_agents_are_no_part_of_the_answer() -> None:
    events = [
        build_event("token", content="Asked.", step="1"),
        build_event("token", content="secret", step="1.0/1"),
        build_event("thinking", content="secret", step="1.0/1"),
        build_event("token", content="Done.", step="2"),
        build_event("cost", prompt_tokens=3, completion_tokens=2, cached_tokens=0, reasoning_tokens=None),
        build_event("warning", message="cut", step="2", finish="length"),
    ]
    text, reply = read_answer(events, {"content": "Done."})
    assert (text, reply.finish) == ("Asked.\n\nDone.", "length")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 5


def test_calls_of_the_callers_tools_end_the_answer() -> None:
    call = {"id": "call_1", "name": "add", "arguments": "{}"}
    reader = RunAnswerReader()
    result = {"content": "", "tool_calls": [call]}
    parts = list(reader.end_answer(SimpleNamespace(output_data=result)))  # type: ignore[arg-type]
    assert parts[0] == ToolCallDelta(index=0, id="call_1", name="add", arguments="{}")
    assert isinstance(parts[-1], ModelReply)
    assert parts[-1].finish == "tool_calls"


def test_json_comes_at_the_end() -> None:
    events = [build_event("token", content='{"a"', step="1"), build_event("thinking", content="Hm", step="1")]
    reader = RunAnswerReader(is_result=True)
    assert [part for event in events for part in reader.read_event(event)] == [ReasoningDelta("Hm")]
    assert read_answer(events, {"a": 1}, is_result=True)[0] == '{"a":1}'


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": "Hello"}, "Hello"),
        ({"result": "Hello"}, "Hello"),
        ({"content": 5}, '{"content":5}'),
        ({"content": "Hello", "other": 1}, '{"content":"Hello","other":1}'),
        ("Hello", "Hello"),
        (None, ""),
        ([1], "[1]"),
    ],
)
def test_results_are_shown_as_text(result: Any, text: str) -> None:
    assert render_result(result) == text
