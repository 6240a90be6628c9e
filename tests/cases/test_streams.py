"""Answers of models in all the forms that servers send them: what can be read is read, what is missing is an error."""

import json
from typing import Any

import pytest

from domain.llms import ModelUsage, ReportedUsage
from tests.support.case_inputs import find_case_folder
from tests.support.scripted_model import call_model, call_model_with_body, serve_body
from workers.model_calls import UsageMeter

DONE = "data: [DONE]\n\n"


def chunk(finish: Any = None, usage: Any = None, **delta: Any) -> str:
    told: dict[str, Any] = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return f"data: {json.dumps(told if usage is None else {**told, 'usage': usage})}\n\n"


def event(data: Any, name: str = "") -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


STOP = chunk("stop") + DONE
PARIS = chunk(content="Par") + chunk(content="is.")


# Thoughts between tags


@pytest.mark.parametrize(
    ("model", "text", "thoughts"),
    [
        ("empty-think", "Paris.", "\n\n"),
        ("tag-in-the-answer", "The tag <think> opens a thought.", ""),
        ("space-before", "Paris.", "Let me see."),
    ],
)
async def test_thoughts_between_tags(serve_case, model: str, text: str, thoughts: str):
    played = await call_model(await serve_case(find_case_folder("01-think-tags-in-pieces")), model)
    assert (played.text, played.thoughts) == (text, thoughts)


async def test_an_answer_of_thoughts_alone_is_none(serve_case):
    played = await call_model(await serve_case(find_case_folder("01-think-tags-in-pieces")), "ends-while-thinking")
    assert played.thoughts == "Let me see."
    assert played.error is not None
    assert (played.error.kind, played.error.is_transient) == ("malformed", True)
    assert "neither text nor a tool call" in played.error.message


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("told", "text", "thoughts"),
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
async def test_tags_wherever_pieces_end(size: int, told: str, text: str, thoughts: str):
    pieces = "".join(chunk(content=told[at : at + size]) for at in range(0, len(told), size))
    played = await call_model_with_body(pieces + STOP)
    assert (played.text, played.thoughts) == (text, thoughts)


# Tool calls

A, B = '{"path": "a.txt", "content": "A"}', '{"path": "b.txt", "content": "B"}'


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        ("index-0-in-fragments", [A, B]),
        ("id-as-number", [A]),
        ("calls-as-object", [A]),
        ("name-on-each-fragment", [A]),
    ],
)
async def test_calls_that_are_numbered_badly(serve_case, model: str, calls: list[str]):
    played = await call_model(await serve_case(find_case_folder("02-parallel-tool-calls-numbered-badly")), model)
    assert played.calls == [("filesystem_write", arguments) for arguments in calls]
    assert played.reply is not None
    assert played.reply.finish == "tool_calls"


