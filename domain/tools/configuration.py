"""What a tenant may configure of tools that answer over the network: custom HTTP tools, and MCP servers.

Pure rules alone. Where an address leads is looked at when the connection is made (`infra/http.py`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from domain.shared.errors import InvalidField, InvalidFields, field_error_from_msgspec
from domain.shared.field_errors import collect_field_errors

MAX_TOOL_TIMEOUT_SECONDS: Final = 300
MAX_TOOL_HEADERS: Final = 64
MAX_PARAMETER_DEPTH: Final = 32
MAX_SCHEMA_BYTES: Final = 64 * 1024
# What belongs to the connection or to the framing of a message, and so to whoever speaks HTTP (RFC 9110, 7.6.1).
HOP_BY_HOP_HEADERS: Final = frozenset(
    {"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"}
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
PATH_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

BodyFormat = Literal["json", "form", "multipart"]
_FORMS: Final[dict[str, BodyFormat]] = {"application/x-www-form-urlencoded": "form", "multipart/form-data": "multipart"}

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Url = Annotated[str, Meta(min_length=1, max_length=2048)]
Headers = Annotated[dict[str, str], Meta(max_length=MAX_TOOL_HEADERS)]
# From the name of a header to the name of the provider key whose value it carries.
Secrets = Annotated[dict[str, Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=16)]
Seconds = Annotated[float, Meta(gt=0, le=MAX_TOOL_TIMEOUT_SECONDS)]


class CustomToolConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A custom HTTP tool. `{name}` in the path of `api_endpoint` is filled from the arguments.

    The other arguments go into the query for GET and DELETE, else into the body: as JSON, or as a form where the header
    Content-Type says `application/x-www-form-urlencoded` or `multipart/form-data`. `parameters` is a JSON Schema of
    type object, or only its `properties`. `timeout` in seconds, for the whole call.
    """

    api_endpoint: Url
    method: Method = "POST"
    parameters: dict[str, Any] = {}
    headers: Headers = {}
    secrets: Secrets = {}
    timeout: Seconds = 30.0


class McpServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MCP server over streamable HTTP. `timeout` in seconds, for a whole call."""

    url: Url
    headers: Headers = {}
    secrets: Secrets = {}
    timeout: Seconds = 60.0


def check_custom_configuration(configuration: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A custom tool's configuration with what is left to us filled in, and the JSON Schema of its arguments.

    Errors: `invalid_field` naming `configuration.…`.
    """
    told = _read(configuration, CustomToolConfiguration)
    names = _checked_endpoint("configuration.api_endpoint", told.api_endpoint, placeholders=True)
    _checked_headers(told.headers, told.secrets)
    if told.method not in ("GET", "DELETE"):
        _check_media_type(told.headers)
    schema = _checked_parameters(told.parameters)
    known = schema["properties"]
    for name in names:
        if name not in known:
            raise InvalidField("configuration.api_endpoint", f"{{{name}}} is not among configuration.parameters.")
        if known[name].get("type", "string") not in ("string", "integer", "number", "boolean"):
            raise InvalidField(
                f"configuration.parameters.{name}", "belongs into the path, so it must be text or a number."
            )
    if told.method in ("GET", "DELETE"):
        for name, _ in parse_qsl(urlsplit(told.api_endpoint).query, keep_blank_values=True):
            if name in known:
                raise InvalidField(
                    "configuration.api_endpoint", f"sets {name!r} in its query, which is a parameter too."
                )
    # Without those there is no URL, so they are required whether or not somebody said so.
    schema["required"] = list(dict.fromkeys([*schema.get("required", ()), *names]))
    return msgspec.to_builtins(told), schema


def check_mcp_configuration(configuration: dict[str, Any]) -> dict[str, Any]:
    """An MCP server's configuration with what is left to us filled in. Errors: `invalid_field`."""
    told = _read(configuration, McpServerConfiguration)
    _checked_endpoint("configuration.url", told.url, placeholders=False)
    _checked_headers(told.headers, told.secrets)
    built: dict[str, Any] = msgspec.to_builtins(told)
    return built


def choose_body_format(headers: Mapping[str, str]) -> BodyFormat | None:
    """Return how a body of the media type that headers ask for is written; None for one that we cannot write."""
    named = next((value for name, value in headers.items() if name.lower() == "content-type"), "application/json")
    kind, *parameters = [part.strip().lower() for part in named.split(";")]
    charset = next((part.partition("=")[2].strip(' "') for part in parameters if part.startswith("charset")), "utf-8")
    if charset not in ("utf-8", "utf8"):
        return None
    if kind in ("application/json", "text/json") or re.fullmatch(r"application/[a-z0-9.+-]+\+json", kind):
        return "json"
    return _FORMS.get(kind)


