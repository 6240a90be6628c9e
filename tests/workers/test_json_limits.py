"""JSON from outside has limits in workers as in request bodies: gateway requests, arguments, answers, results, steps."""

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from domain.executions import enforce_result_limits
from domain.llms import ToolFailed
from domain.ports import SandboxOutcome
from domain.shared.json_limits import MAX_JSON_VALUES, JsonTooLarge
from domain.workflows.inputs import explain_unstorable
from infra.tools import custom
from infra.tools.mcp import _AnswerMeter, _McpAnswerTooLarge, _MeteredStream
from infra.wires.common import WireRefusal
from infra.wires.openai_wire import parse_request
from workers.agent.arguments import read_arguments
from workers.agent.json_answers import read_json_answer
from workers.agent.messages import limit_result, render_arguments

MANY_VALUES = "[" + "[]," * MAX_JSON_VALUES + "1]"
DEEP_VALUE = "[" * 200 + "]" * 200
LONG_VALUES = "[" + "9" * 2000 + "," + '"' + "x" * 70_000 + '"' + "]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [(MANY_VALUES, "250000 values"), (DEEP_VALUE, "deeper than 129"), (LONG_VALUES, "1300 characters")],
)
async def test_every_reader_refuses_json_over_the_limits(text: str, reason: str) -> None:
    with pytest.raises(WireRefusal, match=reason):
        parse_request(b'{"model": "m", "messages": ' + text.encode() + b"}")
    with pytest.raises(ToolFailed, match=reason):
        read_arguments('{"a": ' + text + "}")
    with pytest.raises(JsonTooLarge, match=reason):
        read_json_answer(text)
    outcome = enforce_result_limits(SandboxOutcome(output=text.encode()))
    assert outcome.error_type == "result_not_json"
    assert outcome.error_message is not None
    assert reason in outcome.error_message


def test_rendered_and_stored_values_are_limited() -> None:
    assert render_arguments('{"a": ' + DEEP_VALUE + "}") == '{"a": ' + DEEP_VALUE + "}"
    assert render_arguments('{"a": [1]}') == {"a": [1]}
    assert render_arguments("not json") == "not json"
    deep = json.loads(DEEP_VALUE)
    assert limit_result({"result": deep})["truncated"] is True
    assert limit_result({"result": [1]}) == {"result": [1]}
    assert explain_unstorable(deep) == "nests deeper than 129 levels."
    assert explain_unstorable(json.loads(MANY_VALUES)) is not None


@pytest.mark.parametrize("prefix", [b"", b"event: message\ndata: "])
async def test_mcp_answers_are_limited_before_the_library_decodes_them(prefix: bytes) -> None:
    async def split_body(text: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(text), 60_000):
            yield text[at : at + 60_000]

    async def read(text: str) -> bytes:
        class Body(httpx2.AsyncByteStream):
            def __aiter__(self) -> AsyncIterator[bytes]:
                return split_body(prefix + text.encode() + b"\n\n")

        return b"".join([part async for part in _MeteredStream(Body(), _AnswerMeter(), in_lines=bool(prefix))])

    for text in (MANY_VALUES, DEEP_VALUE):
        with pytest.raises(_McpAnswerTooLarge):
            await read(text)
    fine = json.dumps({"text": "[{:," * 100_000})
    assert json.loads((await read(fine)).removeprefix(prefix)) == json.loads(fine)


async def test_large_tool_answers_are_walked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Any] = []
    clean = custom.clean_and_mask

    def clean_and_note_thread(value: Any, hidden: list[str]) -> Any:
        threads.append(threading.current_thread())
        return clean(value, hidden)

    monkeypatch.setattr(custom, "clean_and_mask", clean_and_note_thread)
    for size in (10, 50_000):
        body = msgspec.json.encode([0] * size)
        assert await custom.walk_in_thread(len(body), custom._parse_body, body, "", []) == [0] * size
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()
    assert custom._parse_body(DEEP_VALUE.encode(), "as text", []) == "as text"
