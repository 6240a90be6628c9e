"""What the port for embeddings promises, on the wire of a provider."""

import json
from typing import Any

import pytest

from domain.llms import EmbeddingCall, ModelError, ModelTarget
from domain.shared.secrets import Secret
from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider
from tests.support.scripted_model import serve_body

KEY = "sk-the-provider-s-own-key"


def build_call(url: str, *texts: str, provider: str = "openai_compatible", **fields: Any) -> EmbeddingCall:
    target = ModelTarget(name="m", provider=provider, model="m", base_url=url, api_key=Secret(KEY))
    return EmbeddingCall(target=target, texts=texts, **fields)


async def test_vectors_come_in_the_order_of_the_texts(
    llm: PydanticLlm, fake_provider: FakeProvider, monkeypatch: Any
) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, "X-Of-The-Process: secret")
    sent: list[bool] = []
    reply = await llm.embed(build_call(fake_provider.url, "a", "four", dimensions=2, on_sent=lambda: sent.append(True)))
    assert [list(vector) for vector in reply.vectors] == [[1.0, 0.0], [4.0, 0.0]]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 2
    asked = fake_provider.requests[-1]
    assert asked.body == {"model": "m", "input": ["a", "four"], "encoding_format": "float", "dimensions": 2}
    assert (asked.api_key, sent) == (KEY, [True])
    assert "secret" not in str(asked.headers)
    assert not asked.headers.keys() & {"x-stainless-os", "x-stainless-arch", "x-stainless-runtime", "openai-project"}


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "unauthorized"), (429, "rate_limited"), (500, "unavailable"), (400, "refused")]
)
async def test_failures(llm: PydanticLlm, fake_provider: FakeProvider, status: int, kind: str) -> None:
    fake_provider.queue_failure(status, message=f"What is {KEY}?", to="m")
    with pytest.raises(ModelError) as caught:
        await llm.embed(build_call(fake_provider.url, "a"))
    assert caught.value.kind == kind
    assert KEY not in caught.value.message


async def test_servers_that_are_not_there_and_providers_without_embeddings(llm: PydanticLlm) -> None:
    with pytest.raises(ModelError) as caught:
        await llm.embed(build_call("http://127.0.0.1:9/v1", "a"))
    assert caught.value.kind == "unavailable"
    with pytest.raises(ModelError) as caught:
        await llm.embed(build_call("http://169.254.169.254/v1", "a"))
    assert caught.value.kind == "not_allowed"
    for name in ("anthropic", "local"):
        with pytest.raises(ModelError, match="no embeddings") as caught:
            await llm.embed(build_call("http://127.0.0.1:9", "a", provider=name))
        assert (caught.value.kind, caught.value.option) == ("refused", "model")


def answer(*vectors: Any, **fields: Any) -> str:
    return json.dumps({"data": [{"embedding": vector} for vector in vectors], **fields})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ("[]", "`data`"),
        (answer([1.0]), "1 vectors came for 2 texts"),
        (answer([1.0], []), "numbers"),
        (answer([1.0], ["a"]), "numbers"),
        (answer([1.0], "?"), "numbers"),
        (answer([1.0], None), "numbers"),
        (answer([1.0], [1.0, 2.0]), "lengths"),
        (json.dumps({"data": [{"index": 0, "embedding": [1]}] * 2}), "numbered"),
        (json.dumps({"data": [5, 6]}), "numbers"),
    ],
)
async def test_answers_that_are_none(llm: PydanticLlm, body: str, words: str) -> None:
    async with serve_body(body, "application/json") as url:
        with pytest.raises(ModelError, match=words) as caught:
            await llm.embed(build_call(f"{url}/v1", "a", "b"))
    assert caught.value.kind == "malformed"


async def test_answers_of_lenient_servers(llm: PydanticLlm) -> None:
    async with serve_body(answer("AACAPw==", "AAAAQA=="), "application/json") as url:
        reply = await llm.embed(build_call(f"{url}/v1", "a", "b"))
    assert [list(vector) for vector in reply.vectors] == [[1.0], [2.0]]
    assert reply.usage is None


async def test_an_answer_without_end(llm: PydanticLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.llm import embeddings

    monkeypatch.setattr(embeddings, "MAX_EMBEDDING_BYTES", 100)
    async with serve_body(answer([0.5] * 100), "application/json") as url:
        with pytest.raises(ModelError, match="too long"):
            await llm.embed(build_call(f"{url}/v1", "a"))
