"""Bind the tools of a run to the names by which its model calls them, and call them."""

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import structlog

from domain import provider_keys, tools
from domain.agents import AgentMcpServer
from domain.executions import ExecutionMode
from domain.llms import ToolFailed, ToolSpec
from domain.ports import Tx
from domain.shared.errors import OUTAGE_CODES, DomainError
from domain.shared.names import make_slug
from domain.shared.wire_names import assign_wire_names
from domain.tools import McpServerTool, Tool
from infra.tools.custom import call_custom_tool
from workers.agent.arguments import read_arguments, validate_arguments
from workers.agent.builtin_tools import BuiltinTools
from workers.agent.schema import BoundTool, ToolDependencies, ToolResult
from workers.agent.workspaces import RunWorkspace

_log = structlog.get_logger("paddock.tools")

MAX_BOUND_TOOLS: Final = 128


class Toolbox:
    """Bind and call the tools of one run."""

    def __init__(
        self, dependencies: ToolDependencies, tenant_id: str, workspace: RunWorkspace, mode: ExecutionMode
    ) -> None:
        self._dependencies, self._tenant_id, self._mode = dependencies, tenant_id, mode
        self._builtin = BuiltinTools(dependencies, tenant_id, workspace)

    @property
    def dependencies(self) -> ToolDependencies:
        """What the tools work with."""
        return self._dependencies

    async def bind_tools(
        self,
        names: list[str],
        warn: Callable[[str], None],
        reserved: Collection[str] = (),
        servers: Collection[AgentMcpServer] = (),
    ) -> dict[str, BoundTool]:
        """Return the named tools by the names under which a model calls them, none of which is in `reserved`.

        The tools of `servers` are added, which are not among the tenant's tools.

        Tools that are deleted, switched off, not allowed in this mode or unreachable are left out with a warning.
        """
        by_identity: dict[tuple[str, str | None], BoundTool] = {}
        named_tools = await self._list_named_tools(names, warn) if names else []
        for tool in (*named_tools, *map(self._build_server_tool, servers)):
            if self._mode == "sandbox" and not tool.fenced:
                warn(f"The tool {tool.name!r} works outside the sandbox and is left out in this mode.")
                continue
            try:
                is_remote = tool.tool_type == "mcp"
                bound_tools = await self._bind_remote_tools(tool, warn) if is_remote else [_bind_local_tool(tool)]
            except ToolFailed as error:
                warn(f"The tools of {tool.name!r} are unavailable: {error}")
                continue
            for bound in bound_tools:
                by_identity.setdefault((bound.tool.id, bound.remote_name), bound)
        tools = list(by_identity.values())
        if len(tools) > MAX_BOUND_TOOLS:
            left_out = ", ".join(repr(bound.spec.name) for bound in tools[MAX_BOUND_TOOLS : MAX_BOUND_TOOLS + 20])
            warn(f"There are {len(tools)} tools; the limit is {MAX_BOUND_TOOLS}. Left out are {left_out}.")
            tools = tools[:MAX_BOUND_TOOLS]
        suggested = [(bound.spec.name, f"{bound.tool.slug}/{bound.remote_name or ''}") for bound in tools]
        return {
            name: msgspec.structs.replace(bound, spec=msgspec.structs.replace(bound.spec, name=name))
            for name, bound in zip(assign_wire_names(suggested, reserved), tools, strict=True)
        }

    async def call_tool(self, bound: BoundTool, arguments: str) -> ToolResult:
        """Call a tool with arguments as a model wrote them. Errors: `ToolFailed`."""
        args, outbound = read_arguments(arguments), self._dependencies.outbound
        await validate_arguments(bound.spec.parameters, args, self._tenant_id)
        tool = bound.tool
        if self._mode == "sandbox" and not tool.fenced:
            raise ToolFailed("this tool works outside the sandbox.")
        try:
            if tool.tool_type == "builtin":
                return await self._builtin.call_tool(tool.name, args)
            secrets = await self._open_secrets(tool)
            if tool.tool_type == "mcp":
                mcp, name = await _load_mcp(), bound.remote_name or bound.spec.name
                return ToolResult(result=await mcp.call_mcp_tool(outbound, tool.configuration, secrets, name, args))
            return ToolResult(result=await call_custom_tool(outbound, tool.configuration, args, secrets))
        except DomainError as error:
            if error.code in OUTAGE_CODES:
                raise
            raise ToolFailed(error.detail) from error
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            # A remote answer with numbers or texts that JSON cannot hold must not end the run.
            _log.warning("a tool's answer cannot be read", tool=tool.name, error=type(error).__name__)
            raise ToolFailed(f"the tool's answer cannot be read ({type(error).__name__}).") from error

    async def _list_named_tools(self, names: list[str], warn: Callable[[str], None]) -> list[Tool]:
        async def find(tx: Tx) -> list[Tool]:
            try:
                return await tools.resolve_tools(tx, names)
            except DomainError as error:
                if error.code != "invalid_field":
                    raise
                bad_fields = {field_error.field for field_error in error.errors}
                for field_error in error.errors:
                    warn(f"A tool is left out: {field_error.message}")
                good_names = [name for number, name in enumerate(names) if f"tools[{number}]" not in bad_fields]
                return await tools.resolve_tools(tx, good_names)

        return await self._dependencies.store.run(self._tenant_id, find, retry=True)

    def _build_server_tool(self, server: AgentMcpServer) -> Tool:
        """Return an MCP server as a tool of this run. Its calls count as changing something, as those of others do."""
        host, at = urlsplit(server.url).hostname or "mcp", datetime.now(UTC)
        configuration = {"url": server.url, "headers": server.headers, "secrets": server.secrets}
        fields: dict[str, Any] = {
            "id": f"{server.url} {sorted(server.headers.items())}",
            "name": server.url,
            "slug": make_slug(host) or "mcp",
            "description": "",
            "category": "mcp",
            "tool_type": "mcp",
            "configuration": tools.check_mcp_configuration(configuration),
            "parameters": {},
            "enabled": True,
            "effects": True,
            "tenant_id": self._tenant_id,
            "created_at": at,
            "updated_at": at,
        }
        return Tool(**fields) if server.tool is None else McpServerTool(**fields, tool_name=server.tool)

    async def _bind_remote_tools(self, tool: Tool, warn: Callable[[str], None]) -> list[BoundTool]:
        only = tool.tool_name if isinstance(tool, McpServerTool) else None
        problems: list[tuple[str, str]] = []
        secrets = await self._open_secrets(tool)
        mcp = await _load_mcp()
        specs = await mcp.list_mcp_tools(
            self._dependencies.outbound, tool.configuration, secrets, lambda *problem: problems.append(problem)
        )
        chosen = [spec for spec in specs if only in (None, spec.name)]
        for name, message in problems:
            if only is None or name == repr(only):
                warn(f"The tool {name} of {tool.name!r} {message}")
        if only is not None and not chosen:
            raise ToolFailed(f"the server has no tool {only!r}.")
        return [
            BoundTool(
                spec=msgspec.structs.replace(spec, name=f"{tool.slug}_{spec.name}"), tool=tool, remote_name=spec.name
            )
            for spec in chosen
        ]

    async def _open_secrets(self, tool: Tool) -> dict[str, str]:
        """Return the values of a tool's secret headers. Errors: `ToolFailed`."""
        slugs = tool.secrets
        if not slugs:
            return {}

        async def read(tx: Tx) -> dict[str, bytes]:
            return {header: await provider_keys.get_sealed_key(tx, slug) for header, slug in slugs.items()}

        try:
            sealed = await self._dependencies.store.run(self._tenant_id, read, retry=True)
        except DomainError as error:
            if error.code in OUTAGE_CODES:
                raise
            raise ToolFailed(error.detail) from error
        try:
            return {header: self._dependencies.keyring.open(key).decode() for header, key in sealed.items()}
        except ValueError as error:
            raise ToolFailed(
                "a key of this tool was sealed with a key that PADDOCK_ENCRYPTION_KEYS no longer names."
            ) from error


async def _load_mcp() -> Any:
    """Import the client of MCP servers in a thread: it takes a second or more, in which leases must be extended."""
    return await asyncio.to_thread(import_module, "infra.tools.mcp")


def _bind_local_tool(tool: Tool) -> BoundTool:
    spec = ToolSpec(name=tool.slug, description=tool.description or tool.name, parameters=tool.parameters)
    return BoundTool(spec=spec, tool=tool)
