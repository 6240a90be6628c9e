"""Parse the body of a request for embeddings."""

from typing import Any, Final

from infra.wires.common import FieldRules, WireRefusal, convert_fields, decode_body
from infra.wires.embeddings_wire.schema import EmbeddingBody, EmbeddingRequest

_FIELD_RULES: Final = FieldRules(ignored=frozenset({"user", "metadata", "safety_identifier"}), neutral_values={})


def parse_request(body: bytes) -> EmbeddingRequest:
    """Return what a request's body asks for. Errors: `WireRefusal`."""
    request = convert_fields(_FIELD_RULES.drop_ignored_fields(decode_body(body)), EmbeddingBody)
    texts = [request.input] if isinstance(request.input, str) else request.input
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise _refuse_text(text, f"input[{number}]")
    return EmbeddingRequest(
        model=request.model,
        texts=tuple(texts),
        dimensions=request.dimensions,
        is_base64=request.encoding_format == "base64",
    )


def _refuse_text(value: Any, where: str) -> WireRefusal:
    if isinstance(value, list | int):
        message = (
            "`input` holds tokens, which mean something else to each model: send text. LangChain does with "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)."
        )
        return WireRefusal(400, message, param="input")
    return WireRefusal(400, f"`{where}` must be text.", param=where)
