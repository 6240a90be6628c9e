"""Call tools over the network: `http_request`, custom HTTP tools (`custom`), MCP servers (`mcp`).

All connect through an `Outbound`, and raise `domain.llms.ToolFailed` with a message for the model that called the tool.
Import from the modules: importing `mcp` takes most of a second, so it must be loaded lazily.
"""