def _check_media_type(headers: dict[str, str]) -> None:
    if choose_body_format(headers) is None:
        field = next(name for name in headers if name.lower() == "content-type")
        told = "must be application/json, application/x-www-form-urlencoded or multipart/form-data, in UTF-8: "
        raise InvalidField(f"configuration.headers.{field}", told + "bodies of other media types are not written here.")


def find_header_problem(name: str, value: str) -> str | None:
    """What is wrong with sending a header, as a sentence that does not hold its value."""
    if not _TOKEN.fullmatch(name):
        return "is not a name of a header."
    if name.lower() in HOP_BY_HOP_HEADERS:
        return "belongs to the connection and cannot be set."
    if not _VALUE.fullmatch(value):
        return "must be printable ASCII without line breaks, of at most 8192 characters."
    return None


def find_url_problem(url: str) -> str | None:
    """What is wrong with a URL to connect to, as a sentence. Where it leads is not looked at here."""
    if re.search(r"[\x00-\x20\x7f\\]", url):
        return "must not hold spaces, control characters or backslashes."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL."
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://."
    if "@" in parts.netloc:
        return "must not hold a name or a password; use headers."
    if not parts.hostname or port == 0:
        return "is not a URL."
    return None


def _read(configuration: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(configuration, kind)
    except msgspec.ValidationError as error:
        found = collect_field_errors(configuration, kind, "configuration")
        raise InvalidFields(found or [field_error_from_msgspec(str(error), "configuration")]) from None


def _checked_endpoint(field: str, url: str, placeholders: bool) -> list[str]:
    """The names of the placeholders in the path, in order."""
    if (wrong := find_url_problem(url)) is not None:
        raise InvalidField(field, wrong)
    parts = urlsplit(url)
    if parts.fragment:
        raise InvalidField(field, "must not hold a fragment (#…).")
    if not _HOST.fullmatch(parts.netloc.rsplit(":", 1)[0] if parts.port is not None else parts.netloc):
        raise InvalidField(field, "has no proper host.")
    names = PATH_PLACEHOLDER.findall(parts.path) if placeholders else []
    if re.search(r"[{}]", PATH_PLACEHOLDER.sub("", parts.path) if placeholders else parts.path) or re.search(
        r"[{}]", parts.query
    ):
        raise InvalidField(field, "may hold {name} in its path alone." if placeholders else "must not hold { or }.")
    for name in names:
        if not _WORD.fullmatch(name):
            raise InvalidField(field, f"{{{name[:64]}}} is not a name of a parameter.")
    return list(dict.fromkeys(names))


def _checked_headers(headers: dict[str, str], secrets: dict[str, str]) -> None:
    seen: set[str] = set()
    told = [("headers", name, value) for name, value in headers.items()] + [("secrets", name, "") for name in secrets]
    for field, name, value in told:
        wrong = find_header_problem(name, value)
        if wrong is None and name.lower() in seen:
            wrong = "is set twice."
        if wrong is not None:
            raise InvalidField(f"configuration.{field}.{name[:128]}", wrong)
        seen.add(name.lower())


def _checked_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema of type object with `properties`."""
    field = "configuration.parameters"
    if len(msgspec.json.encode(parameters)) > MAX_SCHEMA_BYTES:
        raise InvalidField(field, f"may have {MAX_SCHEMA_BYTES} bytes as JSON.")
    inner = parameters.get("properties")
    whole = isinstance(parameters.get("type"), str) or (isinstance(inner, dict) and _all_schemas(inner.values()))
    schema: dict[str, Any] = dict(parameters) if whole else {"properties": parameters}
    if schema.setdefault("type", "object") != "object":
        raise InvalidField(f"{field}.type", "must be object: arguments have names.")
    properties = schema.setdefault("properties", {})
    if not isinstance(properties, dict):
        raise InvalidField(f"{field}.properties", "must be an object.")
    for name, one in properties.items():
        if not isinstance(one, dict):
            raise InvalidField(f"{field}.{name[:64]}", 'must be a JSON Schema such as {"type": "string"}.')
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        raise InvalidField(f"{field}.required", "must be a list of names of properties.")
    if not is_self_contained(schema):
        raise InvalidField(
            field, f"may be nested {MAX_PARAMETER_DEPTH} deep, and $ref may lead to places within it alone (#…)."
        )
    return schema


def _all_schemas(values: Iterable[Any]) -> bool:
    return all(isinstance(one, dict) for one in values)


def is_self_contained(schema: Any) -> bool:
    """Whether a schema is not nested endlessly, and no reference leads out of it.

    Who checks something against a schema may fetch what it refers to.
    """
    level = [schema]
    for _ in range(MAX_PARAMETER_DEPTH):
        deeper: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                if any(isinstance(one.get(key), str) and not one[key].startswith("#") for key in _REFERENCES):
                    return False
                deeper.extend(one.values())
            elif isinstance(one, list):
                deeper.extend(one)
        if not deeper:
            return True
        level = deeper
    return False
