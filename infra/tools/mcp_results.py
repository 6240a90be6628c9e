"""What MCP servers answer, put into the form that the protocol prescribes before anybody insists on it.

The client library refuses a whole list of tools for one entry that is not as it should be, and a whole answer for one
piece of content. Here a bad entry costs that entry, and whoever asked is told which and why.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from domain.shared.json_schemas import normalize_schema

MAX_TOOL_NAME_CHARACTERS: Final = 128
MAX_DESCRIPTION_CHARACTERS: Final = 4096
# Of one list, so that a server cannot fill a log.
MAX_TOOL_WARNINGS: Final = 20

# Called with a tool (its name as `repr` has it, or its number) and what is the matter, as the rest of a sentence.
WarnAboutTool = Callable[[str, str], None]


class LenientDispatcher:
    """The dispatcher of a client's session, whose results of `tools/list` and `tools/call` are mended first."""

    def __init__(self, dispatcher: Any, warn: WarnAboutTool | None = None) -> None:
        self._dispatcher = dispatcher
        self._warnings = _Warnings(warn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatcher, name)

    async def send_raw_request(self, method: str, params: Any, opts: Any = None) -> Any:
        """Send a request and return its result, mended. Errors: those of the dispatcher."""
        result = await self._dispatcher.send_raw_request(method, params, opts)
        if not isinstance(result, dict):
            return result
        if method == "tools/list":
            return _mend_list(result, self._warnings)
        # Results of another kind (a server that asks back) are for the client to read.
        whole = result.get("resultType") in (None, "complete")
        return _mend_call(result) if method == "tools/call" and whole else result


class _Warnings:
    def __init__(self, warn: WarnAboutTool | None) -> None:
        self._warn, self._left = warn, MAX_TOOL_WARNINGS

    def add(self, tool: str, message: str) -> None:
        if self._warn is None or self._left <= 0:
            return
        self._left -= 1
        self._warn(tool, message if self._left else f"{message} (and there may be more of which nothing is said)")


def _mend_list(result: dict[str, Any], warnings: _Warnings) -> dict[str, Any]:
    listed = result.get("tools")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        return result
    tools = [tool for number, one in enumerate(listed, 1) if (tool := _mend_tool(one, number, warnings)) is not None]
    cursor = result.get("nextCursor")
    rest = {name: value for name, value in result.items() if name not in ("tools", "nextCursor", "_meta")}
    return {**rest, "tools": tools, **({"nextCursor": cursor} if isinstance(cursor, str) and cursor else {})}


def _mend_tool(entry: Any, number: int, warnings: _Warnings) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        warnings.add(f"number {number}", "is left out: it is no object.")
        return None
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        warnings.add(f"number {number}", "is left out: it has no name.")
        return None
    shown = repr(name[:MAX_TOOL_NAME_CHARACTERS])
    if len(name) > MAX_TOOL_NAME_CHARACTERS or not name.isprintable():
        warnings.add(
            shown, f"is left out: its name must be printable and have at most {MAX_TOOL_NAME_CHARACTERS} characters."
        )
        return None
    given = entry.get("inputSchema")
    if given is not None and not isinstance(given, dict):
        warnings.add(shown, f"is left out: its inputSchema is no object but {type(given).__name__}.")
        return None
    schema = normalize_schema(given or {})
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        warnings.add(shown, f"is left out: its inputSchema is of type {types!r}, and arguments are an object.")
        return None
    if "type" not in schema:
        warnings.add(shown, "has an inputSchema that does not say `type: object`; it is taken as if it did.")
    description = entry.get("description")
    mended: dict[str, Any] = {"name": name, "inputSchema": {**schema, "type": "object"}}
    if isinstance(description, str):
        mended["description"] = description
    return mended


def _mend_call(result: dict[str, Any]) -> dict[str, Any]:
    """Content as pieces of text, whatever it was: text is all that a model is shown of it."""
    content = result.get("content")
    pieces = content if isinstance(content, list) else [] if content is None else [content]
    rest = {name: value for name, value in result.items() if name not in ("content", "structuredContent", "_meta")}
    mended = {**rest, "isError": result.get("isError") is True}
    structured = result.get("structuredContent")
    if isinstance(structured, dict):
        mended["structuredContent"] = structured
    elif structured is not None and not pieces:
        pieces = [structured]
    mended["content"] = [{"type": "text", "text": _text_of(piece)} for piece in pieces]
    return mended


def _text_of(piece: Any) -> str:
    if isinstance(piece, str):
        return piece
    if not isinstance(piece, dict) or not isinstance(kind := piece.get("type"), str):
        return _written(piece)
    resource = piece.get("resource")
    match kind:
        case "text":
            return _written(piece.get("text", ""))
        case "resource" if isinstance(resource, dict) and isinstance(resource.get("text"), str):
            return str(resource["text"])
        case "resource_link" if isinstance(piece.get("uri"), str):
            return str(piece["uri"])
        case "image" | "audio" if isinstance(piece.get("mimeType"), str):
            return f"[{piece['mimeType']}]"
        case _:
            return f"[{kind}]"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return f"[{type(value).__name__}]"
