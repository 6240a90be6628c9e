"""Declare beside a handler what its route requires and what the OpenAPI document says of it."""

from typing import Any, Final, Protocol

import msgspec

SCHEMA_REF: Final = "#/components/schemas/{name}"
BINARY_FILE: Final = {"schema": {"type": "string", "format": "binary"}}


class OperationDetail(Protocol):
    """Describes one thing about an operation that Litestar cannot read from its handler's signature."""

    @property
    def body_types(self) -> tuple[type, ...]:
        """Return the types whose schemas the document needs because of this detail."""
        ...

    def apply_to(self, operation: dict[str, Any]) -> None:
        """Add the detail to an operation of the document."""
        ...


class HeaderParameter(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a request header that a handler reads by hand."""

    name: str
    description: str
    schema: dict[str, Any]
    example: str | None = None

    @property
    def body_types(self) -> tuple[type, ...]:
        """Return no types: a header has no body."""
        return ()

    def apply_to(self, operation: dict[str, Any]) -> None:
        """Add the header to the operation's parameters."""
        parameter = {"name": self.name, "in": "header", "description": self.description, "schema": self.schema}
        if self.example is not None:
            parameter["example"] = self.example
        operation.setdefault("parameters", []).append(parameter)


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a body that a handler reads by hand: its content by media type, and the types its schemas refer to."""

    content: dict[str, Any]
    body_types: tuple[type, ...] = ()
    description: str | None = None

    def apply_to(self, operation: dict[str, Any]) -> None:
        """Set the operation's request body."""
        body: dict[str, Any] = {"required": True, "content": self.content}
        if self.description is not None:
            body["description"] = self.description
        operation["requestBody"] = body


class ResponseContent(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the content of a 200 response by media type; `adds` keeps what Litestar found beside it."""

    content: dict[str, Any]
    body_types: tuple[type, ...] = ()
    adds: bool = False

    def apply_to(self, operation: dict[str, Any]) -> None:
        """Set or extend the content of the operation's 200 response."""
        response = operation["responses"]["200"]
        response["content"] = {**response["content"], **self.content} if self.adds else self.content


PREFER_WAIT: Final = HeaderParameter(
    name="Prefer",
    description="`wait=N`: hold the answer until the work has ended, for N seconds at most (60).",
    schema={"type": "string"},
    example="wait=30",
)
IDEMPOTENCY_KEY: Final = HeaderParameter(
    name="Idempotency-Key",
    description="A repeated request with the same key and body gets the first answer again, for 24 hours.",
    schema={"type": "string", "maxLength": 255},
)
RANGE_HEADER: Final = HeaderParameter(
    name="Range", description="One range of bytes, as `bytes=0-1023`.", schema={"type": "string"}
)
LAST_EVENT_ID: Final = HeaderParameter(
    name="Last-Event-ID", description="Resume after this event.", schema={"type": "integer"}
)


def refer_to(kind: type) -> dict[str, str]:
    """Return a reference to the schema of a type."""
    return {"$ref": SCHEMA_REF.format(name=kind.__name__)}


def describe_json(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON body or response of this schema."""
    return {"application/json": {"schema": schema}}


def read_body_as(*kinds: type, description: str | None = None) -> RequestBody:
    """Return the detail of a handler that reads its JSON body by hand, as one of these types."""
    references = [refer_to(kind) for kind in kinds]
    schema = references[0] if len(references) == 1 else {"oneOf": references}
    return RequestBody(content=describe_json(schema), body_types=kinds, description=description)


def return_json(kind: type) -> ResponseContent:
    """Return the detail of a handler that streams JSON of this type."""
    return ResponseContent(content=describe_json(refer_to(kind)), body_types=(kind,))


def return_files(*media_types: str) -> ResponseContent:
    """Return the detail of a handler that answers with a file of one of these media types."""
    return ResponseContent(content=dict.fromkeys(media_types, BINARY_FILE))


def require_scope(scope: str, *details: OperationDetail) -> dict[str, Any]:
    """Return the options of a route that callers with this scope may use. A route without options is refused."""
    return {"required_scope": scope, "details": details}


ANY_SCOPE: Final = "any"
NO_CALLER: Final = "none"
ANY_CALLER: Final[dict[str, Any]] = require_scope(ANY_SCOPE)
PUBLIC_ACCESS: Final[dict[str, Any]] = require_scope(NO_CALLER)
# Names the first word of the path whose operation has the handler's name alone.
MAIN_PATH_KEY: Final = "main_path"
