"""Serve the MCP server at `/mcp`: agents, crews and workflows as tools, runs and artifacts as resources."""

from api.mcp.calls import ToolCalls
from api.mcp.resources import McpResources
from api.mcp.routes import router
from api.mcp.server import McpServer

__all__ = ["McpResources", "McpServer", "ToolCalls", "router"]
