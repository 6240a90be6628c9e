"""Define the doors through which other programs find an agent, a crew or a workflow without knowing our API."""

from typing import Annotated, Literal

from msgspec import Meta

# `mcp`: it is a tool of the MCP server at `/mcp`.
Door = Literal["mcp"]
Exposure = Annotated[
    Door | Annotated[list[Door], Meta(max_length=8)],
    Meta(
        description="`mcp` makes it a tool of the MCP server at `/mcp`; an empty list takes it away.",
        examples=[["mcp"]],
    ),
]


def read_exposure(sent: Door | list[Door]) -> list[Door]:
    """Return the doors that a request names: `expose: mcp` is the same as `expose: [mcp]`."""
    doors: list[Door] = [sent] if isinstance(sent, str) else sent
    return sorted(set(doors))
