"""Tools that answer over the network: `http_request`, custom HTTP tools (`custom`), MCP servers (`mcp`).

All take the `Outbound` to connect through and raise `domain.llms.messages.ToolFailed` with words for the model
that asked.
Import from the modules: that of `mcp` takes most of a second.
"""
