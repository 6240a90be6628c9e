"""Build the OpenAPI document: what Litestar reads from handlers, their declared details, and the error responses."""

import re
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.types import Method

from api import websockets
from api.errors import ERROR_TABLE, Problem
from api.examples import find_example
from api.operations import MAIN_PATH_KEY, NO_CALLER, SCHEMA_REF

_PROBLEM_TYPE: Final = "application/problem+json"
# The code that stands for each status of error responses.
_ERROR_CODES: Final = {
    "400": "malformed_request",
    "401": "unauthenticated",
    "403": "missing_scope",
    "404": "not_found",
    "409": "conflict",
    "413": "body_too_large",
    "422": "invalid_field",
    "429": "rate_limit_exceeded",
    "503": "unavailable",
}
_WRITE_STATUSES: Final = ("409", "413")
# Litestar names `Listing[Agent]` by the module of its parameter.
_GENERIC_NAME: Final = re.compile(r"\b([A-Z]\w*?)_domain\.[\w.]+\.(\w+?)_\b")
# Methods whose operations have the handler's name alone; PUT of a handler that also takes PATCH does not.
_PLAIN_METHODS: Final = ("GET", "POST", "PATCH", "DELETE")


def create_operation_id(handler: HTTPRouteHandler, method: Method, path: list[str | Any]) -> str:
    """Return the handler's name, for example `get_agent`.

    Further paths of a handler add their first word (`get_execution_runtime`), and PUT beside PATCH adds `put`.
    """
    words = [part for part in path if isinstance(part, str)][2:]
    paths = sorted(str(handler_path) for handler_path in handler.paths)
    name = str(handler.fn.__name__)
    if len(paths) > 1 and handler.opt.get(MAIN_PATH_KEY, paths[0]).strip("/").split("/")[0] != words[0]:
        name = f"{name}_{words[0].replace('-', '_')}"
    if method not in _PLAIN_METHODS and len(handler.http_methods) > 1:
        return f"{name}_{method.lower()}"
    return name


def build_document(app: Litestar) -> dict[str, Any]:
    """Return the app's OpenAPI document."""
    text = msgspec.json.encode(app.openapi_schema.to_schema()).decode()
    document: dict[str, Any] = msgspec.json.decode(_GENERIC_NAME.sub(r"\2\1", text))
    handlers = _list_handlers(app)
    body_types: list[type] = [Problem]
    for (path, method), handler in handlers.items():
        _complete_operation(path, method, document["paths"][path][method], handler)
        body_types += [kind for detail in handler.opt["details"] for kind in detail.body_types]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(body_types), ref_template=SCHEMA_REF)
    components = document["components"]
    components["schemas"].update(schemas | websockets.SOCKET_SCHEMAS)
    components["responses"] = {_name_response(code): _describe_error(status) for status, code in _ERROR_CODES.items()}
    _allow_any_items(components["schemas"])
    document["paths"].update(websockets.SOCKET_PATHS)
    return document


def _list_handlers(app: Litestar) -> dict[tuple[str, str], HTTPRouteHandler]:
    """Return the handler of every documented operation, by path and method in lower case."""
    return {
        (route.path_format, method.lower()): handler
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        if isinstance(handler, HTTPRouteHandler) and handler.resolve_include_in_schema()
        for method in handler.http_methods
        if method != "OPTIONS"
    }


def _complete_operation(path: str, method: str, operation: dict[str, Any], handler: HTTPRouteHandler) -> None:
    is_public = handler.opt["required_scope"] == NO_CALLER
    if is_public:
        operation["security"] = []
    responses = operation["responses"]
    for status, code in _ERROR_CODES.items():
        responses.pop(status, None)
        is_impossible = (
            (status == "403" and is_public)
            or (status == "404" and "{" not in path)
            or (status in _WRITE_STATUSES and method == "get")
        )
        if not is_impossible:
            responses[status] = {"$ref": f"#/components/responses/{_name_response(code)}"}
    if "201" in responses:
        responses["201"]["description"] = "Created"
    operation.setdefault("parameters", [])
    for detail in handler.opt["details"]:
        detail.apply_to(operation)
    if "requestBody" in operation:
        operation["requestBody"] = _add_example(operation["requestBody"], find_example(operation["operationId"]))


def _add_example(body: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {media_type: dict(schema) for media_type, schema in body["content"].items()}
    if example is not None and "application/json" in content:
        content["application/json"]["example"] = example
    return {**body, "content": content}


def _allow_any_items(schema: Any) -> None:
    """Declare for every array without a type of items that they may be anything: generators of clients require it."""
    if isinstance(schema, dict):
        if schema.get("type") == "array" and not {"items", "prefixItems"} & schema.keys():
            schema["items"] = {}
        for value in schema.values():
            _allow_any_items(value)
    elif isinstance(schema, list):
        for value in schema:
            _allow_any_items(value)


def _name_response(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


def _describe_error(status: str) -> dict[str, Any]:
    code = _ERROR_CODES[status]
    title = ERROR_TABLE[code][1]
    example: dict[str, Any] = {
        "type": f"urn:paddock:error:{code}",
        "title": title,
        "status": int(status),
        "detail": f"{title}.",
        "instance": "/api/v1/agents",
        "error": code,
        "request_id": "req_01k0000000000000000000000",
    }
    if code == "invalid_field":
        example["errors"] = [{"field": "name", "message": "is required."}]
    if status == "429":
        example["retry_after"] = 60
    schema = {"$ref": SCHEMA_REF.format(name=Problem.__name__)}
    return {"description": title, "content": {_PROBLEM_TYPE: {"schema": schema, "example": example}}}
