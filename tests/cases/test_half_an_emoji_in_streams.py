"""Characters that are cut in two by a stream: halves that meet are one, a half alone is U+FFFD, never a failed run."""

import json
from typing import Any

import pytest

from tests.cases.test_streams import DONE, STOP, anthropic, chunk, event, piece
from tests.support.case_inputs import find_case_folder
from tests.support.scripted_model import call_model, call_model_with_body

HIGH, LOW = "\\ud83d", "\\ude00"


async def test_a_thought_and_arguments_that_are_split(serve_case):
    url = await serve_case(find_case_folder("15-half-an-emoji"))
    played = await call_model(url, "thought-split")
    assert (played.text, played.thoughts) == ("Paris.", "hm \U0001f600")
    [(name, arguments)] = (await call_model(url, "arguments-split")).calls
    assert (name, json.loads(arguments)["content"]) == ("filesystem_write", "\U0001f600")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([f"a {HIGH}", f"{LOW} b"], "a \U0001f600 b"),
        ([f"a {HIGH}", "", f"{LOW}"], "a \U0001f600"),
        ([f"a {HIGH}"], "a \ufffd"),
        ([f"a {HIGH}", " b"], "a \ufffd b"),
        ([f"{LOW} b"], "\ufffd b"),
        ([f"{LOW}{HIGH}", f"{LOW}"], "\ufffd\U0001f600"),
        ([f"{HIGH}{HIGH}{LOW}"], "\ufffd\U0001f600"),
        # the second half of this one looks like an escaped byte
        (["\\ud83d", "\\udc80"], "\U0001f480"),
        (["\\udc80"], "\ufffd"),
    ],
)
async def test_halves_in_every_field_and_on_every_wire(pieces: list[str], text: str):
    def with_pieces(make: Any) -> str:
        return "".join(event(make(f"@{number}@")).replace(f"@{number}@", one) for number, one in enumerate(pieces))

    stop = chunk("stop", content=".") + DONE
    played = await call_model_with_body(with_pieces(lambda one: {"choices": [{"delta": {"content": one}}]}) + stop)
    assert played.text == f"{text}."
    played = await call_model_with_body(
        with_pieces(lambda one: {"choices": [{"delta": {"reasoning_content": one}}]}) + stop
    )
    assert (played.thoughts, played.text) == (text, ".")
    begun = chunk(tool_calls=[piece(0, "c", "f", '{"a": "')])
    ended = chunk(tool_calls=[piece(0, None, None, '"}')])
    going = with_pieces(lambda one: {"choices": [{"delta": {"tool_calls": [piece(0, None, None, one)]}}]})
    [(_, arguments)] = (await call_model_with_body(begun + going + ended + STOP)).calls
    assert json.loads(arguments) == {"a": text}
    body = with_pieces(lambda one: {"type": "response.output_text.delta", "output_index": 0, "delta": one})
    played = await call_model_with_body(body + event({"type": "response.completed", "response": {}}), provider="openai")
    assert played.text == text
    deltas = tuple({"type": "text_delta", "text": f"@{number}@"} for number in range(len(pieces)))
    body = anthropic(*deltas)
    for number, one in enumerate(pieces):
        body = body.replace(f"@{number}@", one)
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
async def test_bytes_that_are_no_utf_8(pieces: list[bytes], text: str):
    body = b"".join(chunk(content="@@").encode().replace(b"@@", one) for one in pieces)
    assert (await call_model_with_body(body + STOP.encode())).text == text


async def test_halves_in_names_and_errors_end_nothing_else():
    odd = event({"choices": [{"delta": {"tool_calls": [piece(0, "c@@", "f@@", "{}")]}}]}).replace("@@", HIGH)
    played = await call_model_with_body(odd + STOP)
    assert len(played.calls) == 1
    failed = await call_model_with_body(event({"error": {"message": "no @@", "code": 400}}).replace("@@", HIGH))
    assert failed.error is not None
    assert failed.error.kind == "refused"
