"""Test answers of models in all forms that servers send: readable parts are read, and missing parts are an error."""

import json
from typing import Any

import pytest

from domain.llms import ModelUsage, ReportedUsage
from tests.support.case_inputs import find_case_folder
from tests.support.scripted_model import call_model, call_model_with_body, serve_body
from workers.model_calls import UsageMeter

DONE_EVENT = "data: [DONE]\n\n"


def format_chunk(finish: Any = None, usage: Any = None, **delta: Any) -> str:
    data: dict[str, Any] = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return f"data: {json.dumps(data if usage is None else {**data, 'usage': usage})}\n\n"


def format_event(data: Any, name: str = "") -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


STOP_EVENTS = format_chunk("stop") + DONE_EVENT
PARIS_CHUNKS = format_chunk(content="Par") + format_chunk(content="is.")


# Thoughts in tags


@pytest.mark.parametrize(
    ("model", "text", "thoughts"),
    [
        ("empty-think", "Paris.", "\n\n"),
        ("tag-in-the-answer", "The tag <think> opens a thought.", ""),
        ("space-before", "Paris.", "Let me see."),
    ],
)
async def test_think_tags_are_separated_from_text(serve_case, model: str, text: str, thoughts: str):
    result = await call_model(await serve_case(find_case_folder("01-think-tags-in-pieces")), model)
    assert (result.text, result.thoughts) == (text, thoughts)


async def test_answer_with_only_thoughts_is_malformed(serve_case):
    result = await call_model(await serve_case(find_case_folder("01-think-tags-in-pieces")), "ends-while-thinking")
    assert result.thoughts == "Let me see."
    assert result.error is not None
    assert (result.error.kind, result.error.is_transient) == ("malformed", True)
    assert "neither text nor a tool call" in result.error.message


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("content", "text", "thoughts"),
    [
        ("<think>a</think>b", "b", "a"),
        ("\n <think>a <b> </thin> c</think>\n\nb </think> <think>c", "b </think> <think>c", "a <b> </thin> c"),
        ("<think>a</think>\n<think>b</think>c", "c", "ab"),
        ("</think>\n\nb", "b", ""),
        ("  <thin>b", "  <thin>b", ""),
        ("<think", "<think", ""),
        ("< think>b", "< think>b", ""),
        ("`<think>`", "`<think>`", ""),
    ],
)
async def test_think_tags_are_found_for_any_chunk_size(size: int, content: str, text: str, thoughts: str):
    pieces = "".join(format_chunk(content=content[start : start + size]) for start in range(0, len(content), size))
    result = await call_model_with_body(pieces + STOP_EVENTS)
    assert (result.text, result.thoughts) == (text, thoughts)


# Tool calls

FIRST_ARGUMENTS, SECOND_ARGUMENTS = '{"path": "a.txt", "content": "A"}', '{"path": "b.txt", "content": "B"}'


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        ("index-0-in-fragments", [FIRST_ARGUMENTS, SECOND_ARGUMENTS]),
        ("id-as-number", [FIRST_ARGUMENTS]),
        ("calls-as-object", [FIRST_ARGUMENTS]),
        ("name-on-each-fragment", [FIRST_ARGUMENTS]),
    ],
)
async def test_badly_numbered_parallel_calls_are_separated(serve_case, model: str, calls: list[str]):
    result = await call_model(await serve_case(find_case_folder("02-parallel-tool-calls-numbered-badly")), model)
    assert result.calls == [("filesystem_write", arguments) for arguments in calls]
    assert result.reply is not None
    assert result.reply.finish == "tool_calls"


