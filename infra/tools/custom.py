"""Call custom HTTP tools: endpoints that a tenant configured, with the arguments of a model."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import httpx2
import msgspec

from domain.llms import ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.json_numbers import normalize_whole_numbers
from domain.tools import PATH_PLACEHOLDER, CustomToolConfiguration, choose_body_format, find_header_problem
from infra.http import Outbound
from infra.tools.http_request import (
    MAX_RESPONSE_BYTES,
    USER_AGENT,
    clean_text,
    decode_body,
    read_response,
    translate_errors,
)

T = TypeVar("T")
MAX_ERROR_CHARACTERS: Final = 2000
MAX_INLINE_WALK_BYTES: Final = 16 * 1024
MASK_TEXT: Final = "***"


async def call_custom_tool(
    outbound: Outbound, configuration: dict[str, Any], args: dict[str, Any], secrets: dict[str, str]
) -> dict[str, Any]:
    """Call the endpoint of a custom tool and return `{status, body}`. `configuration` was checked before.

    `secrets` are the values of the secret headers by header name; stars replace them in the answer. A JSON body is
    parsed; one of more than 256 KiB is returned as cut text, with `truncated: true`.
    Errors: `ToolFailed`, also for a status of 400 and above.
    """
    tool = msgspec.convert(configuration, CustomToolConfiguration)
    headers = build_headers(tool.headers, tool.secrets, secrets)
    url, rest = fill_endpoint(tool.api_endpoint, args)
    body: dict[str, Any] = {}
    if tool.method in ("GET", "DELETE"):
        url = url.copy_with(params=httpx2.QueryParams([*url.params.multi_items(), *_list_pairs(rest)])) if rest else url
    else:
        body = _encode_body(rest, headers)
    hidden = list_secret_texts(secrets)
    # A cut inside a secret would show its beginning, so a margin of its length is read and then dropped.
    margin = max(map(len, hidden), default=0)
    async with translate_errors(tool.timeout), outbound.create_httpx2_client(timeout=tool.timeout) as client:
        request = client.build_request(tool.method, url, headers=headers, **body)
        response = await client.send(request, stream=True)
        try:
            answered, truncated = await read_response(response, MAX_RESPONSE_BYTES + margin)
        finally:
            await response.aclose()
    text = mask_secrets(decode_body(response, answered), hidden)
    if truncated or len(answered) > MAX_RESPONSE_BYTES:
        truncated, text = True, text[: max(0, min(MAX_RESPONSE_BYTES, len(text) - margin))]
    answer = text if truncated else await walk_in_thread(len(answered), _parse_body, answered, text, hidden)
    if response.status_code >= 400:
        # Encoded again, because the endpoint's JSON escapes may hide a secret from the mask.
        message = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
        raise ToolFailed(
            f"The endpoint answered {response.status_code}: {message[:MAX_ERROR_CHARACTERS] or 'no message'}"
        )
    if response.status_code >= 300:
        raise ToolFailed(f"The endpoint answered {response.status_code}. Redirects are not followed.")
    result = {"status": response.status_code, "body": answer}
    return {**result, "truncated": True} if truncated else result


def fill_endpoint(endpoint: str, args: dict[str, Any]) -> tuple[httpx2.URL, dict[str, Any]]:
    """Fill the placeholders of an endpoint; return its URL and the remaining arguments. Errors: `ToolFailed`.

    A value stays within its part of the path: it is fully encoded, and a value that a server could decode to a parent
    folder (`..`, `a/../b`) is refused.
    """
    scheme, _, rest_of_url = endpoint.partition("://")
    host, slash, tail = rest_of_url.partition("/")
    path, mark, query = tail.partition("?")
    names = dict.fromkeys(PATH_PLACEHOLDER.findall(path))

    def fill_placeholder(match: re.Match[str]) -> str:
        name = match[1]
        argument = args.get(name)
        text = _format_argument(argument) if isinstance(argument, (str, int, float)) else ""
        if not text:
            raise ToolFailed(f"{name}: is required. Send text or a number.")
        if any(part.strip() in (".", "..") for part in re.split(r"[/\\]", text)):
            raise ToolFailed(f"{name}: must not contain '.' or '..' as a part of a path.")
        return quote(text, safe="", errors="replace")

    path = PATH_PLACEHOLDER.sub(fill_placeholder, path)
    rest = {name: argument for name, argument in args.items() if name not in names}
    return httpx2.URL(f"{scheme}://{host}{slash}{path}{mark}{query}"), rest


def build_headers(plain: dict[str, str], required: dict[str, str], secrets: dict[str, str]) -> httpx2.Headers:
    """Return all headers to send. A bare key for `Authorization` becomes `Bearer KEY`.

    `required` are the configured secret headers. Errors: `ToolFailed` for one without a value.
    """
    headers = httpx2.Headers({"user-agent": USER_AGENT, **plain})
    for name, secret in secrets.items():
        if not secret or find_header_problem(name, secret) is not None:
            raise ToolFailed(f"The secret for the header {name[:128]} cannot be sent as a header.")
        bare = name.lower() == "authorization" and " " not in secret.strip()
        headers[name] = f"Bearer {secret.strip()}" if bare else secret
    for name in required:
        if name not in headers:
            raise ToolFailed(f"The header {name} has no secret.")
    return headers


def list_secret_texts(secrets: dict[str, str]) -> list[str]:
    """Return the texts to mask: the values, and the keys within them (`Bearer KEY`), longest first."""
    parts = {value for value in secrets.values() if value.strip()}
    parts |= {part for value in secrets.values() for part in value.split() if len(part) >= 8}
    return sorted(parts, key=len, reverse=True)


def mask_secrets(value: Any, hidden: list[str]) -> Any:
    """Return a JSON value with stars for every secret in its texts."""
    if not hidden:
        return value
    if isinstance(value, str):
        for secret in hidden:
            value = value.replace(secret, MASK_TEXT)
        return value
    if isinstance(value, dict):
        return {mask_secrets(name, hidden): mask_secrets(item, hidden) for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, hidden) for item in value]
    return MASK_TEXT if isinstance(value, (int, float)) and str(value) in hidden else value


def _encode_body(args: dict[str, Any], headers: httpx2.Headers) -> dict[str, Any]:
    """Return the body in the media type of the headers, JSON by default."""
    match choose_body_format(headers):
        case "form":
            return {"content": urlencode(_list_pairs(args), errors="replace").encode()}
        case "multipart" if pairs := _list_pairs(args):
            # The library adds the header with its own boundary.
            del headers["content-type"]
            return {"files": [(name, (None, text.encode("utf-8", "replace"))) for name, text in pairs]}
        case "multipart":
            return {"content": b""}
        case _:
            headers.setdefault("content-type", "application/json")
            return {"content": msgspec.json.encode(normalize_whole_numbers(args))}


def _list_pairs(args: dict[str, Any]) -> list[tuple[str, str]]:
    """Return arguments as pairs of forms and queries: a list repeats its name, null is left out."""
    pairs: list[tuple[str, str]] = []
    for name, argument in args.items():
        items = argument if isinstance(argument, list) else [argument]
        pairs += [(name, _format_argument(item)) for item in items if item is not None]
    return pairs


def _format_argument(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(normalize_whole_numbers(value)).decode()


def _parse_body(body: bytes, text: str, hidden: list[str]) -> Any:
    """Return the parsed JSON of a body, or `text` if it is not JSON or nests too deeply to be encoded again."""
    try:
        check_json(body)
        return clean_and_mask(msgspec.json.decode(body), hidden)
    except (JsonTooLarge, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text


async def walk_in_thread(size: int, walk: Callable[..., T], *args: Any) -> T:
    """Return the result of `walk` on JSON of `size` bytes, in a thread if it would block the event loop."""
    return walk(*args) if size <= MAX_INLINE_WALK_BYTES else await asyncio.to_thread(walk, *args)


def clean_and_mask(value: Any, hidden: list[str]) -> Any:
    """Return a JSON value whose texts Postgres can store, with stars for secrets."""
    return mask_secrets(clean_json(value), hidden)


def clean_json(value: Any) -> Any:
    """Return a JSON value whose texts Postgres can store."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(name): clean_json(item) for name, item in value.items()}
    return [clean_json(item) for item in value] if isinstance(value, list) else value
