"""Offer agents, crews and workflows as tools of the MCP server."""

from domain.mcp.schema import (
    REQUEST_METADATA_KEY,
    ExposedTarget,
    McpDefinition,
    McpTargets,
    McpTool,
    ToolPage,
    UnknownTool,
)
from domain.mcp.service import CANCEL_REASON, cancel_call, find_tool, list_tools, start_tool

__all__ = [
    "CANCEL_REASON",
    "REQUEST_METADATA_KEY",
    "ExposedTarget",
    "McpDefinition",
    "McpTargets",
    "McpTool",
    "ToolPage",
    "UnknownTool",
    "cancel_call",
    "find_tool",
    "list_tools",
    "start_tool",
]
