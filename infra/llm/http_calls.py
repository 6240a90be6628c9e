"""Send a request of a wire that has no library here, over the guarded connections, and leave the answer unread."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from pydantic_ai.exceptions import ModelHTTPError


@asynccontextmanager
async def open_response(
    http: httpx2.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], model: str
) -> AsyncGenerator[httpx2.Response, None]:
    """Post a body of JSON. The caller bounds the wait.

    Errors: `ModelHTTPError` for a status that is none of success, and those of httpx2.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "paddock", **headers}
    request = http.build_request("POST", url, content=body, headers=headers, timeout=httpx2.Timeout(None, connect=10.0))
    response = await http.send(request, stream=True)
    try:
        if not response.is_success:
            raise await _read_error(response, model)
        yield response
    finally:
        await response.aclose()


async def _read_error(response: httpx2.Response, model: str) -> ModelHTTPError:
    content = await response.aread()
    try:
        body: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = content.decode("utf-8", "replace")
    if isinstance(body, dict) and isinstance(message := body.get("Message"), str):
        body = {"message": message, **body}
    # AWS names its errors in a header: `ThrottlingException:http://…`.
    if isinstance(body, dict) and (name := response.headers.get("x-amzn-errortype")) is not None:
        body = {"code": name.partition(":")[0], **body}
    return ModelHTTPError(response.status_code, model, body, headers=dict(response.headers))
