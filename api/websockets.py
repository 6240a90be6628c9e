"""How the OpenAPI document describes WebSockets, for which OpenAPI has no words of its own.

Each is a GET that answers 101; what is sent both ways is in `x-websocket`, by schema.
"""

from typing import Any, Final

_ID: Final = {"type": "string"}
SCHEMAS: Final[dict[str, Any]] = {
    "StreamedEvent": {
        "title": "StreamedEvent",
        "description": "An event of an execution's log. The last one is a `status` that is terminal.",
        "type": "object",
        "required": ["seq", "type", "at"],
        "properties": {
            "seq": {"type": "integer", "description": "Its number in the log; a stream can be resumed after it."},
            "type": {"type": "string", "examples": ["status", "log", "token", "thinking", "tool_call", "tool_result"]},
            "at": {"type": "string", "format": "date-time"},
        },
        "additionalProperties": True,
    },
    "StreamComplete": {
        "title": "StreamComplete",
        "description": "What an execution came to, after its last event.",
        "type": "object",
        "required": ["type", "execution_id", "status", "result", "cost"],
        "properties": {
            "type": {"const": "complete"},
            "execution_id": _ID,
            "status": {"type": "string"},
            "result": {},
            "cost": {"type": "number", "description": "US dollars."},
            "error_type": {"type": ["string", "null"]},
            "error_message": {"type": ["string", "null"]},
        },
    },
    "StreamError": {
        "title": "StreamError",
        "description": "Why a stream ends; the socket is closed after it.",
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
        "description": "Go on reading an execution of this agent after an event.",
        "type": "object",
        "required": ["execution_id"],
        "properties": {"execution_id": _ID, "after": {"type": "integer", "minimum": 0, "default": 0}},
        "additionalProperties": False,
    },
}


def _refer(*names: str) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/schemas/{name}"} for name in names]


def _operation(operation_id: str, summary: str, told: str, parameters: list[Any], **messages: Any) -> dict[str, Any]:
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
        "description": told,
        "deprecated": False,
        "parameters": [*parameters, token],
        "responses": {"101": {"description": "The connection is a WebSocket from here on."}},
        "x-websocket": messages,
    }


def _path_id(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _ID}


PATHS: Final[dict[str, Any]] = {
    "/api/v1/agents/{agent_id}/stream": {
        "get": _operation(
            "stream_agent",
            "Stream Agent (WebSocket)",
            "Send what to run as JSON (`Start`) and receive the events of its execution as they happen, then a "
            "`StreamComplete`. Several may be sent, one after the other. Closing the socket stops no execution: "
            "`StreamResume` goes on reading one. Before it is closed for a reason, a `StreamError` tells it.",
            [_path_id("agent_id")],
            send=_refer("Start", "StreamResume"),
            receive=_refer("StreamedEvent", "StreamComplete", "StreamError"),
        )
    },
    "/api/v1/execution-logs/{execution_id}/stream": {
        "get": _operation(
            "stream_logs",
            "Stream Logs (WebSocket)",
            "Receive the event log of an execution, live, one JSON object per message. After the last event the socket "
            "is closed (1000).",
            [
                _path_id("execution_id"),
                {
                    "name": "after",
                    "in": "query",
                    "required": False,
                    "description": "Resume after this event.",
                    "schema": {"type": "integer", "default": 0},
                },
            ],
            send=[],
            receive=_refer("StreamedEvent", "StreamError"),
        )
    },
}
