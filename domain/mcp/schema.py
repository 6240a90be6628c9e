"""Define the tools of the MCP server: each stands for an agent, a crew or a workflow that is exposed there."""

from typing import Any, Final, Protocol

import msgspec

from domain.shared.errors import NotFound
from domain.targets import TargetKind

# The metadata of a run under this key name the request that started it, so that any process can cancel it.
REQUEST_METADATA_KEY: Final = "mcp_request"


class UnknownTool(NotFound):
    """Report a name that no tool has."""

    def __init__(self, name: str) -> None:
        super().__init__("tool", name)


class ExposedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Name something that is exposed."""

    kind: TargetKind
    id: str
    name: str


class McpDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the schema of a tool is made of. `inputs` are a workflow's declarations or a crew's values,
    and `texts` those of a crew with placeholders.

    `runs_model` tells a model agent, which needs a task, from uploaded code.
    """

    id: str
    description: str | None
    runs_model: bool = False
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    texts: str = ""


class McpTool(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a tool as clients see it. With `takes_payload` its arguments are the run's input as it is.

    Otherwise they are `task` and `inputs`. The arguments in `options` are options of the start.
    """

    name: str
    target: ExposedTarget
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    takes_payload: bool
    options: frozenset[str]


class ToolPage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a page of tools; `next_cursor` is None on the last one."""

    tools: list[McpTool]
    next_cursor: str | None


class McpTargets(Protocol):
    """Find what the bound tenant exposes to MCP clients, and what they have called."""

    async def list_targets(self) -> list[ExposedTarget]:
        """Return everything that is exposed and can be started, the oldest first."""
        ...

    async def list_definitions(self, targets: list[ExposedTarget]) -> dict[str, McpDefinition]:
        """Return the definitions of targets by id."""
        ...

    async def find_open_call(self, request_key: str, user_id: str) -> str | None:
        """Return the id of the newest execution that a request of this user started and that has not ended."""
        ...
