"""What workers read from outside is bounded like bodies: requests to the gateway, arguments, answers, results, steps."""

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from domain.executions import enforce_result_limits
from domain.llms import ModelError, ToolFailed
from domain.ports import SandboxOutcome
from domain.shared.json_limits import MAX_JSON_VALUES
from domain.workflows.inputs import explain_unstorable
from infra.tools import custom
from infra.tools.mcp import _AnswerMeter, _McpAnswerTooLarge, _MeteredStream
from workers.agent.arguments import read_arguments
from workers.agent.json_answers import parse_json_answer
from workers.agent.messages import limit_result, render_arguments
from workers.run.openai_wire import GatewayRefusal, parse_request

MANY = "[" + "[]," * MAX_JSON_VALUES + "1]"
DEEP = "[" * 200 + "]" * 200
LONG = "[" + "9" * 2000 + "," + '"' + "x" * 70_000 + '"' + "]"


@pytest.mark.parametrize(
    ("text", "why"), [(MANY, "250000 values"), (DEEP, "deeper than 129"), (LONG, "1300 characters")]
)
async def test_each_door_refuses_what_would_take_long(text: str, why: str) -> None:
    with pytest.raises(GatewayRefusal, match=why):
        parse_request(b'{"model": "m", "messages": ' + text.encode() + b"}")
    with pytest.raises(ToolFailed, match=why):
        read_arguments('{"a": ' + text + "}")
    with pytest.raises(ModelError, match=why):
        await parse_json_answer(text, {})
    outcome = enforce_result_limits(SandboxOutcome(output=text.encode()))
    assert outcome.error_type == "result_not_json"
    assert outcome.error_message is not None
    assert why in outcome.error_message


def test_what_is_shown_and_kept_is_bounded() -> None:
    assert render_arguments('{"a": ' + DEEP + "}") == '{"a": ' + DEEP + "}"
    assert render_arguments('{"a": [1]}') == {"a": [1]}
    assert render_arguments("not json") == "not json"
    deep = json.loads(DEEP)
    assert limit_result({"result": deep})["truncated"] is True
    assert limit_result({"result": [1]}) == {"result": [1]}
    assert explain_unstorable(deep) == "nests deeper than 129 levels."
    assert explain_unstorable(json.loads(MANY)) is not None


@pytest.mark.parametrize("begin", [b"", b"event: message\ndata: "])
async def test_what_an_mcp_server_sends_is_bounded_before_the_library_decodes_it(begin: bytes) -> None:
    async def body(text: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(text), 60_000):
            yield text[at : at + 60_000]

    async def read(text: str) -> bytes:
        class Body(httpx2.AsyncByteStream):
            def __aiter__(self) -> AsyncIterator[bytes]:
                return body(begin + text.encode() + b"\n\n")

        return b"".join([part async for part in _MeteredStream(Body(), _AnswerMeter(), in_lines=bool(begin))])

    for text in (MANY, DEEP):
        with pytest.raises(_McpAnswerTooLarge):
            await read(text)
    fine = json.dumps({"text": "[{:," * 100_000})
    assert json.loads((await read(fine)).removeprefix(begin)) == json.loads(fine)


async def test_answers_of_tools_are_walked_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Any] = []
    clean = custom.clean_and_mask

    def watched(value: Any, hidden: list[str]) -> Any:
        threads.append(threading.current_thread())
        return clean(value, hidden)

    monkeypatch.setattr(custom, "clean_and_mask", watched)
    for size in (10, 50_000):
        body = msgspec.json.encode([0] * size)
        assert await custom.walk_in_thread(len(body), custom._parse_body, body, "", []) == [0] * size
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()
    assert custom._parse_body(DEEP.encode(), "as text", []) == "as text"
