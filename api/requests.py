"""A request, as handlers see it, and the key that makes repeating it safe."""

import functools
import hashlib
from typing import Any

from litestar import Request
from litestar.types import Empty

from api.bodies import decode_body, read_aside
from domain.shared.errors import invalid
from domain.shared.idempotency import MAX_KEY
from domain.shared.unicode_text import mend_json

# What Litestar calls a request; we use none of its three type parameters.
HttpRequest = Request[Any, Any, Any]


class MendingRequest(HttpRequest):
    """A request whose body is mended when it is first read, and whose JSON is bounded and of the handler's type."""

    async def body(self) -> bytes:
        """Return the body; in JSON, halves of surrogate pairs are mended (see `domain.shared.unicode_text`)."""
        first = self._connection_state.body is Empty
        body = await super().body()
        if first and "yaml" not in self.content_type[0]:
            mended = await read_aside(len(body), functools.partial(mend_json, body))
            body = self._body = self._connection_state.body = mended
        return body

    async def json(self) -> Any:
        """Return the body as the type of the handler's `data`. Errors: `malformed_request`, `invalid_field`."""
        body = await self.body()
        kind = self.route_handler.parsed_fn_signature.parameters["data"].raw
        return await read_aside(len(body), functools.partial(decode_body, body, kind))


def idempotency_key(request: HttpRequest) -> str | None:
    """The request's Idempotency-Key. Errors: `invalid_field`."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise invalid("Idempotency-Key", f"must be 1 to {MAX_KEY} printable characters.")
    return key


def asked_for(request: HttpRequest, body: bytes) -> bytes:
    """A hash of what a request asks for: its method, its path and its body."""
    return hashlib.sha256(f"{request.method} {request.url.path}\n".encode() + body).digest()