def build_call_piece(index: Any = None, id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:  # noqa: A002
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        # two whole calls, both number 0, without ids
        (
            [build_call_piece(0, "", "f", '{"a": 1}'), build_call_piece(0, "", "f", '{"a": 2}')],
            [("f", '{"a": 1}'), ("f", '{"a": 2}')],
        ),
        # one whole call sent twice under one id, with and without another number
        ([build_call_piece(0, "c", "f", '{"a": 1}'), build_call_piece(0, "c", "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        ([build_call_piece(0, "c", "f", '{"a": 1}'), build_call_piece(1, "c", "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        # several calls with one id
        (
            [build_call_piece(0, "c", "f", '{"a": 1}'), build_call_piece(1, "c", "f", '{"a": 2}')],
            [("f", '{"a": 1}'), ("f", '{"a": 2}')],
        ),
        (
            [build_call_piece(None, "c", "f", '{"a": 1}'), build_call_piece(None, "c", "f", '{"a": 2}')],
            [("f", '{"a": 1}'), ("f", '{"a": 2}')],
        ),
        # an id and a name with each piece; an id that is new with each; ids that come late
        ([build_call_piece(0, "c", "f", '{"a'), build_call_piece(0, "c", "f", '": 1}')], [("f", '{"a": 1}')]),
        ([build_call_piece(0, "c", "f", '{"a'), build_call_piece(0, "d", None, '": 1}')], [("f", '{"a": 1}')]),
        ([build_call_piece(0, None, "f", '{"a'), build_call_piece(0, "d", "f", '": 1}')], [("f", '{"a": 1}')]),
        # numbers as text, from 1, far apart; the name after the number
        (
            [build_call_piece("1", "c", "f", '{"a": 1}'), build_call_piece("7", "d", "g", "")],
            [("f", '{"a": 1}'), ("g", "{}")],
        ),
        ([build_call_piece(0, "c", None, ""), build_call_piece(0, None, "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        ([build_call_piece(0, 3.0, "f", {"a": 1}), build_call_piece(1, 4, "f", None)], [("f", '{"a":1}'), ("f", "{}")]),
        # `{}` before the arguments
        ([build_call_piece(0, "c", "f", "{}"), build_call_piece(0, None, None, '{"a": 1}')], [("f", '{"a": 1}')]),
        # brackets within texts
        (
            [
                build_call_piece(0, "", "f", '{"a": "}\\"'),
                build_call_piece(0, "", "f", '"}'),
                build_call_piece(0, "", "f", "{}"),
            ],
            [("f", '{"a": "}\\""}'), ("f", "{}")],
        ),
        # items that are not calls
        ([None, 7, "f", {}, build_call_piece(0, "c", "f", "{}")], [("f", "{}")]),
    ],
)
async def test_call_pieces_are_joined(pieces: list[Any], calls: list[tuple[str, str]]):
    for body in (
        "".join(format_chunk(tool_calls=[call_piece]) for call_piece in pieces),
        format_chunk(tool_calls=pieces),
        format_event({"choices": [{"message": {"tool_calls": pieces}}]}),
    ):
        result = await call_model_with_body(body + STOP_EVENTS)
        assert result.calls == calls
        assert result.reply is not None
        assert all(call.id for call in result.reply.message.tool_calls)


async def test_too_many_calls_are_malformed():
    calls = [build_call_piece(number, f"c{number}", "f", "{}") for number in range(5000)]
    result = await call_model_with_body(format_chunk(tool_calls=calls) + STOP_EVENTS)
    assert result.error is not None
    assert result.error.kind == "malformed"


# Events


@pytest.mark.parametrize("model", ["empty-data", "data-ping", "event-ping", "meta-only", "two-data-lines"])
async def test_events_without_data_are_ignored(serve_case, model: str):
    result = await call_model(await serve_case(find_case_folder("09-empty-data-as-keep-alive")), model)
    assert result.text == "Paris."
    assert result.reported_usage == ReportedUsage(prompt_tokens=10, completion_tokens=5)
    assert bool(result.notices) == (model == "data-ping")


@pytest.mark.parametrize(
    "data", ["null", "[]", '"ping"', "7", "true", "{}", '{"choices": [null]}', '{"choices": null}']
)
async def test_empty_events_are_ignored(data: str):
    result = await call_model_with_body(
        format_event(data)
        + format_chunk(content="Par")
        + format_event(data)
        + format_chunk(content="is.")
        + format_event(data)
        + STOP_EVENTS
    )
    assert result.text == "Paris."


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", ": hello\n\n", "retry: 1\nid\n\n"])
async def test_any_line_ending_is_accepted(start: str, line_end: str):
    body = (start + PARIS_CHUNKS + STOP_EVENTS).replace("\n", line_end)
    for variant in (body, body.replace("data: ", "data:"), body.replace(line_end * 2, line_end)):
        assert (await call_model_with_body(variant)).text == "Paris."


@pytest.mark.parametrize("provider", ["openai_compatible", "openai", "anthropic"])
async def test_event_of_many_data_lines_is_joined(provider: str):
    bodies = {
        "openai_compatible": {"choices": [{"delta": {"content": "Paris."}, "finish_reason": "stop"}]},
        "openai": {"type": "response.completed", "response": RESPONSES_ANSWER},
        "anthropic": ANTHROPIC_MESSAGE,
    }
    lines = json.dumps(bodies[provider], indent=1).splitlines()
    result = await call_model_with_body("".join(f"data: {line}\n" for line in lines) + "\n", provider=provider)
    assert result.text == "Paris."


# Whole answers


@pytest.mark.parametrize("model", ["plain-json", "message-in-event", "delta-and-message"])
async def test_whole_answer_in_place_of_a_stream_is_read(serve_case, model: str):
    result = await call_model(
        await serve_case(find_case_folder("12-whole-answers-where-a-stream-was-asked-for")), model
    )
    assert result.text == "Paris."


async def test_legacy_function_call_is_read(serve_case):
    url = await serve_case(find_case_folder("12-whole-answers-where-a-stream-was-asked-for"))
    assert (await call_model(url, "legacy-function-call")).calls == [("filesystem_list", "{}")]


EXAMPLE_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("body", "media_type", "text", "calls"),
    [
        ({"choices": [{"text": "Paris.", "finish_reason": "stop"}]}, "application/json", "Paris.", []),
        ({"choices": [{"message": {"content": "Paris."}}]}, "text/plain", "Paris.", []),
        ({"choices": {"message": {"content": [{"type": "text", "text": "Paris."}]}}}, "application/json", "Paris.", []),
        (
            {"choices": [{"message": {"content": None, "tool_calls": [EXAMPLE_CALL]}}]},
            "application/json",
            "",
            [("f", '{"a": 1}')],
        ),
        (
            {"choices": [{"message": {"function_call": {"name": "f", "arguments": {"a": 1}}}}]},
            "application/json",
            "",
            [("f", '{"a":1}')],
        ),
        ([{"choices": [{"message": {"content": "Paris."}}]}], "application/json", "Paris.", []),
    ],
)
async def test_whole_answers_of_other_forms_are_read(
    body: Any, media_type: str, text: str, calls: list[tuple[str, str]]
):
    for text_sent in (json.dumps(body), json.dumps(body, indent=2), f"data: {json.dumps(body)}\n\n{DONE_EVENT}"):
        result = await call_model_with_body(text_sent, media_type)
        assert (result.text, result.calls) == (text, calls)


async def test_ollama_json_lines_are_read():
    lines: list[dict[str, Any]] = [
        {"message": {"role": "assistant", "content": piece}, "done": False} for piece in ("ha", "ha", "!")
    ]
    lines.append(
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 3}
    )
    result = await call_model_with_body("\n".join(map(json.dumps, lines)), "application/x-ndjson")
    assert result.text == "haha!"
    assert result.reported_usage == ReportedUsage(prompt_tokens=9, completion_tokens=3)


async def test_cumulative_messages_are_read_once():
    messages = [
        format_event({"choices": [{"message": {"content": text}}]}) for text in ("Par", "Paris", "Paris.", "Paris.")
    ]
    assert (await call_model_with_body("".join(messages) + STOP_EVENTS)).text == "Paris."
    mixed_events = [
        format_event({"choices": [{"delta": {"content": text_piece}, "message": {"content": "…"}}]})
        for text_piece in ("Par", "is.")
    ]
    last_event = format_event({"choices": [{"delta": {}, "message": {"content": "Paris."}, "finish_reason": "stop"}]})
    assert (await call_model_with_body("".join(mixed_events) + last_event)).text == "Paris."


@pytest.mark.parametrize(
    "body",
    [
        STOP_EVENTS,
        format_chunk(content="") + STOP_EVENTS,
        format_chunk(content=" \n") + STOP_EVENTS,
        format_chunk(reasoning_content="Let me see.") + STOP_EVENTS,
        DONE_EVENT,
        json.dumps({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}),
        json.dumps({"choices": []}),
    ],
)
async def test_empty_answer_is_malformed(body: str):
    result = await call_model_with_body(body)
    assert result.error is not None
    assert result.error.kind == "malformed"


# Usage


@pytest.mark.parametrize(
    ("model", "reported"),
    [
        ("floats", ReportedUsage(prompt_tokens=12, completion_tokens=3)),
        ("fractions", ReportedUsage(prompt_tokens=13, completion_tokens=3)),
        ("texts", ReportedUsage(prompt_tokens=12, completion_tokens=3)),
        ("empty-list", ReportedUsage(prompt_tokens=12, completion_tokens=3)),
        ("negative", ReportedUsage(completion_tokens=3)),
        ("cached-more", ReportedUsage(prompt_tokens=10, completion_tokens=3, cached_tokens=10)),
    ],
)
async def test_usage_in_odd_numbers_is_read(serve_case, model: str, reported: ReportedUsage):
    result = await call_model(await serve_case(find_case_folder("13-usage-in-odd-numbers")), model)
    assert result.text == "Paris."
    assert result.reported_usage == reported


@pytest.mark.parametrize(
    ("usage", "reported"),
    [
        ("n/a", None),
        ([], None),
        (7, None),
        ({}, None),
        ({"prompt_tokens": "n/a", "completion_tokens": True}, None),
        ({"prompt_tokens": 1e30, "completion_tokens": -3}, None),
        ({"prompt_tokens": None, "completion_tokens": 3}, (None, 3, None, None)),
        ({"prompt_tokens": None, "completion_tokens": 3, "total_tokens": 13}, (10, 3, None, None)),
        ({"prompt_tokens": 10, "completion_tokens": 3, "completion_tokens_details": "none"}, (10, 3, None, None)),
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 50}},
            (10, 3, None, 3),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 63}
            | {"completion_tokens_details": {"reasoning_tokens": 50}},
            (10, 53, None, 50),
        ),
        ({"prompt_tokens": "12.0", "completion_tokens": 2.25}, (12, 3, None, None)),
        ({"input_tokens": 10, "output_tokens": 3}, (10, 3, None, None)),
        ({"prompt_tokens": 10, "completion_tokens": 3, "prompt_cache_hit_tokens": 4}, (10, 3, 4, None)),
    ],
)
async def test_valid_parts_of_usage_are_read(usage: Any, reported: tuple[int | None, ...] | None):
    names = ReportedUsage.__struct_fields__
    expected = None if reported is None else ReportedUsage(**dict(zip(names, reported, strict=True)))
    for body in (
        PARIS_CHUNKS + format_chunk("stop") + format_event({"choices": [], "usage": usage}) + DONE_EVENT,
        PARIS_CHUNKS + format_chunk("stop", usage=usage),
        PARIS_CHUNKS + format_event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": usage}]}),
    ):
        result = await call_model_with_body(body)
        assert (result.text, result.reported_usage) == ("Paris.", expected)


