"""Check the configurations of custom HTTP tools and MCP servers.

The rules are pure. The address behind a host is checked when the connection is made (`infra/http.py`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from domain.shared.errors import InvalidField, InvalidFields
from domain.shared.field_errors import list_field_errors

MAX_TOOL_TIMEOUT_SECONDS: Final = 300
MAX_TOOL_HEADERS: Final = 64
MAX_PARAMETER_DEPTH: Final = 32
MAX_SCHEMA_BYTES: Final = 64 * 1024
# Headers of the connection or of message framing, which only the HTTP client may set (RFC 9110, 7.6.1).
HOP_BY_HOP_HEADERS: Final = frozenset(
    {"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"}
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
PATH_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
_HOST_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]")
_REFERENCE_KEYWORDS: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_PARAMETER_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

BodyFormat = Literal["json", "form", "multipart"]
_FORM_MEDIA_TYPES: Final[dict[str, BodyFormat]] = {
    "application/x-www-form-urlencoded": "form",
    "multipart/form-data": "multipart",
}

HttpMethod = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
EndpointUrl = Annotated[str, Meta(min_length=1, max_length=2048)]
HeaderValues = Annotated[dict[str, str], Meta(max_length=MAX_TOOL_HEADERS)]
# Maps a header to the provider key that it carries.
SecretReferences = Annotated[dict[str, Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=16)]
ToolTimeout = Annotated[float, Meta(gt=0, le=MAX_TOOL_TIMEOUT_SECONDS)]


class CustomToolConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configure a custom HTTP tool. `{name}` in the path of `api_endpoint` is filled from the arguments.

    The other arguments go into the query for GET and DELETE, else into the body: as JSON, or as a form if the header
    Content-Type is `application/x-www-form-urlencoded` or `multipart/form-data`. `parameters` is a JSON Schema of
    type object, or only its `properties`. `timeout` is in seconds, for the whole call.
    """

    api_endpoint: EndpointUrl
    method: HttpMethod = "POST"
    parameters: dict[str, Any] = {}
    headers: HeaderValues = {}
    secrets: SecretReferences = {}
    timeout: ToolTimeout = 30.0


class McpServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configure an MCP server over streamable HTTP. `timeout` is in seconds, for a whole call."""

    url: EndpointUrl
    headers: HeaderValues = {}
    secrets: SecretReferences = {}
    timeout: ToolTimeout = 60.0


def check_custom_configuration(configuration: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a custom tool's configuration with defaults filled in, and the JSON Schema of its arguments.

    Errors: `invalid_field` names `configuration.…`.
    """
    custom = _decode_configuration(configuration, CustomToolConfiguration)
    names = _check_endpoint("configuration.api_endpoint", custom.api_endpoint, placeholders=True)
    _check_headers(custom.headers, custom.secrets)
    if custom.method not in ("GET", "DELETE"):
        _check_media_type(custom.headers)
    schema = _check_parameters(custom.parameters)
    properties = schema["properties"]
    for name in names:
        if name not in properties:
            raise InvalidField(
                "configuration.api_endpoint", f"uses {{{name}}}, which is missing in configuration.parameters."
            )
        if properties[name].get("type", "string") not in ("string", "integer", "number", "boolean"):
            raise InvalidField(
                f"configuration.parameters.{name}",
                "is part of the path, so it must be a string, a number or a boolean.",
            )
    if custom.method in ("GET", "DELETE"):
        for name, _ in parse_qsl(urlsplit(custom.api_endpoint).query, keep_blank_values=True):
            if name in properties:
                raise InvalidField(
                    "configuration.api_endpoint", f"must not set {name!r} in its query, because it is also a parameter."
                )
    # The URL needs these, so they are always required.
    schema["required"] = list(dict.fromkeys([*schema.get("required", ()), *names]))
    return msgspec.to_builtins(custom), schema


def check_mcp_configuration(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return an MCP server's configuration with defaults filled in. Errors: `invalid_field`."""
    server = _decode_configuration(configuration, McpServerConfiguration)
    _check_endpoint("configuration.url", server.url, placeholders=False)
    _check_headers(server.headers, server.secrets)
    built: dict[str, Any] = msgspec.to_builtins(server)
    return built


def choose_body_format(headers: Mapping[str, str]) -> BodyFormat | None:
    """Return the format of a body for the media type in the headers; None for an unsupported one."""
    media_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "application/json")
    kind, *parameters = [part.strip().lower() for part in media_type.split(";")]
    charset = next((part.partition("=")[2].strip(' "') for part in parameters if part.startswith("charset")), "utf-8")
    if charset not in ("utf-8", "utf8"):
        return None
    if kind in ("application/json", "text/json") or re.fullmatch(r"application/[a-z0-9.+-]+\+json", kind):
        return "json"
    return _FORM_MEDIA_TYPES.get(kind)


