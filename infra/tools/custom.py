"""Custom HTTP tools: an endpoint that a tenant configured, called with the arguments of a model."""

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

    `secrets` are the values of the secret headers by the header's name; wherever the answer holds one there are stars.
    A body that is JSON comes parsed; one of more than 256 KiB is cut text, with `truncated: true`.
    Errors: `ToolFailed`, also for a status of 400 and above.
    """
    told = msgspec.convert(configuration, CustomToolConfiguration)
    headers = build_headers(told.headers, told.secrets, secrets)
    url, rest = fill_endpoint(told.api_endpoint, args)
    body: dict[str, Any] = {}
    if told.method in ("GET", "DELETE"):
        url = url.copy_with(params=httpx2.QueryParams([*url.params.multi_items(), *_pairs(rest)])) if rest else url
    else:
        body = _written(rest, headers)
    hidden = list_secret_texts(secrets)
    # What is cut in the middle of a secret would show its beginning, so that much more is read and then dropped.
    margin = max(map(len, hidden), default=0)
    async with translate_errors(told.timeout), outbound.create_httpx2_client(timeout=told.timeout) as client:
        request = client.build_request(told.method, url, headers=headers, **body)
        response = await client.send(request, stream=True)
        try:
            answered, truncated = await read_response(response, MAX_RESPONSE_BYTES + margin)
        finally:
            await response.aclose()
    text = mask_secrets(decode_body(response, answered), hidden)
    if truncated or len(answered) > MAX_RESPONSE_BYTES:
        truncated, text = True, text[: max(0, min(MAX_RESPONSE_BYTES, len(text) - margin))]
    answer = text if truncated else await walk_in_thread(len(answered), _parsed, answered, text, hidden)
    if response.status_code >= 400:
        # Written anew, as the endpoint's own way of writing JSON may hide a secret from us.
        shown = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
        raise ToolFailed(
            f"The endpoint answered {response.status_code}: {shown[:MAX_ERROR_CHARACTERS] or 'nothing more'}"
        )
    if response.status_code >= 300:
        raise ToolFailed(f"The endpoint answered {response.status_code}. Redirects are not followed.")
    result = {"status": response.status_code, "body": answer}
    return {**result, "truncated": True} if truncated else result


def fill_endpoint(endpoint: str, args: dict[str, Any]) -> tuple[httpx2.URL, dict[str, Any]]:
    """The endpoint with its placeholders filled, and the arguments that are left. Errors: `ToolFailed`.

    A value stays within its part of the path: it is encoded wholly, and one that a server could take for a way up
    once it decoded it (`..`, `a/../b`) is refused.
    """
    scheme, _, after = endpoint.partition("://")
    place, slash, tail = after.partition("/")
    path, mark, query = tail.partition("?")
    names = dict.fromkeys(PATH_PLACEHOLDER.findall(path))

    def value(match: re.Match[str]) -> str:
        name = match[1]
        given = args.get(name)
        text = _text(given) if isinstance(given, (str, int, float)) else ""
        if not text:
            raise ToolFailed(f"{name}: is required, as text or a number.")
        if any(part.strip() in (".", "..") for part in re.split(r"[/\\]", text)):
            raise ToolFailed(f"{name}: must not hold '.' or '..' as a part of a path.")
        return quote(text, safe="", errors="replace")

    path = PATH_PLACEHOLDER.sub(value, path)
    rest = {name: given for name, given in args.items() if name not in names}
    return httpx2.URL(f"{scheme}://{place}{slash}{path}{mark}{query}"), rest


def build_headers(plain: dict[str, str], named: dict[str, str], secrets: dict[str, str]) -> httpx2.Headers:
    """All headers to send. A bare key for `Authorization` becomes `Bearer KEY`.

    `named` are the secret headers that were configured. Errors: `ToolFailed` where one has no value.
    """
    headers = httpx2.Headers({"user-agent": USER_AGENT, **plain})
    for name, secret in secrets.items():
        if not secret or find_header_problem(name, secret) is not None:
            raise ToolFailed(f"The secret for the header {name[:128]} cannot be sent as a header.")
        bare = name.lower() == "authorization" and " " not in secret.strip()
        headers[name] = f"Bearer {secret.strip()}" if bare else secret
    for name in named:
        if name not in headers:
            raise ToolFailed(f"There is no secret for the header {name}.")
    return headers


def list_secret_texts(secrets: dict[str, str]) -> list[str]:
    """What must not be shown: the values, and the keys within them (`Bearer KEY`), longest first."""
    parts = {value for value in secrets.values() if value.strip()}
    parts |= {part for value in secrets.values() for part in value.split() if len(part) >= 8}
    return sorted(parts, key=len, reverse=True)


def mask_secrets(value: Any, hidden: list[str]) -> Any:
    """A JSON value with stars for every secret in its texts."""
    if not hidden:
        return value
    if isinstance(value, str):
        for one in hidden:
            value = value.replace(one, MASK_TEXT)
        return value
    if isinstance(value, dict):
        return {mask_secrets(name, hidden): mask_secrets(one, hidden) for name, one in value.items()}
    if isinstance(value, list):
        return [mask_secrets(one, hidden) for one in value]
    return MASK_TEXT if isinstance(value, (int, float)) and str(value) in hidden else value


def _written(args: dict[str, Any], headers: httpx2.Headers) -> dict[str, Any]:
    """The body in the media type that the headers ask for, JSON if they ask for none."""
    match choose_body_format(headers):
        case "form":
            return {"content": urlencode(_pairs(args), errors="replace").encode()}
        case "multipart" if pairs := _pairs(args):
            # With a boundary of the library's own.
            del headers["content-type"]
            return {"files": [(name, (None, text.encode("utf-8", "replace"))) for name, text in pairs]}
        case "multipart":
            return {"content": b""}
        case _:
            headers.setdefault("content-type", "application/json")
            return {"content": msgspec.json.encode(normalize_whole_numbers(args))}


def _pairs(args: dict[str, Any]) -> list[tuple[str, str]]:
    """Arguments as forms and queries have them: a list is its name again and again, null is left out."""
    pairs: list[tuple[str, str]] = []
    for name, given in args.items():
        pairs += [(name, _text(one)) for one in (given if isinstance(given, list) else [given]) if one is not None]
    return pairs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(normalize_whole_numbers(value)).decode()


def _parsed(body: bytes, text: str, hidden: list[str]) -> Any:
    """JSON if it is that, else `text`: also where it is nested so deep that nobody could write it down again."""
    try:
        check_json(body)
        return clean_and_mask(msgspec.json.decode(body), hidden)
    except (JsonTooLarge, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text


async def walk_in_thread(size: int, walk: Callable[..., T], *args: Any) -> T:
    """Return what `walk` makes of JSON of so many bytes: in a thread, if that takes longer than others should wait."""
    return walk(*args) if size <= MAX_INLINE_WALK_BYTES else await asyncio.to_thread(walk, *args)


def clean_and_mask(value: Any, hidden: list[str]) -> Any:
    """Return a JSON value whose texts Postgres can hold, with stars for secrets."""
    return mask_secrets(clean_json(value), hidden)


def clean_json(value: Any) -> Any:
    """A JSON value whose texts Postgres can hold."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(name): clean_json(one) for name, one in value.items()}
    return [clean_json(one) for one in value] if isinstance(value, list) else value