CLAUDE_MESSAGE = {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
CLAUDE_MESSAGE |= {"content": [{"type": "text", "text": "Paris."}], "usage": {"input_tokens": 9, "output_tokens": 2}}
RESPONSES_ANSWER = {"object": "response", "status": "completed", "usage": {"input_tokens": 9, "output_tokens": 2}}
RESPONSES_ANSWER |= {
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Paris."}]}]
}
REPORTED_USAGE = {"prompt_tokens": 9, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("body", "provider", "api"),
    [
        (format_chunk("stop", usage=REPORTED_USAGE, content="Paris.") + DONE_EVENT, "openai_compatible", "chat"),
        (
            format_chunk(usage={"prompt_tokens": 9, "completion_tokens": 1}, content="Par")
            + format_chunk("stop", usage=REPORTED_USAGE, content="is.")
            + DONE_EVENT,
            "openai_compatible",
            "chat",
        ),
        (
            json.dumps(
                {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}], "usage": REPORTED_USAGE}
            ),
            "openai_compatible",
            "chat",
        ),
        (
            json.dumps({"message": {"content": "Paris."}, "done": True, "prompt_eval_count": 9, "eval_count": 2}),
            "openai_compatible",
            "chat",
        ),
        (json.dumps(CLAUDE_MESSAGE), "anthropic", None),
        (json.dumps(RESPONSES_ANSWER), "openai_compatible", "responses"),
    ],
    ids=["last event", "each event", "JSON", "Ollama", "Anthropic", "Responses"],
)
async def test_text_beside_usage_is_not_counted_twice(body: str, provider: str, api: str | None):
    async with serve_body(body) as url:
        result = await call_model(url, provider=provider, api=api)
    assert result.text == "Paris."
    meter = UsageMeter((), ())
    for part in result.parts:
        meter.count_part(part)
    assert meter.measure_usage() == (ModelUsage(prompt_tokens=9, completion_tokens=2), False)


