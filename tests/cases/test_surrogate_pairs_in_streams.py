"""Test characters that a stream cuts in two: the halves are joined, and a half alone becomes U+FFFD."""

import json
from typing import Any

import pytest

from tests.cases.test_model_streams import (
    DONE_EVENT,
    STOP_EVENTS,
    build_call_piece,
    format_anthropic_events,
    format_chunk,
    format_event,
)
from tests.support.case_inputs import find_case_folder
from tests.support.scripted_model import call_model, call_model_with_body

HIGH_SURROGATE, LOW_SURROGATE = "\\ud83d", "\\ude00"


async def test_split_thoughts_and_arguments_are_joined(serve_case):
    url = await serve_case(find_case_folder("15-half-an-emoji"))
    result = await call_model(url, "thought-split")
    assert (result.text, result.thoughts) == ("Paris.", "hm \U0001f600")
    [(name, arguments)] = (await call_model(url, "arguments-split")).calls
    assert (name, json.loads(arguments)["content"]) == ("filesystem_write", "\U0001f600")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([f"a {HIGH_SURROGATE}", f"{LOW_SURROGATE} b"], "a \U0001f600 b"),
        ([f"a {HIGH_SURROGATE}", "", f"{LOW_SURROGATE}"], "a \U0001f600"),
        ([f"a {HIGH_SURROGATE}"], "a \ufffd"),
        ([f"a {HIGH_SURROGATE}", " b"], "a \ufffd b"),
        ([f"{LOW_SURROGATE} b"], "\ufffd b"),
        ([f"{LOW_SURROGATE}{HIGH_SURROGATE}", f"{LOW_SURROGATE}"], "\ufffd\U0001f600"),
        ([f"{HIGH_SURROGATE}{HIGH_SURROGATE}{LOW_SURROGATE}"], "\ufffd\U0001f600"),
        # the second half of this one looks like an escaped byte
        (["\\ud83d", "\\udc80"], "\U0001f480"),
        (["\\udc80"], "\ufffd"),
    ],
)
async def test_surrogate_halves_are_joined_in_every_field_and_api(pieces: list[str], text: str):
    def build_events(build_data: Any) -> str:
        return "".join(
            format_event(build_data(f"@{number}@")).replace(f"@{number}@", text_piece)
            for number, text_piece in enumerate(pieces)
        )

    stop = format_chunk("stop", content=".") + DONE_EVENT
    result = await call_model_with_body(
        build_events(lambda text_piece: {"choices": [{"delta": {"content": text_piece}}]}) + stop
    )
    assert result.text == f"{text}."
    result = await call_model_with_body(
        build_events(lambda text_piece: {"choices": [{"delta": {"reasoning_content": text_piece}}]}) + stop
    )
    assert (result.thoughts, result.text) == (text, ".")
    first_chunk = format_chunk(tool_calls=[build_call_piece(0, "c", "f", '{"a": "')])
    last_chunk = format_chunk(tool_calls=[build_call_piece(0, None, None, '"}')])
    middle_chunks = build_events(
        lambda text_piece: {"choices": [{"delta": {"tool_calls": [build_call_piece(0, None, None, text_piece)]}}]}
    )
    [(_, arguments)] = (await call_model_with_body(first_chunk + middle_chunks + last_chunk + STOP_EVENTS)).calls
    assert json.loads(arguments) == {"a": text}
    body = build_events(
        lambda text_piece: {"type": "response.output_text.delta", "output_index": 0, "delta": text_piece}
    )
    result = await call_model_with_body(
        body + format_event({"type": "response.completed", "response": {}}), provider="openai"
    )
    assert result.text == text
    deltas = tuple({"type": "text_delta", "text": f"@{number}@"} for number in range(len(pieces)))
    body = format_anthropic_events(*deltas)
    for number, text_piece in enumerate(pieces):
        body = body.replace(f"@{number}@", text_piece)
    assert (await call_model_with_body(body, provider="anthropic")).text == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([b"caf\xe9"], "caf\ufffd"),
        ([b"caf\xe9 noir"], "caf\ufffd noir"),
        ([b"a \xf0\x9f", b"\x98\x80 b"], "a \U0001f600 b"),
        ([b"\xf0", b"\x9f", b"\x98", b"\x80"], "\U0001f600"),
        ([b"\xc3", b"\xa9"], "\u00e9"),
        ([b"\x80\xff"], "\ufffd\ufffd"),
        ([b"\xe2\x82", b"x"], "\ufffdx"),
    ],
)
async def test_invalid_utf_8_bytes_are_replaced(pieces: list[bytes], text: str):
    body = b"".join(format_chunk(content="@@").encode().replace(b"@@", raw_piece) for raw_piece in pieces)
    assert (await call_model_with_body(body + STOP_EVENTS.encode())).text == text


async def test_surrogate_halves_in_names_and_errors_are_harmless():
    broken_call = format_event(
        {"choices": [{"delta": {"tool_calls": [build_call_piece(0, "c@@", "f@@", "{}")]}}]}
    ).replace("@@", HIGH_SURROGATE)
    result = await call_model_with_body(broken_call + STOP_EVENTS)
    assert len(result.calls) == 1
    failed = await call_model_with_body(
        format_event({"error": {"message": "no @@", "code": 400}}).replace("@@", HIGH_SURROGATE)
    )
    assert failed.error is not None
    assert failed.error.kind == "refused"
