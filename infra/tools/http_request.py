"""Run the built-in tool `http_request`, which requests a public address, and read responses for all tools."""

import asyncio
import codecs
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Final, Literal
from urllib.parse import urljoin

import httpx2
import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.llms import ToolFailed
from domain.shared.errors import field_error_from_msgspec
from domain.tools import MAX_TOOL_HEADERS, find_header_problem, find_url_problem
from infra.http import Outbound, OutboundRefused

MAX_RESPONSE_BYTES: Final = 256 * 1024
MAX_REDIRECTS: Final = 5
MAX_REQUEST_SECONDS: Final = 30.0
USER_AGENT: Final = "paddock"
# Headers that may be sent to another origin. Any other may be a secret for the first origin.
_CROSS_ORIGIN_HEADERS: Final = frozenset({"accept", "accept-language", "content-type", "user-agent"})
# Codecs of the web. Python has others: some are not for text, and some take minutes for a page (punycode).
_WEB_CHARSETS: Final = re.compile(
    r"utf-(8|16|32)(-[bl]e|-sig)?|iso8859-\d+|cp\d+|gb\w+|big5\w*|euc_\w+|shift_jis\w*|koi8-\w"
)


class _RequestArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(min_length=1, max_length=8192)]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: Annotated[dict[str, str], Meta(max_length=MAX_TOOL_HEADERS)] = {}
    body: str | UnsetType = UNSET
    json: Any | UnsetType = UNSET
    timeout: Annotated[float, Meta(gt=0, le=MAX_REQUEST_SECONDS)] = MAX_REQUEST_SECONDS


async def send_http_request(outbound: Outbound, args: dict[str, Any]) -> dict[str, Any]:
    """Send `{url, method, headers, body | json, timeout}` and return `{status, headers, body, url}`.

    `timeout` is in seconds for the whole call, at most 30. The body is text, cut after 256 KiB, with `truncated: true`.
    At most five redirects are followed. Errors: `ToolFailed`.
    """
    asked = _parse_arguments(args)
    headers = httpx2.Headers({"user-agent": USER_AGENT, **asked.headers})
    content = None if asked.body is UNSET else asked.body.encode("utf-8", "replace")
    if asked.json is not UNSET:
        content = msgspec.json.encode(asked.json)
        headers.setdefault("content-type", "application/json")
    method, url = asked.method, asked.url
    async with (
        translate_errors(asked.timeout),
        outbound.create_httpx2_client(strict=True, timeout=asked.timeout) as client,
    ):
        for _ in range(MAX_REDIRECTS + 1):
            request = client.build_request(method, url, headers=headers, content=content)
            response = await client.send(request, stream=True)
            try:
                location = response.headers.get("location") if response.has_redirect_location else None
                if location is None:
                    return await _build_result(response)
            finally:
                await response.aclose()
            method, content = _choose_next_request(method, content, response.status_code, headers)
            url = _resolve_redirect(request.url, location)
            if httpx2.URL(url).origin != request.url.origin:
                headers = httpx2.Headers(
                    [(name, value) for name, value in headers.items() if name in _CROSS_ORIGIN_HEADERS]
                )
                client.cookies.clear()
    raise ToolFailed(f"The server sent more than {MAX_REDIRECTS} redirects.")


def _parse_arguments(args: dict[str, Any]) -> _RequestArguments:
    try:
        asked = msgspec.convert(args, _RequestArguments)
    except msgspec.ValidationError as error:
        field_error = field_error_from_msgspec(str(error))
        raise ToolFailed(f"{field_error.field}: {field_error.message}") from None
    if (problem := find_url_problem(asked.url)) is not None:
        raise ToolFailed(f"url: {problem}")
    for name, value in asked.headers.items():
        if (problem := find_header_problem(name, value)) is not None:
            raise ToolFailed(f"headers: {name[:128]!r} {problem}")
    if asked.body is not UNSET and asked.json is not UNSET:
        raise ToolFailed("body: cannot be combined with json. Send one of them.")
    if asked.method in ("GET", "HEAD") and not (asked.body is UNSET and asked.json is UNSET):
        raise ToolFailed(f"body: a {asked.method} request cannot have a body.")
    return asked


def _choose_next_request(
    method: Any, content: bytes | None, status: int, headers: httpx2.Headers
) -> tuple[Any, bytes | None]:
    """Return method and body after a redirect (RFC 9110, 15.4): unchanged for 307 and 308, else as browsers do."""
    if status in (307, 308) or (status in (301, 302) and method != "POST") or method == "HEAD":
        return method, content
    headers.pop("content-type", None)
    return "GET", None


def _resolve_redirect(base: httpx2.URL, location: str) -> str:
    try:
        target = urljoin(str(base), location.strip().replace(" ", "%20"))
    except ValueError:
        target = ""
    if (problem := find_url_problem(target)) is not None:
        raise ToolFailed(f"The server redirects to a URL that {problem}")
    return target


async def _build_result(response: httpx2.Response) -> dict[str, Any]:
    body, truncated = await read_response(response, MAX_RESPONSE_BYTES)
    answer: dict[str, Any] = {
        "status": response.status_code,
        "headers": {name: clean_text(value) for name, value in response.headers.items()},
        "body": decode_body(response, body),
        "url": str(response.url),
    }
    return {**answer, "truncated": True} if truncated else answer


async def read_response(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes of a body, and whether there was more.

    A compressed body is decompressed while it is read, a MiB at a time (by httpx2; httpx decompresses whole chunks).
    """
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            body += part
            if len(body) > limit:
                return bytes(body[:limit]), True
    return bytes(body), False


def decode_body(response: httpx2.Response, body: bytes) -> str:
    """Decode a body with the charset of the response, if it is one of the web's. Invalid bytes become �."""
    charset = "utf-8"
    if response.charset_encoding is not None:
        try:
            named = codecs.lookup(response.charset_encoding).name
        except (LookupError, ValueError):
            named = ""
        charset = named if _WEB_CHARSETS.fullmatch(named) else charset
    return clean_text(body.decode(charset, "replace"))


def clean_text(text: str) -> str:
    """Return text that Postgres and JSON can store."""
    return text.replace("\x00", "\ufffd")


@asynccontextmanager
async def translate_errors(seconds: float) -> AsyncIterator[None]:
    """Translate the errors of a request for models, and limit it to `seconds`. Errors: `ToolFailed`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ToolFailed(f"The server did not answer completely within {seconds:g} seconds.") from None
    except OutboundRefused as error:
        raise ToolFailed(str(error)) from None
    except httpx2.TimeoutException:
        raise ToolFailed("The server did not answer in time.") from None
    except httpx2.ConnectError:
        raise ToolFailed("The server cannot be reached.") from None
    except httpx2.DecodingError:
        raise ToolFailed("The server's answer cannot be decompressed.") from None
    except httpx2.HTTPError:
        raise ToolFailed("The server's answer is not proper HTTP, or was cut off.") from None
    except httpx2.InvalidURL:
        raise ToolFailed("url: is not a URL.") from None
