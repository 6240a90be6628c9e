"""Describe the WebSockets in the OpenAPI document, although OpenAPI has no notion of them.

Each is a GET that answers 101; `x-websocket` lists the schemas of the messages in both directions.
"""

from typing import Any, Final

from domain.executions import ExecutionStart

_ID_SCHEMA: Final = {"type": "string"}
SOCKET_SCHEMAS: Final[dict[str, Any]] = {
    "StreamedEvent": {
        "title": "StreamedEvent",
        "description": "An event of an execution's log. The last one is a `status` that is terminal.",
        "type": "object",
        "required": ["seq", "type", "at"],
        "properties": {
            "seq": {
                "type": "integer",
                "description": "The event's number in the log; a stream can be resumed after it.",
            },
            "type": {
                "type": "string",
                "examples": ["status", "log", "output", "progress", "token", "thinking", "tool_call", "tool_result"],
            },
            "at": {"type": "string", "format": "date-time"},
        },
        "additionalProperties": True,
    },
    "StreamComplete": {
        "title": "StreamComplete",
        "description": "The result of an execution, sent after its last event.",
        "type": "object",
        "required": ["type", "execution_id", "status", "result", "cost"],
        "properties": {
            "type": {"const": "complete"},
            "execution_id": _ID_SCHEMA,
            "status": {"type": "string"},
            "result": {},
            "cost": {"type": "number", "description": "US dollars."},
            "error_type": {"type": ["string", "null"]},
            "error_message": {"type": ["string", "null"]},
        },
    },
    "StreamError": {
        "title": "StreamError",
        "description": "The error that ends a stream; the socket is closed after it.",
        "type": "object",
        "required": ["type", "error", "detail"],
        "properties": {
            "type": {"const": "error"},
            "error": {"type": "string", "description": "The same codes as in a Problem."},
            "detail": {"type": "string"},
            "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
        },
    },
    "StreamResume": {
        "title": "StreamResume",
        "description": "Resume reading an execution of this agent after an event.",
        "type": "object",
        "required": ["execution_id"],
        "properties": {"execution_id": _ID_SCHEMA, "after": {"type": "integer", "minimum": 0, "default": 0}},
        "additionalProperties": False,
    },
}


def _list_references(*names: str) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/schemas/{name}"} for name in names]


def _describe_socket(
    operation_id: str, summary: str, description: str, parameters: list[Any], **messages: Any
) -> dict[str, Any]:
    token = {
        "name": "access_token",
        "in": "query",
        "required": False,
        "description": "A bearer token or an API key, for browsers, whose WebSockets send no headers.",
        "schema": {"type": "string"},
    }
    return {
        "tags": ["logs and events"],
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "deprecated": False,
        "parameters": [*parameters, token],
        "responses": {"101": {"description": "The connection becomes a WebSocket."}},
        "x-websocket": messages,
    }


def _describe_path_id(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _ID_SCHEMA}


SOCKET_PATHS: Final[dict[str, Any]] = {
    "/api/v1/agents/{agent_id}/stream": {
        "get": _describe_socket(
            "stream_agent",
            "Stream Agent (WebSocket)",
            f"Send the input of a run as JSON (`{ExecutionStart.__name__}`), receive the events of its execution, "
            "live, then a `StreamComplete`. Several may be sent, one after the other. Closing the socket stops no "
            "execution: `StreamResume` resumes reading one. A `StreamError` is sent before the socket is closed for an "
            "error.",
            [_describe_path_id("agent_id")],
            send=_list_references(ExecutionStart.__name__, "StreamResume"),
            receive=_list_references("StreamedEvent", "StreamComplete", "StreamError"),
        )
    },
    "/api/v1/execution-logs/{execution_id}/stream": {
        "get": _describe_socket(
            "stream_logs",
            "Stream Logs (WebSocket)",
            "Receive the event log of an execution, live, one JSON object per message. After the last event the socket "
            "is closed (1000).",
            [
                _describe_path_id("execution_id"),
                {
                    "name": "after",
                    "in": "query",
                    "required": False,
                    "description": "Resume after this event.",
                    "schema": {"type": "integer", "default": 0},
                },
            ],
            send=[],
            receive=_list_references("StreamedEvent", "StreamError"),
        )
    },
}
