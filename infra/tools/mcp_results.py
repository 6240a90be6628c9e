"""Repair the results of MCP servers before the client library checks them.

The library refuses a whole list of tools for one invalid entry, and a whole answer for one piece of content. Here only
the invalid entry is dropped, with a warning that says why.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from domain.shared.json_schemas import normalize_schema

MAX_TOOL_NAME_CHARACTERS: Final = 128
MAX_DESCRIPTION_CHARACTERS: Final = 4096
# Of one list, so that a server cannot fill a log.
MAX_TOOL_WARNINGS: Final = 20

# Called with a tool (the `repr` of its name, or its number) and the problem, as the rest of a sentence.
WarnAboutTool = Callable[[str, str], None]


class LenientDispatcher:
    """Wrap the dispatcher of a client's session, and repair its results of `tools/list` and `tools/call`."""

    def __init__(self, dispatcher: Any, warn: WarnAboutTool | None = None) -> None:
        self._dispatcher = dispatcher
        self._warnings = _WarningLimiter(warn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatcher, name)

    async def send_raw_request(self, method: str, params: Any, opts: Any = None) -> Any:
        """Send a request and return its repaired result. Errors: those of the dispatcher."""
        result = await self._dispatcher.send_raw_request(method, params, opts)
        if not isinstance(result, dict):
            return result
        if method == "tools/list":
            return _repair_list(result, self._warnings)
        # Results of another kind (a request for more input) are left to the client.
        is_complete = result.get("resultType") in (None, "complete")
        return _repair_call(result) if method == "tools/call" and is_complete else result


class _WarningLimiter:
    def __init__(self, warn: WarnAboutTool | None) -> None:
        self._warn, self._left = warn, MAX_TOOL_WARNINGS

    def add(self, tool: str, message: str) -> None:
        if self._warn is None or self._left <= 0:
            return
        self._left -= 1
        self._warn(tool, message if self._left else f"{message} (further warnings are left out)")


def _repair_list(result: dict[str, Any], warnings: _WarningLimiter) -> dict[str, Any]:
    listed = result.get("tools")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        return result
    tools = [
        tool for number, entry in enumerate(listed, 1) if (tool := _repair_tool(entry, number, warnings)) is not None
    ]
    cursor = result.get("nextCursor")
    rest = {name: value for name, value in result.items() if name not in ("tools", "nextCursor", "_meta")}
    return {**rest, "tools": tools, **({"nextCursor": cursor} if isinstance(cursor, str) and cursor else {})}


def _repair_tool(entry: Any, number: int, warnings: _WarningLimiter) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        warnings.add(f"number {number}", "is left out: it is not an object.")
        return None
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        warnings.add(f"number {number}", "is left out: it has no name.")
        return None
    label = repr(name[:MAX_TOOL_NAME_CHARACTERS])
    if len(name) > MAX_TOOL_NAME_CHARACTERS or not name.isprintable():
        warnings.add(
            label, f"is left out: its name must be printable and have at most {MAX_TOOL_NAME_CHARACTERS} characters."
        )
        return None
    input_schema = entry.get("inputSchema")
    if input_schema is not None and not isinstance(input_schema, dict):
        warnings.add(label, f"is left out: its inputSchema is not an object but {type(input_schema).__name__}.")
        return None
    schema = normalize_schema(input_schema or {})
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        warnings.add(label, f"is left out: its inputSchema must be of type object, not {types!r}.")
        return None
    if "type" not in schema:
        warnings.add(label, "has an inputSchema without `type: object`, which is added.")
    description = entry.get("description")
    repaired: dict[str, Any] = {"name": name, "inputSchema": {**schema, "type": "object"}}
    if isinstance(description, str):
        repaired["description"] = description
    return repaired


def _repair_call(result: dict[str, Any]) -> dict[str, Any]:
    """Return content of any kind as pieces of text, because models are shown only text."""
    content = result.get("content")
    pieces = content if isinstance(content, list) else [] if content is None else [content]
    rest = {name: value for name, value in result.items() if name not in ("content", "structuredContent", "_meta")}
    repaired = {**rest, "isError": result.get("isError") is True}
    structured = result.get("structuredContent")
    if isinstance(structured, dict):
        repaired["structuredContent"] = structured
    elif structured is not None and not pieces:
        pieces = [structured]
    repaired["content"] = [{"type": "text", "text": _extract_text(piece)} for piece in pieces]
    return repaired


def _extract_text(piece: Any) -> str:
    if isinstance(piece, str):
        return piece
    if not isinstance(piece, dict) or not isinstance(kind := piece.get("type"), str):
        return _encode_text(piece)
    resource = piece.get("resource")
    match kind:
        case "text":
            return _encode_text(piece.get("text", ""))
        case "resource" if isinstance(resource, dict) and isinstance(resource.get("text"), str):
            return str(resource["text"])
        case "resource_link" if isinstance(piece.get("uri"), str):
            return str(piece["uri"])
        case "image" | "audio" if isinstance(piece.get("mimeType"), str):
            return f"[{piece['mimeType']}]"
        case _:
            return f"[{kind}]"


def _encode_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return f"[{type(value).__name__}]"
