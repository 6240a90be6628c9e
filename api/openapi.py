"""The OpenAPI document: what Litestar makes of the handlers, and what only we know about every route."""

import re
from typing import Any, Final

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Method

from api import websockets
from api.errors import TABLE, Problem
from api.examples import example_of
from domain.artifacts.schema import Artifact
from domain.evaluations import MAX_BATCH, NewEvaluation
from domain.workflows import YAML, NewWorkflow, PatchWorkflow, YamlWorkflow
from infra.tables import MEDIA

_ERRORS: Final = {"400": "malformed_request", "401": "unauthenticated", "403": "missing_scope", "404": "not_found"}
_ALWAYS: Final = {"422": "invalid_field", "429": "rate_limit_exceeded", "503": "unavailable"}
_PREFER: Final = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N`: hold the answer until the work has ended, for N seconds at most (60).",
    "schema": {"type": "string"},
    "example": "wait=30",
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body again answer as the first did, for 24 hours.",
    "schema": {"type": "string", "maxLength": 255},
}
_LAST: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "Resume after this event.",
    "schema": {"type": "integer"},
}
_WAITING: Final = (
    "execute_agent",
    "execute_crew",
    "execute_workflow",
    "start_execution",
    "retry_execution",
    "run_schedule",
    "generate",
    "get_execution",
    "get_version",
    "upload_archive",
)
_ARCHIVE: Final = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary", "description": "A .tar.gz archive."}},
            }
        }
    },
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_EVALUATIONS: Final = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/NewEvaluation"},
    "minItems": 1,
    "maxItems": MAX_BATCH,
}
_WRAPPED: Final = {"type": "object", "required": ["evaluations"], "properties": {"evaluations": _EVALUATIONS}}
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}
# In the responses alone: generators of clients drop a route whose body may also be of a type that they do not know.
_YAML_TEXT: Final = {"schema": {"type": "string", "description": "A YAML document."}}


def _workflow(name: str) -> dict[str, Any]:
    forms = [{"$ref": f"#/components/schemas/{form}"} for form in (name, "YamlWorkflow")]
    told = f"JSON as here, or the same as YAML under `Content-Type: {YAML[0]}`."
    return {"required": True, "description": told, "content": _json({"oneOf": forms})}


_EVALUATION: Final = {"required": True, "content": _json({"$ref": "#/components/schemas/NewEvaluation"})}
# Bodies that handlers read by themselves.
_BODIES: Final = {
    "upload_archive": _ARCHIVE,
    "upload_artifact": {"required": True, "content": _json({"$ref": "#/components/schemas/Artifact"})},
    **dict.fromkeys(("create_evaluation", "upload_metrics"), _EVALUATION),
    "create_workflow": _workflow("NewWorkflow"),
    **dict.fromkeys(("patch_workflow", "patch_workflow_put"), _workflow("PatchWorkflow")),
    "create_batch": {"required": True, "content": _json({"anyOf": [_EVALUATIONS, _WRAPPED]})},
}


def operation_id(handler: HTTPRouteHandler, method: Method, path: list[str | Any]) -> str:
    """`get_agent`; on further paths of one handler, with the path's first word: `get_execution_runtime`."""
    words = [part for part in path if isinstance(part, str)][2:]
    others = sorted(str(one) for one in handler.paths)
    name = str(handler.fn.__name__)
    if len(others) > 1 and handler.opt.get("home", others[0]).strip("/").split("/")[0] != words[0]:
        name = f"{name}_{words[0].replace('-', '_')}"
    return name if method in ("GET", "POST", "PATCH", "DELETE") else f"{name}_{method.lower()}"


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """Litestar's document with our errors, headers and bodies in it."""
    text = msgspec.json.encode(document).decode()
    document = msgspec.json.decode(re.sub(r"(Listing|Series)_domain\.[\w.]+\.(\w+?)_\b", r"\1Of\2", text))
    schemas = document["components"]["schemas"]
    _, components = msgspec.json.schema_components(
        [Problem, Artifact, NewEvaluation, NewWorkflow, PatchWorkflow, YamlWorkflow],
        ref_template="#/components/schemas/{name}",
    )
    schemas.update(components | websockets.SCHEMAS)
    _describe_items(schemas)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _finish(path, method, operation)
    document["paths"].update(websockets.PATHS)
    return document


def _describe_items(schema: Any) -> None:
    """Say of every array that its items may be anything, where nothing is said: generators ask for that."""
    if isinstance(schema, dict):
        if schema.get("type") == "array" and not {"items", "prefixItems"} & schema.keys():
            schema["items"] = {}
        for value in schema.values():
            _describe_items(value)
    elif isinstance(schema, list):
        for value in schema:
            _describe_items(value)


def _finish(path: str, method: str, operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    public = path.startswith(("/health", "/metrics")) or name in ("register", "login", "refresh")
    if public:
        operation["security"] = []
    codes = {**_ERRORS, **_ALWAYS}
    if public:
        codes.pop("403")
    if "{" not in path:
        codes.pop("404")
    if method != "get":
        codes |= {"409": "conflict", "413": "body_too_large"}
    operation["responses"].pop("400", None)
    for status, code in codes.items():
        operation["responses"][status] = {
            "description": TABLE[code][1],
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _example(path, int(status), code),
                }
            },
        }
    if "201" in operation["responses"]:
        operation["responses"]["201"]["description"] = "Created"
    headers = operation.setdefault("parameters", [])
    if any(name.startswith(waiting) for waiting in _WAITING):
        headers.append(_PREFER)
    makes = "201" in operation["responses"] or name.startswith("generate")
    if method == "post" and makes and name != "register":
        headers.append(_KEY)
    if name == "stream_events":
        headers.append(_LAST)
    if name in _BODIES:
        operation["requestBody"] = _BODIES[name]
    if "requestBody" in operation:
        operation["requestBody"] = _with_example(operation["requestBody"], example_of(name))
    if name == "get_artifact":
        operation["responses"]["200"]["content"] = _json({"$ref": "#/components/schemas/Artifact"})
    if name == "get_workflow":
        operation["responses"]["200"]["content"]["text/yaml"] = _YAML_TEXT
    if name.startswith("export_"):
        operation["responses"]["200"]["content"] = dict.fromkeys(MEDIA.values(), _FILE)
    if "application/octet-stream" in operation["responses"].get("200", {}).get("content", {}):
        operation["responses"]["200"]["content"] = {"application/octet-stream": _FILE}


def _with_example(body: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {
        kind: told | ({"example": example} if kind == "application/json" and example is not None else {})
        for kind, told in body["content"].items()
    }
    return {**body, "content": content}


def _example(path: str, status: int, code: str) -> dict[str, Any]:
    told = {
        "type": f"urn:paddock:error:{code}",
        "title": TABLE[code][1],
        "status": status,
        "detail": TABLE[code][1] + ".",
        "instance": path,
        "error": code,
        "request_id": "req_01k0000000000000000000000",
    }
    if code == "invalid_field":
        told["errors"] = [{"field": "name", "message": "is required."}]
    return told | ({"retry_after": 60} if status == 429 else {})
