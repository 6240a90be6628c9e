"""Parse the many shapes of `tool_choice`: which tools a model may call, and whether it must."""

from typing import Any, Final, Literal

import msgspec

from domain.llms import ToolSpec
from infra.wires.common.errors import WireRefusal

ToolMode = Literal["auto", "none", "required"]
_CHOICE_MODES: Final[dict[Any, ToolMode]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",
}
_SHAPES_TEXT: Final = (
    'must be "auto", "none", "required", {"type": "function", "function": {"name": …}} or '
    '{"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}.'
)


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Set whether a model may, must or must not call a tool, and which ones: None is all that it is shown."""

    mode: ToolMode = "auto"
    allowed_tools: tuple[str, ...] | None = None


def choose_tools(choice: Any, tools: tuple[ToolSpec, ...]) -> ToolChoice:
    """Return which of its tools a model may call. Errors: `WireRefusal`."""
    mode, names = _parse_choice(choice)
    if names is not None:
        tool_names = {tool.name for tool in tools}
        if unknown := next((name for name in names if name not in tool_names), None):
            raise _refuse_choice(f"names {unknown[:64]!r}, which is not among `tools`.")
        if len(set(names)) == len(tools):
            names = None
    if not tools:
        if mode == "required":
            raise _refuse_choice("asks for a call, and there are no `tools`.")
        return ToolChoice()
    return ToolChoice(mode=mode, allowed_tools=None if names is None else tuple(dict.fromkeys(names)))


def _parse_choice(choice: Any) -> tuple[ToolMode, list[str] | None]:
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        return _parse_mode(choice), None
    if not isinstance(choice, dict):
        raise _refuse_choice(_SHAPES_TEXT)
    kind = choice.get("type", "function")
    if kind in ("function", "tool"):  # the second is Anthropic's
        return "required", [_parse_tool_name(choice)]
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        tools = inner.get("tools") if isinstance(inner, dict) else None
        if not isinstance(tools, list) or not tools:
            raise _refuse_choice(_SHAPES_TEXT)
        return _parse_mode(inner.get("mode", "auto")), [_parse_tool_name(tool) for tool in tools]
    return _parse_mode(kind), None


def _parse_mode(word: Any) -> ToolMode:
    mode = _CHOICE_MODES.get(word) if isinstance(word, str) else None
    if mode is None:
        raise _refuse_choice(_SHAPES_TEXT)
    return mode


def _parse_tool_name(choice: Any) -> str:
    inner = choice.get("function", choice) if isinstance(choice, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise _refuse_choice(_SHAPES_TEXT)
    return name


def _refuse_choice(problem: str) -> WireRefusal:
    return WireRefusal(400, f"`tool_choice` {problem}", param="tool_choice")