def _check_media_type(headers: dict[str, str]) -> None:
    if choose_body_format(headers) is None:
        field = next(name for name in headers if name.lower() == "content-type")
        message = "must be application/json, application/x-www-form-urlencoded or multipart/form-data, in UTF-8."
        raise InvalidField(f"configuration.headers.{field}", message)


def find_header_problem(name: str, value: str) -> str | None:
    """Return what is wrong with a header, in a sentence without its value, or None."""
    if not _HEADER_NAME.fullmatch(name):
        return "is not a valid header name."
    if name.lower() in HOP_BY_HOP_HEADERS:
        return "is a header of the connection and cannot be set."
    if not _HEADER_VALUE.fullmatch(value):
        return "must be at most 8192 characters of printable ASCII, without line breaks."
    return None


def find_url_problem(url: str) -> str | None:
    """Return what is wrong with a URL, as a sentence, or None. Its address is not checked here."""
    if re.search(r"[\x00-\x20\x7f\\]", url):
        return "must not contain spaces, control characters or backslashes."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "must be a valid URL."
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://."
    if "@" in parts.netloc:
        return "must not contain a user or a password. Use headers instead."
    if not parts.hostname or port == 0:
        return "must be a valid URL."
    return None


def _decode_configuration(configuration: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(configuration, kind)
    except msgspec.ValidationError as error:
        raise InvalidFields(list_field_errors(configuration, kind, error, "configuration")) from None


def _check_endpoint(field: str, url: str, placeholders: bool) -> list[str]:
    """Return the names of the placeholders in the path, in order."""
    if (problem := find_url_problem(url)) is not None:
        raise InvalidField(field, problem)
    parts = urlsplit(url)
    if parts.fragment:
        raise InvalidField(field, "must not contain a fragment (#…).")
    if not _HOST_PATTERN.fullmatch(parts.netloc.rsplit(":", 1)[0] if parts.port is not None else parts.netloc):
        raise InvalidField(field, "must contain a valid host.")
    names = PATH_PLACEHOLDER.findall(parts.path) if placeholders else []
    if re.search(r"[{}]", PATH_PLACEHOLDER.sub("", parts.path) if placeholders else parts.path) or re.search(
        r"[{}]", parts.query
    ):
        raise InvalidField(
            field, "may contain {name} only in its path." if placeholders else "must not contain { or }."
        )
    for name in names:
        if not _PARAMETER_NAME.fullmatch(name):
            raise InvalidField(field, f"contains {{{name[:64]}}}, which is not a valid parameter name.")
    return list(dict.fromkeys(names))


def _check_headers(headers: dict[str, str], secrets: dict[str, str]) -> None:
    seen: set[str] = set()
    entries = [("headers", name, value) for name, value in headers.items()]
    entries += [("secrets", name, "") for name in secrets]
    for field, name, value in entries:
        problem = find_header_problem(name, value)
        if problem is None and name.lower() in seen:
            problem = "is set twice. Remove one of them."
        if problem is not None:
            raise InvalidField(f"configuration.{field}.{name[:128]}", problem)
        seen.add(name.lower())


def _check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters as a JSON Schema of type object with `properties`. Errors: `invalid_field`."""
    field = "configuration.parameters"
    if len(msgspec.json.encode(parameters)) > MAX_SCHEMA_BYTES:
        raise InvalidField(field, f"must be at most {MAX_SCHEMA_BYTES} bytes of JSON.")
    inner = parameters.get("properties")
    is_schema = isinstance(parameters.get("type"), str) or (
        isinstance(inner, dict) and _has_only_objects(inner.values())
    )
    schema: dict[str, Any] = dict(parameters) if is_schema else {"properties": parameters}
    if schema.setdefault("type", "object") != "object":
        raise InvalidField(f"{field}.type", "must be 'object', because arguments have names.")
    properties = schema.setdefault("properties", {})
    if not isinstance(properties, dict):
        raise InvalidField(f"{field}.properties", "must be an object.")
    for name, subschema in properties.items():
        if not isinstance(subschema, dict):
            raise InvalidField(f"{field}.{name[:64]}", 'must be a JSON Schema, for example {"type": "string"}.')
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        raise InvalidField(f"{field}.required", "must be a list of names of properties.")
    if not is_self_contained(schema):
        raise InvalidField(
            field, f"must be nested at most {MAX_PARAMETER_DEPTH} levels deep, and every $ref must begin with #."
        )
    return schema


def _has_only_objects(values: Iterable[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def is_self_contained(schema: Any) -> bool:
    """Return whether a schema is not nested too deeply, and no reference leads out of it.

    Some validators fetch external references.
    """
    level = [schema]
    for _ in range(MAX_PARAMETER_DEPTH):
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if any(isinstance(node.get(key), str) and not node[key].startswith("#") for key in _REFERENCE_KEYWORDS):
                    return False
                deeper.extend(node.values())
            elif isinstance(node, list):
                deeper.extend(node)
        if not deeper:
            return True
        level = deeper
    return False