def piece(index: Any = None, id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:  # noqa: A002
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        # two whole calls, both number 0, without ids
        ([piece(0, "", "f", '{"a": 1}'), piece(0, "", "f", '{"a": 2}')], [("f", '{"a": 1}'), ("f", '{"a": 2}')]),
        # one whole call told twice under one id, with and without another number
        ([piece(0, "c", "f", '{"a": 1}'), piece(0, "c", "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        ([piece(0, "c", "f", '{"a": 1}'), piece(1, "c", "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        # several calls of one id
        ([piece(0, "c", "f", '{"a": 1}'), piece(1, "c", "f", '{"a": 2}')], [("f", '{"a": 1}'), ("f", '{"a": 2}')]),
        (
            [piece(None, "c", "f", '{"a": 1}'), piece(None, "c", "f", '{"a": 2}')],
            [("f", '{"a": 1}'), ("f", '{"a": 2}')],
        ),
        # an id and a name with each piece; an id that is new with each; ids that come late
        ([piece(0, "c", "f", '{"a'), piece(0, "c", "f", '": 1}')], [("f", '{"a": 1}')]),
        ([piece(0, "c", "f", '{"a'), piece(0, "d", None, '": 1}')], [("f", '{"a": 1}')]),
        ([piece(0, None, "f", '{"a'), piece(0, "d", "f", '": 1}')], [("f", '{"a": 1}')]),
        # numbers as text, from 1, far apart; the name after the number
        ([piece("1", "c", "f", '{"a": 1}'), piece("7", "d", "g", "")], [("f", '{"a": 1}'), ("g", "{}")]),
        ([piece(0, "c", None, ""), piece(0, None, "f", '{"a": 1}')], [("f", '{"a": 1}')]),
        ([piece(0, 3.0, "f", {"a": 1}), piece(1, 4, "f", None)], [("f", '{"a":1}'), ("f", "{}")]),
        # `{}` before the arguments
        ([piece(0, "c", "f", "{}"), piece(0, None, None, '{"a": 1}')], [("f", '{"a": 1}')]),
        # brackets within texts
        (
            [piece(0, "", "f", '{"a": "}\\"'), piece(0, "", "f", '"}'), piece(0, "", "f", "{}")],
            [("f", '{"a": "}\\""}'), ("f", "{}")],
        ),
        # what is no call at all
        ([None, 7, "f", {}, piece(0, "c", "f", "{}")], [("f", "{}")]),
    ],
)
async def test_calls_in_pieces(pieces: list[Any], calls: list[tuple[str, str]]):
    for body in (
        "".join(chunk(tool_calls=[one]) for one in pieces),
        chunk(tool_calls=pieces),
        event({"choices": [{"message": {"tool_calls": pieces}}]}),
    ):
        played = await call_model_with_body(body + STOP)
        assert played.calls == calls
        assert played.reply is not None
        assert all(call.id for call in played.reply.message.tool_calls)


async def test_more_calls_than_anybody_wants_are_no_answer():
    calls = [piece(number, f"c{number}", "f", "{}") for number in range(5000)]
    played = await call_model_with_body(chunk(tool_calls=calls) + STOP)
    assert played.error is not None
    assert played.error.kind == "malformed"


# Events


@pytest.mark.parametrize("model", ["empty-data", "data-ping", "event-ping", "meta-only", "two-data-lines"])
async def test_events_without_data(serve_case, model: str):
    played = await call_model(await serve_case(find_case_folder("09-empty-data-as-keep-alive")), model)
    assert played.text == "Paris."
    assert played.reported == ReportedUsage(prompt_tokens=10, completion_tokens=5)
    assert bool(played.notices) == (model == "data-ping")


@pytest.mark.parametrize(
    "data", ["null", "[]", '"ping"', "7", "true", "{}", '{"choices": [null]}', '{"choices": null}']
)
async def test_events_that_say_nothing(data: str):
    played = await call_model_with_body(
        event(data) + chunk(content="Par") + event(data) + chunk(content="is.") + event(data) + STOP
    )
    assert played.text == "Paris."


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", ": hello\n\n", "retry: 1\nid\n\n"])
async def test_lines_however_they_end(start: str, end: str):
    body = (start + PARIS + STOP).replace("\n", end)
    for told in (body, body.replace("data: ", "data:"), body.replace(end * 2, end)):
        assert (await call_model_with_body(told)).text == "Paris."


@pytest.mark.parametrize("provider", ["openai_compatible", "openai", "anthropic"])
async def test_an_event_of_many_lines(provider: str):
    bodies = {
        "openai_compatible": {"choices": [{"delta": {"content": "Paris."}, "finish_reason": "stop"}]},
        "openai": {"type": "response.completed", "response": RESPONSE},
        "anthropic": MESSAGE,
    }
    lines = json.dumps(bodies[provider], indent=1).splitlines()
    played = await call_model_with_body("".join(f"data: {line}\n" for line in lines) + "\n", provider=provider)
    assert played.text == "Paris."


# Whole answers


@pytest.mark.parametrize("model", ["plain-json", "message-in-event", "delta-and-message"])
async def test_whole_answers(serve_case, model: str):
    played = await call_model(
        await serve_case(find_case_folder("12-whole-answers-where-a-stream-was-asked-for")), model
    )
    assert played.text == "Paris."


async def test_a_call_from_before_there_were_tool_calls(serve_case):
    url = await serve_case(find_case_folder("12-whole-answers-where-a-stream-was-asked-for"))
    assert (await call_model(url, "legacy-function-call")).calls == [("filesystem_list", "{}")]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("body", "kind", "text", "calls"),
    [
        ({"choices": [{"text": "Paris.", "finish_reason": "stop"}]}, "application/json", "Paris.", []),
        ({"choices": [{"message": {"content": "Paris."}}]}, "text/plain", "Paris.", []),
        ({"choices": {"message": {"content": [{"type": "text", "text": "Paris."}]}}}, "application/json", "Paris.", []),
        (
            {"choices": [{"message": {"content": None, "tool_calls": [CALL]}}]},
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
async def test_whole_answers_of_other_forms(body: Any, kind: str, text: str, calls: list[tuple[str, str]]):
    for told in (json.dumps(body), json.dumps(body, indent=2), f"data: {json.dumps(body)}\n\n{DONE}"):
        played = await call_model_with_body(told, kind)
        assert (played.text, played.calls) == (text, calls)


async def test_ollamas_own_lines():
    lines: list[dict[str, Any]] = [
        {"message": {"role": "assistant", "content": piece}, "done": False} for piece in ("ha", "ha", "!")
    ]
    lines.append(
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 3}
    )
    played = await call_model_with_body("\n".join(map(json.dumps, lines)), "application/x-ndjson")
    assert played.text == "haha!"
    assert played.reported == ReportedUsage(prompt_tokens=9, completion_tokens=3)


async def test_messages_that_grow():
    messages = [event({"choices": [{"message": {"content": text}}]}) for text in ("Par", "Paris", "Paris.", "Paris.")]
    assert (await call_model_with_body("".join(messages) + STOP)).text == "Paris."
    both = [event({"choices": [{"delta": {"content": one}, "message": {"content": "…"}}]}) for one in ("Par", "is.")]
    whole = event({"choices": [{"delta": {}, "message": {"content": "Paris."}, "finish_reason": "stop"}]})
    assert (await call_model_with_body("".join(both) + whole)).text == "Paris."


@pytest.mark.parametrize(
    "body",
    [
        STOP,
        chunk(content="") + STOP,
        chunk(content=" \n") + STOP,
        chunk(reasoning_content="Let me see.") + STOP,
        DONE,
        json.dumps({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}),
        json.dumps({"choices": []}),
    ],
)
async def test_an_answer_of_nothing_is_an_error(body: str):
    played = await call_model_with_body(body)
    assert played.error is not None
    assert played.error.kind == "malformed"


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
async def test_usage_in_odd_numbers(serve_case, model: str, reported: ReportedUsage):
    played = await call_model(await serve_case(find_case_folder("13-usage-in-odd-numbers")), model)
    assert played.text == "Paris."
    assert played.reported == reported


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
async def test_usage_is_read_as_far_as_it_goes(usage: Any, reported: tuple[int | None, ...] | None):
    names = ReportedUsage.__struct_fields__
    wanted = None if reported is None else ReportedUsage(**dict(zip(names, reported, strict=True)))
    for body in (
        PARIS + chunk("stop") + event({"choices": [], "usage": usage}) + DONE,
        PARIS + chunk("stop", usage=usage),
        PARIS + event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": usage}]}),
    ):
        played = await call_model_with_body(body)
        assert (played.text, played.reported) == ("Paris.", wanted)


CLAUDE = {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
CLAUDE |= {"content": [{"type": "text", "text": "Paris."}], "usage": {"input_tokens": 9, "output_tokens": 2}}
RESPONSE = {"object": "response", "status": "completed", "usage": {"input_tokens": 9, "output_tokens": 2}}
RESPONSE |= {
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Paris."}]}]
}
TOLD = {"prompt_tokens": 9, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("body", "provider", "api"),
    [
        (chunk("stop", usage=TOLD, content="Paris.") + DONE, "openai_compatible", "chat"),
        (
            chunk(usage={"prompt_tokens": 9, "completion_tokens": 1}, content="Par")
            + chunk("stop", usage=TOLD, content="is.")
            + DONE,
            "openai_compatible",
            "chat",
        ),
        (
            json.dumps({"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}], "usage": TOLD}),
            "openai_compatible",
            "chat",
        ),
        (
            json.dumps({"message": {"content": "Paris."}, "done": True, "prompt_eval_count": 9, "eval_count": 2}),
            "openai_compatible",
            "chat",
        ),
        (json.dumps(CLAUDE), "anthropic", None),
        (json.dumps(RESPONSE), "openai_compatible", "responses"),
    ],
    ids=["last event", "each event", "JSON", "Ollama", "Anthropic", "Responses"],
)
async def test_text_beside_the_usage_is_in_it(body: str, provider: str, api: str | None):
    async with serve_body(body) as url:
        played = await call_model(url, provider=provider, api=api)
    assert played.text == "Paris."
    meter = UsageMeter((), ())
    for part in played.parts:
        meter.count_part(part)
    assert meter.measure_usage() == (ModelUsage(prompt_tokens=9, completion_tokens=2), False)


async def test_numbers_that_are_none_do_not_fail_an_answer():
    body = PARIS + chunk("stop") + 'data: {"usage": {"prompt_tokens": NaN, "completion_tokens": Infinity}}\n\n'
    played = await call_model_with_body(body)
    assert (played.text, played.reported) == ("Paris.", None)


# Why it ended


@pytest.mark.parametrize(("model", "text"), [("text", "Paris."), ("empty-text-reason", "Paris."), ("tool", "")])
async def test_done_without_a_reason(serve_case, model: str, text: str):
    played = await call_model(await serve_case(find_case_folder("14-done-but-no-finish-reason")), model)
    assert played.text == text
    assert played.calls == ([("filesystem_list", "{}")] if model == "tool" else [])
    assert "finish_reason" in played.notices[0]


async def test_neither_done_nor_a_reason_is_cut_off(serve_case):
    played = await call_model(await serve_case(find_case_folder("14-done-but-no-finish-reason")), "cut")
    assert played.error is not None
    assert played.error.kind == "cut_off"


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
async def test_reasons_by_other_names_and_of_other_types(reason: Any, finish: str):
    played = await call_model_with_body(PARIS + chunk(reason) + DONE)
    assert played.text == "Paris."
    assert played.reply is not None
    assert played.reply.finish == finish


@pytest.mark.parametrize("reason", [False, None, "", {}])
async def test_no_reason_and_no_end_is_cut_off(reason: Any):
    played = await call_model_with_body(PARIS + chunk(reason))
    assert played.error is not None
    assert played.error.kind == "cut_off"


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
async def test_a_field_that_cannot_be_read_is_dropped(delta: dict[str, Any], text: str):
    assert (await call_model_with_body(chunk(**delta) + chunk(content=".") + STOP)).text == f"{text}."


# The other two wires

MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Paris."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
RESPONSE = {
    "object": "response",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Paris."}]}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


@pytest.mark.parametrize(("provider", "body"), [("anthropic", MESSAGE), ("openai", RESPONSE)])
async def test_whole_answers_on_other_wires(provider: str, body: dict[str, Any]):
    for told, kind in ((json.dumps(body, indent=1), "application/json"), (event(body), "text/event-stream")):
        played = await call_model_with_body(told, kind, provider=provider)
        assert played.text == "Paris."
        assert played.reported is not None
        assert (played.reported.prompt_tokens, played.reported.completion_tokens) == (3, 2)


def anthropic(*deltas: dict[str, Any], usage: Any = None, stop: Any = "end_turn") -> str:
    start = {"type": "message_start", "message": {"usage": usage, "content": []}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    pieces = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    end = [{"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage}, {"type": "message_stop"}]
    return "".join(event(one, one["type"]) for one in [start, block, *pieces, *end])


PIECES = ({"type": "text_delta", "text": "Par"}, {"type": "text_delta", "text": "is."})


@pytest.mark.parametrize("usage", [None, [], "n/a", {"input_tokens": None}, {"output_tokens": 2.0}])
async def test_anthropics_usage_is_read_as_far_as_it_goes(usage: Any):
    played = await call_model_with_body(anthropic(*PIECES, usage=usage), provider="anthropic")
    assert played.text == "Paris."


@pytest.mark.parametrize(
    "noise", ["data:\n\n", "event: ping\ndata:\n\n", "data: ping\n\n", "data: null\n\n", ": x\n\n"]
)
async def test_noise_on_other_wires(noise: str):
    body = noise + noise.join(f"{one}\n\n" for one in anthropic(*PIECES).split("\n\n") if one)
    assert (await call_model_with_body(body, provider="anthropic")).text == "Paris."
    events = [{"type": "response.output_text.delta", "output_index": 0, "delta": one} for one in ("Par", "is.")]
    body = noise + noise.join(map(event, events)) + noise + event({"type": "response.completed", "response": {}})
    assert (await call_model_with_body(body, provider="openai")).text == "Paris."


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
async def test_nothing_is_no_answer_on_other_wires(provider: str):
    body = anthropic() if provider == "anthropic" else event({"type": "response.completed", "response": {}})
    played = await call_model_with_body(body, provider=provider)
    assert played.error is not None
    assert played.error.kind == "malformed"


@pytest.mark.parametrize("number", [None, [1], {}, "0", 1.5])
async def test_blocks_that_are_numbered_oddly(number: Any):
    body = anthropic(*PIECES).replace('"index": 0', f'"index": {json.dumps(number)}')
    assert (await call_model_with_body(body, provider="anthropic")).text == "Paris."


async def test_items_of_responses_without_their_deltas():
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
    done = event({"type": "response.output_item.done", "output_index": 0, "item": call})
    added = event({"type": "response.output_item.added", "output_index": 0, "item": {**call, "arguments": ""}})
    end = event({"type": "response.completed", "response": {"output": [call], "usage": None}})
    for body in (end, done + end, added + end, added + done + end):
        assert (await call_model_with_body(body, provider="openai")).calls == [("f", '{"a": 1}')]