async def test_nan_and_infinity_in_usage_are_ignored():
    body = (
        PARIS_CHUNKS
        + format_chunk("stop")
        + 'data: {"usage": {"prompt_tokens": NaN, "completion_tokens": Infinity}}\n\n'
    )
    result = await call_model_with_body(body)
    assert (result.text, result.reported_usage) == ("Paris.", None)


# The reason for the end


@pytest.mark.parametrize(("model", "text"), [("text", "Paris."), ("empty-text-reason", "Paris."), ("tool", "")])
async def test_done_without_finish_reason_is_complete(serve_case, model: str, text: str):
    result = await call_model(await serve_case(find_case_folder("14-done-but-no-finish-reason")), model)
    assert result.text == text
    assert result.calls == ([("filesystem_list", "{}")] if model == "tool" else [])
    assert "finish_reason" in result.notices[0]


async def test_stream_without_done_and_finish_reason_is_cut_off(serve_case):
    result = await call_model(await serve_case(find_case_folder("14-done-but-no-finish-reason")), "cut")
    assert result.error is not None
    assert result.error.kind == "cut_off"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("SAFETY", "content_filter"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ({"type": "stop", "matched": 2}, "stop"),
        ({"type": "length"}, "length"),
        (False, "stop"),
        (0, "stop"),
        ([], "stop"),
        ({}, "stop"),
        (7, "stop"),
    ],
)
async def test_finish_reasons_of_other_names_and_types_are_mapped(reason: Any, finish: str):
    result = await call_model_with_body(PARIS_CHUNKS + format_chunk(reason) + DONE_EVENT)
    assert result.text == "Paris."
    assert result.reply is not None
    assert result.reply.finish == finish


