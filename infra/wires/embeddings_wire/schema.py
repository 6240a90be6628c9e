"""Define a request for embeddings as OpenAI's clients send it, without the fields that have no effect."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

MAX_TEXTS: Final = 2048


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the body of a request. `input` may be text, texts, or tokens, which are refused."""

    model: str
    input: str | Annotated[list[Any], Meta(min_length=1, max_length=MAX_TEXTS)]
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a parsed request for embeddings."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None
    is_base64: bool
