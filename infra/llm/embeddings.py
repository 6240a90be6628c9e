"""Make one call of an embedding model over OpenAI's wire, which most providers of such models serve."""

import asyncio
import base64
import binascii
from array import array
from typing import Any, Final

import httpx2
import msgspec
from openai import APIConnectionError, APIStatusError
from openai import Omit as OpenAIOmit
from pydantic_ai.exceptions import ModelHTTPError

from domain.llms import EmbeddingCall, EmbeddingReply, ModelCall, ModelError, ModelTarget
from infra.http import on_request_sent
from infra.llm import model_errors, providers
from infra.llm.usage import read_usage

EMBEDDING_PROVIDERS: Final = frozenset(
    {"openai", "openai_compatible", "ollama", "databricks", "deepseek", "azure", "mistral", "openrouter", "gemini"}
)
# Bytes that one answer may have: 2048 vectors of 1536 numbers need about as many.
MAX_EMBEDDING_BYTES: Final = 48 << 20
# Answers that are parsed at a time, as each takes several times its bytes.
_parsing_slots: Final = asyncio.Semaphore(4)


async def embed_texts(ask: EmbeddingCall, base_url: str | None, http: httpx2.AsyncClient) -> EmbeddingReply:
    """Return the vectors of texts. Errors: every failure is a `ModelError`."""
    target = ask.target
    if target.provider not in EMBEDDING_PROVIDERS:
        error = ModelError(
            "refused", f"The model {target.name!r} makes no embeddings here: it is of {target.provider}."
        )
        error.option = "model"
        raise error
    answered = False
    try:
        async with asyncio.timeout(ask.timeout):
            token = on_request_sent.set(ask.on_sent)
            try:
                body = await _fetch_body(ask, base_url, http)
            finally:
                on_request_sent.reset(token)
            answered = True
        async with _parsing_slots:
            return await asyncio.to_thread(_parse_reply, body, ask)
    except ModelError:
        raise
    except TimeoutError:
        raise model_errors.build_timeout_error(_build_model_call(ask), began=False) from None
    except APIStatusError as error:
        failure: BaseException = ModelHTTPError(
            error.status_code, target.model, error.body, headers=dict(error.response.headers)
        )
        raise model_errors.convert_exception(failure, _build_model_call(ask), base_url, answered) from None
    except APIConnectionError as error:
        cause = error.__cause__ or error
        raise model_errors.convert_exception(cause, _build_model_call(ask), base_url, answered) from None
    except Exception as error:
        raise model_errors.convert_exception(error, _build_model_call(ask), base_url, answered) from None


async def _fetch_body(ask: EmbeddingCall, base_url: str | None, http: httpx2.AsyncClient) -> bytes:
    target = ask.target
    client = providers.create_openai_client(target, base_url, http)
    headers: dict[str, Any] = {"User-Agent": "paddock"}
    if not providers.has_bearer_key(target):
        headers["Authorization"] = OpenAIOmit()
    request = client.embeddings.with_streaming_response.create(
        model=target.model,
        input=list(ask.texts),
        encoding_format="float",
        dimensions=OpenAIOmit() if ask.dimensions is None or target.provider == "mistral" else ask.dimensions,
        extra_body={"output_dimension": ask.dimensions} if ask.dimensions and target.provider == "mistral" else None,
        extra_headers=headers,
        timeout=httpx2.Timeout(None, connect=10.0),
    )
    body = bytearray()
    async with request as response:
        async for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_EMBEDDING_BYTES:
                raise model_errors.build_malformed_error(target, "it is too long.")
    return bytes(body)


def _parse_reply(body: bytes, ask: EmbeddingCall) -> EmbeddingReply:
    """Read the vectors, in order. Errors: `ModelError` of kind malformed."""
    target = ask.target
    try:
        data: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise model_errors.build_malformed_error(target, "it is not JSON.") from None
    entries = data.get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise model_errors.build_malformed_error(target, "it has no `data`.")
    if len(entries) != len(ask.texts):
        raise model_errors.build_malformed_error(target, f"{len(entries)} vectors came for {len(ask.texts)} texts.")
    vectors: dict[int, array[float]] = {}
    for position, entry in enumerate(entries):
        index = entry.get("index", position) if isinstance(entry, dict) else position
        if type(index) is not int or not 0 <= index < len(entries) or index in vectors:
            raise model_errors.build_malformed_error(target, "its vectors are not numbered.")
        vectors[index] = _parse_vector(entry.get("embedding") if isinstance(entry, dict) else None, target)
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise model_errors.build_malformed_error(target, "its vectors have several lengths.")
    usage = read_usage(data.get("usage"))
    return EmbeddingReply(vectors=tuple(vectors[index] for index in range(len(vectors))), usage=usage)


def _parse_vector(value: Any, target: ModelTarget) -> "array[float]":
    """Return a vector that came as numbers, or as the bytes of 32-bit numbers in base64."""
    try:
        if isinstance(value, str):
            numbers = array("f")
            numbers.frombytes(base64.b64decode(value, validate=True))
            vector = array("d", numbers)
        else:
            vector = array("d", value)
    except (TypeError, ValueError, binascii.Error, OverflowError):
        vector = array("d")
    if not vector:
        raise model_errors.build_malformed_error(target, "a vector is not a list of numbers.")
    return vector


def _build_model_call(ask: EmbeddingCall) -> ModelCall:
    return ModelCall(target=ask.target, messages=(), timeout=ask.timeout)
