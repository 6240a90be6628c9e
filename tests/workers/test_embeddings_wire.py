"""OpenAI's embeddings at the gateway, asked by the real client."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import openai
import pytest

from domain.llms import ModelError
from domain.shared.errors import DomainError
from infra.wires.common import WireRefusal
from infra.wires.embeddings_wire import parse_request
from tests.support.gateway_client import GatewayClient, ScriptedCalls, serve_scripted, wait_until
from workers.run.gateway import GatewayLimits

NO_EMBEDDINGS: Final = ModelError("refused", "The model makes no embeddings here.")
NO_EMBEDDINGS.option = "model"


@pytest.fixture
async def served() -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ScriptedCalls()) as client:
        yield client


async def embed(served: GatewayClient, text: Any, **fields: Any) -> Any:
    return await served.client.embeddings.create(**{"model": "small", "input": text, **fields})


async def test_texts_become_vectors_in_their_order(served: GatewayClient) -> None:
    # Without a format the library asks for base64, and decodes it.
    answer = await embed(served, ["a", "bcd"], dimensions=2, user="u")
    assert served.calls.embedded == [("small", ("a", "bcd"), 2)]
    assert [(entry.index, entry.embedding) for entry in answer.data] == [
        (0, [1.0, pytest.approx(-0.1)]),
        (1, [3.0, pytest.approx(-0.1)]),
    ]
    assert (answer.model, answer.object, answer.usage.prompt_tokens, answer.usage.total_tokens) == (
        "small",
        "list",
        7,
        7,
    )
    numbers = await embed(served, "ab", encoding_format="float")
    assert numbers.data[0].embedding == [2.0, -0.1]
    raw = await served.client.embeddings.with_raw_response.create(model="small", input="ab", encoding_format="base64")
    assert json.loads(raw.text)["data"][0]["embedding"] == "AAAAQM3MzL0="

    def ask_synchronously() -> Any:
        client = openai.OpenAI(base_url=served.url, api_key="x", max_retries=0, timeout=10)
        return client.embeddings.create(model="small", input=["a"]).data[0].embedding

    assert await asyncio.to_thread(ask_synchronously) == [1.0, pytest.approx(-0.1)]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": [1, 2]}, "input", "check_embedding_ctx_length"),
        ({"input": [[1, 2], [3]]}, "input", "tokens"),
        ({"input": []}, "input", "input"),
        ({"input": None}, "input", "input"),
        ({"input": ["a", {}]}, "input[1]", "text"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"dimensions": 0}, "dimensions", "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format", "encoding_format"),
        ({"input_type": "query"}, "input_type", "input_type"),
        ({"model": None}, "model", "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(WireRefusal, match=words) as caught:
        parse_request(json.dumps({"model": "m", "input": "a", **fields}).encode())
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelError("rate_limited", "sk-1", 3.0), 429, "rate_limit_exceeded"),
        (ModelError("refused", "This model has no embeddings."), 400, "refused_by_provider"),
        (NO_EMBEDDINGS, 400, "unsupported_model"),
        (DomainError("budget_exceeded", "The budget is spent."), 402, "budget_exceeded"),
        (RuntimeError("sk-1"), 500, "internal_error"),
    ],
)
async def test_errors(served: GatewayClient, error: Exception, status: int, code: str) -> None:
    served.calls.parts = [error]
    with pytest.raises(openai.APIStatusError) as caught:
        await embed(served, "a")
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "sk-1" not in str(caught.value)
    with pytest.raises(openai.NotFoundError, match="manifest"):
        await embed(served, "a", model="other")
    assert [name for name, _, _ in served.calls.embedded] == ["small"]


async def test_few_are_answered_at_a_time_and_none_is_lost() -> None:
    async with serve_scripted(ScriptedCalls(), GatewayLimits(max_concurrent_embeddings=2)) as served:
        served.calls.delay = 0.02
        answers = await asyncio.gather(*(embed(served, "a") for _ in range(20)))
        assert len(answers) == 20
        assert served.calls.most == 2


async def test_a_client_that_does_not_read_is_hung_up_on() -> None:
    limits = GatewayLimits(write_timeout=0.5, max_concurrent_embeddings=1)
    async with serve_scripted(ScriptedCalls(), limits) as served:
        served.calls.vector_size = 4000
        body = json.dumps({"model": "small", "input": ["a"] * 1000}).encode()
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(
                f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await wait_until(lambda: served.calls.closed == 1)
            # Its place is free again once it has not read for long enough.
            assert (await embed(served, "a")).data