@pytest.mark.parametrize("reason", [False, None, "", {}])
async def test_empty_finish_reason_without_done_is_cut_off(reason: Any):
    result = await call_model_with_body(PARIS_CHUNKS + format_chunk(reason))
    assert result.error is not None
    assert result.error.kind == "cut_off"


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"content": 7}, ""),
        ({"content": {"text": "a"}}, "a"),
        ({"content": ["a", {"type": "text", "text": "b"}, None]}, "ab"),
        ({"content": "a", "role": 7, "refusal": False, "tool_calls": "none"}, "a"),
        ({"content": "a", "reasoning_content": {"odd": 1}, "reasoning": 7, "function_call": []}, "a"),
    ],
)
async def test_unreadable_delta_fields_are_dropped(delta: dict[str, Any], text: str):
    assert (
        await call_model_with_body(format_chunk(**delta) + format_chunk(content=".") + STOP_EVENTS)
    ).text == f"{text}."


# The APIs of Anthropic and OpenAI's Responses

ANTHROPIC_MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Paris."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
RESPONSES_ANSWER = {
    "object": "response",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Paris."}]}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


@pytest.mark.parametrize(("provider", "body"), [("anthropic", ANTHROPIC_MESSAGE), ("openai", RESPONSES_ANSWER)])
async def test_whole_answers_of_anthropic_and_responses_are_read(provider: str, body: dict[str, Any]):
    for text_sent, media_type in (
        (json.dumps(body, indent=1), "application/json"),
        (format_event(body), "text/event-stream"),
    ):
        result = await call_model_with_body(text_sent, media_type, provider=provider)
        assert result.text == "Paris."
        assert result.reported_usage is not None
        assert (result.reported_usage.prompt_tokens, result.reported_usage.completion_tokens) == (3, 2)


def format_anthropic_events(*deltas: dict[str, Any], usage: Any = None, stop: Any = "end_turn") -> str:
    start = {"type": "message_start", "message": {"usage": usage, "content": []}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    pieces = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    end_events = [{"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage}, {"type": "message_stop"}]
    return "".join(format_event(data, data["type"]) for data in [start, block, *pieces, *end_events])


TEXT_DELTAS = ({"type": "text_delta", "text": "Par"}, {"type": "text_delta", "text": "is."})


@pytest.mark.parametrize("usage", [None, [], "n/a", {"input_tokens": None}, {"output_tokens": 2.0}])
async def test_invalid_anthropic_usage_is_ignored(usage: Any):
    result = await call_model_with_body(format_anthropic_events(*TEXT_DELTAS, usage=usage), provider="anthropic")
    assert result.text == "Paris."


@pytest.mark.parametrize(
    "noise", ["data:\n\n", "event: ping\ndata:\n\n", "data: ping\n\n", "data: null\n\n", ": x\n\n"]
)
async def test_noise_in_anthropic_and_responses_streams_is_ignored(noise: str):
    body = noise + noise.join(
        f"{event_text}\n\n" for event_text in format_anthropic_events(*TEXT_DELTAS).split("\n\n") if event_text
    )
    assert (await call_model_with_body(body, provider="anthropic")).text == "Paris."
    events = [
        {"type": "response.output_text.delta", "output_index": 0, "delta": text_piece} for text_piece in ("Par", "is.")
    ]
    body = (
        noise
        + noise.join(map(format_event, events))
        + noise
        + format_event({"type": "response.completed", "response": {}})
    )
    assert (await call_model_with_body(body, provider="openai")).text == "Paris."


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
async def test_empty_answer_of_anthropic_and_responses_is_malformed(provider: str):
    body = (
        format_anthropic_events()
        if provider == "anthropic"
        else format_event({"type": "response.completed", "response": {}})
    )
    result = await call_model_with_body(body, provider=provider)
    assert result.error is not None
    assert result.error.kind == "malformed"


@pytest.mark.parametrize("number", [None, [1], {}, "0", 1.5])
async def test_oddly_numbered_content_blocks_are_read(number: Any):
    body = format_anthropic_events(*TEXT_DELTAS).replace('"index": 0', f'"index": {json.dumps(number)}')
    assert (await call_model_with_body(body, provider="anthropic")).text == "Paris."


async def test_responses_items_without_deltas_are_read():
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
    done = format_event({"type": "response.output_item.done", "output_index": 0, "item": call})
    added = format_event({"type": "response.output_item.added", "output_index": 0, "item": {**call, "arguments": ""}})
    end = format_event({"type": "response.completed", "response": {"output": [call], "usage": None}})
    for body in (end, done + end, added + end, added + done + end):
        assert (await call_model_with_body(body, provider="openai")).calls == [("f", '{"a": 1}')]
