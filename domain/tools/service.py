"""Manage the tools that agents may call: built-in tools, custom HTTP calls, MCP servers. Workers call them."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import provider_keys
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, require_found
from domain.shared.names import Name
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.patches import collect_sent_fields, set_fields
from domain.shared.status import ExecutionStatus
from domain.tools import configuration as tool_configuration
from domain.tools.builtin import BUILT_IN_TOOLS, BuiltInTool

ToolType = Literal["builtin", "custom", "mcp"]
MAX_TENANT_TOOLS: Final = 500
MAX_CONFIGURATION_BYTES: Final = 64 * 1024
# Words of paths and of schemas, which cannot name a tool.
RESERVED_TOOL_NAMES: Final = frozenset({"enabled", "configurations", "custom", "http", "mcp", "builtin"})

Description = Annotated[str, Meta(max_length=4000, pattern=r"^[^\x00]*$")]
Category = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*(?!\n)$", examples=["search"])
]
Configuration = Annotated[
    dict[str, Any], Meta(examples=[{"api_endpoint": "https://api.example.com", "parameters": {}}])
]


class Tool(msgspec.Struct, kw_only=True):
    """Show a tool. Agents name it by id, name or `slug`; `parameters` is the JSON Schema of its arguments.

    `effects` is true if a call changes anything outside of its run, `fenced` if it runs in the sandbox. The parameters
    of an MCP server's tools come from the server and are empty here.
    """

    id: str
    name: str
    slug: str
    description: str
    category: str
    tool_type: ToolType
    configuration: dict[str, Any]
    parameters: dict[str, Any]
    enabled: bool
    effects: bool
    fenced: bool = False
    tenant_id: str
    created_at: datetime
    updated_at: datetime

    @property
    def secrets(self) -> dict[str, str]:
        """Return the provider keys, by slug, for the headers that carry them."""
        return dict(self.configuration.get("secrets") or {})


class McpServerTool(Tool, kw_only=True):
    """Select a single tool of an MCP server: `server/tool`."""

    tool_name: str


class NewTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Add a tool. `http` means `custom`. The schema of `configuration` is at `/tools/configurations/{type}/schema`.

    Without `effects`, a call counts as changing something unless its method is GET.
    """

    name: Annotated[Name, Meta(examples=["Custom Search Tool"])]
    description: Annotated[Description, Meta(examples=["A tool for searching specific databases"])] = ""
    tool_type: Literal["custom", "http", "mcp"] = "custom"
    configuration: Configuration
    enabled: bool = True
    category: Category | None = None
    effects: bool | None = None


class PatchTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a tool; `configuration` is replaced as a whole. A built-in tool accepts only `enabled`."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    tool_type: Literal["custom", "http", "mcp"] | UnsetType = UNSET
    configuration: Configuration | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    effects: bool | UnsetType = UNSET


class ToolFilter(msgspec.Struct, frozen=True):
    """Filter a list of tools."""

    category: str | None = None
    enabled: bool | None = None
    tool_type: ToolType | None = None

    def matches(self, tool: Tool) -> bool:
        """Return whether a tool passes the filter."""
        pairs = (self.category, tool.category), (self.enabled, tool.enabled), (self.tool_type, tool.tool_type)
        return all(expected is None or expected == actual for expected, actual in pairs)


class ToolInvocation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Call a tool with arguments.

    `tool` selects a tool of an MCP server; `execution_id` selects the execution whose workspace the call uses.
    """

    args: Annotated[dict[str, Any], Meta(examples=[{"path": "test.txt"}])] = {}
    tool: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    execution_id: str | None = None


class ToolInvocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """Show the result of a tool call, and the execution that records it. `result` is null while the call runs."""

    result: Any
    execution_id: str
    status: ExecutionStatus


class BuiltInToolState(msgspec.Struct, frozen=True, kw_only=True):
    """Hold when a tenant got the built-in tools, and when it disabled which, by id."""

    since: datetime
    off: dict[str, datetime]


class Tools(Protocol):
    """Store the bound tenant's tools, and which built-in tools it has disabled."""

    async def add(self, tool: Tool) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Tool | None: ...
    async def list_by_references(self, references: list[str]) -> list[Tool]:
        """List the tools that a reference names by id, name or slug."""
        ...

    async def list_page(self, page: Page, tool_filter: ToolFilter) -> Listing[Tool]: ...
    async def save(self, tool: Tool) -> bool: ...
    async def delete(self, tool_id: str) -> None: ...
    async def count(self) -> int:
        """Return the number of tools, and block other additions until the commit."""
        ...

    async def list_by_provider_key(self, key_slug: str) -> list[Tool]:
        """List and lock the tools whose secrets name this provider key."""
        ...

    async def get_built_in_state(self) -> BuiltInToolState:
        """Return when the bound tenant got the built-in tools, and which it has disabled."""
        ...

    async def switch_built_in(self, tool_id: str, enabled: bool | None, now: datetime) -> bool:
        """Enable or disable a built-in tool, or toggle it with None. Return whether it is enabled now."""
        ...


def _show_built_in(tool: BuiltInTool, tenant_id: str, state: BuiltInToolState) -> Tool:
    return Tool(
        id=tool.id,
        name=tool.name,
        slug=tool.name,
        description=tool.description,
        category=tool.category,
        tool_type="builtin",
        configuration={},
        parameters=tool.parameters,
        enabled=tool.id not in state.off,
        effects=tool.effects,
        fenced=tool.fenced,
        tenant_id=tenant_id,
        created_at=state.since,
        updated_at=state.off.get(tool.id, state.since),
    )


def _build_schema(kind: type[Any]) -> dict[str, Any]:
    _, parts = msgspec.json.schema_components([kind])
    schema: dict[str, Any] = parts[kind.__name__]
    return schema


_CUSTOM_SCHEMA: Final = _build_schema(tool_configuration.CustomToolConfiguration)
_CONFIGURATION_SCHEMAS: Final = {
    "custom": _CUSTOM_SCHEMA,
    "http": _CUSTOM_SCHEMA,
    "mcp": _build_schema(tool_configuration.McpServerConfiguration),
}
_BUILT_IN_BY_REFERENCE: Final = {reference: tool for tool in BUILT_IN_TOOLS for reference in (tool.name, tool.id)}


async def create_tool(tx: Tx, caller: Caller, data: NewTool) -> Tool:
    """Add a custom tool or an MCP server. Errors: `conflict` for a taken name or too many tools, `invalid_field`."""
    if await tx.tools.count() >= MAX_TENANT_TOOLS:
        raise Conflict(f"The tenant already has {MAX_TENANT_TOOLS} tools, the maximum. Delete one first.")
    tool = Tool(
        id=ids.generate_id("tool"),
        name=data.name,
        slug="",
        description=data.description,
        category=data.category or data.tool_type.replace("http", "custom"),
        tool_type="mcp" if data.tool_type == "mcp" else "custom",
        configuration=data.configuration,
        parameters={},
        enabled=data.enabled,
        effects=True,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    await _complete_tool(tx, tool)
    tool.effects = _has_effects(tool) if data.effects is None else data.effects
    if not await tx.tools.add(tool):
        raise names.NameTaken("tool", tool.name)
    return tool


async def _complete_tool(tx: Tx, tool: Tool) -> None:
    """Check a tool, and set the fields that follow from its name and configuration.

    Errors: `invalid_field`, `conflict`.
    """
    if names.fold_name(names.check_name(tool.name, "tool")) in RESERVED_TOOL_NAMES:
        raise InvalidField("name", f"{tool.name!r} is reserved. Choose another name.")
    others = await tx.tools.list_by_references(names.list_slug_candidates("tool", tool.name))
    holders = {reference: built_in.name for reference, built_in in _BUILT_IN_BY_REFERENCE.items()} | {
        word: word for word in RESERVED_TOOL_NAMES
    }
    holders |= {other.slug: other.name for other in others if other.id != tool.id}
    tool.slug = names.choose_slug("tool", tool.name, tool.slug, holders)
    if len(msgspec.json.encode(tool.configuration)) > MAX_CONFIGURATION_BYTES:
        raise InvalidField("configuration", f"must be at most {MAX_CONFIGURATION_BYTES // 1024} KiB of JSON.")
    if tool.tool_type == "mcp":
        tool.configuration, tool.parameters = tool_configuration.check_mcp_configuration(tool.configuration), {}
    else:
        tool.configuration, tool.parameters = tool_configuration.check_custom_configuration(tool.configuration)
    if tool.secrets:
        field = "configuration.secrets"
        secrets = {
            header: await provider_keys.resolve_key_slug(tx, reference, f"{field}.{header}")
            for header, reference in sorted(tool.secrets.items())
        }
        tool.configuration = {**tool.configuration, "secrets": secrets}


def _has_effects(tool: Tool) -> bool:
    return tool.tool_type == "mcp" or tool.configuration.get("method") != "GET"


async def get_tool(tx: Tx, caller: Caller, reference: str, lock: bool = False) -> Tool:
    """Return a tool by id, name or slug. Errors: `not_found`."""
    if reference in _BUILT_IN_BY_REFERENCE:
        return _show_built_in(_BUILT_IN_BY_REFERENCE[reference], caller.tenant_id, await tx.tools.get_built_in_state())
    return require_found("tool", reference, await tx.tools.find(reference, lock))


async def list_tools(tx: Tx, caller: Caller, page: Page, tool_filter: ToolFilter) -> Listing[Tool]:
    """List the tenant's own tools, newest first, then the built-in ones."""
    own = await tx.tools.list_page(page, tool_filter)
    state = await tx.tools.get_built_in_state()
    described = [_show_built_in(tool, caller.tenant_id, state) for tool in BUILT_IN_TOOLS]
    built_in = [tool for tool in described if tool_filter.matches(tool)]
    start = max(0, page.offset - own.total)
    items = own.items + built_in[start : start + page.limit - len(own.items)]
    return build_listing(items, own.total + len(built_in), page)


async def patch_tool(tx: Tx, caller: Caller, reference: str, data: PatchTool) -> Tool:
    """Change the fields that were sent, and check the whole tool. Errors: `not_found`, `conflict`, `invalid_field`."""
    tool = await get_tool(tx, caller, reference, lock=True)
    sent = collect_sent_fields(data)
    if tool.tool_type == "builtin":
        if set(sent) - {"enabled"}:
            raise Conflict(f"{tool.name!r} is a built-in tool. Only `enabled` can be changed.")
        return await _switch_built_in(tx, tool, sent.get("enabled", tool.enabled))
    follows_method = "effects" not in sent and tool.effects == _has_effects(tool)
    if sent.get("tool_type") == "http":
        sent["tool_type"] = "custom"
    set_fields(tool, sent)
    await _complete_tool(tx, tool)
    if follows_method:
        tool.effects = _has_effects(tool)
    tool.updated_at = tx.now
    if not await tx.tools.save(tool):
        raise names.NameTaken("tool", tool.name)
    return tool


async def toggle_tool(tx: Tx, caller: Caller, reference: str) -> Tool:
    """Enable a disabled tool, disable an enabled one. Errors: `not_found`."""
    tool = await get_tool(tx, caller, reference, lock=True)
    if tool.tool_type == "builtin":
        return await _switch_built_in(tx, tool, None)
    tool.enabled, tool.updated_at = not tool.enabled, tx.now
    await tx.tools.save(tool)
    return tool


async def _switch_built_in(tx: Tx, tool: Tool, enabled: bool | None) -> Tool:
    was_enabled, tool.enabled = tool.enabled, await tx.tools.switch_built_in(tool.id, enabled, tx.now)
    if tool.enabled != was_enabled:
        tool.updated_at = tx.now
    return tool


async def delete_tool(tx: Tx, caller: Caller, reference: str) -> None:
    """Delete a tool. Errors: `not_found`, `conflict` for a built-in one."""
    tool = await get_tool(tx, caller, reference, lock=True)
    if tool.tool_type == "builtin":
        raise Conflict(f"{tool.name!r} is a built-in tool. It can be disabled, but not deleted.")
    await tx.tools.delete(tool.id)


async def get_tool_schema(tx: Tx, caller: Caller, name: str) -> dict[str, Any]:
    """Return the JSON Schema of a tool's arguments, or of a type's `configuration`. Errors: `not_found`."""
    return (
        _CONFIGURATION_SCHEMAS[name]
        if name in _CONFIGURATION_SCHEMAS
        else (await get_tool(tx, caller, name)).parameters
    )


async def resolve_tools(tx: Tx, references: list[str]) -> list[Tool]:
    """Return the tools that an agent names, each once and in order; `server/tool` gives an `McpServerTool`.

    It takes two statements for any number of tools. Errors: `invalid_field` names each unknown or disabled tool as
    `tools[2]`.
    """
    own = [head for head, _, _ in map(_split_reference, references) if head not in _BUILT_IN_BY_REFERENCE]
    tools_by_reference: dict[str, Tool] = {}
    for tool in await tx.tools.list_by_references(own) if own else []:
        tools_by_reference |= dict.fromkeys((tool.id, tool.name, tool.slug), tool)
    state = await tx.tools.get_built_in_state() if len(own) < len(references) else None
    tools: dict[tuple[str, str], Tool] = {}
    errors: list[FieldError] = []
    for number, reference in enumerate(references):
        head, slash, part = _split_reference(reference)
        chosen = (
            _show_built_in(_BUILT_IN_BY_REFERENCE[head], "", state)
            if state and head in _BUILT_IN_BY_REFERENCE
            else tools_by_reference.get(head)
        )
        problem = _find_tool_problem(reference, chosen, slash, part)
        if problem is not None:
            errors.append(FieldError(field=f"tools[{number}]", message=problem))
        elif chosen is not None and part:
            fields = {field: getattr(chosen, field) for field in Tool.__struct_fields__}
            tools.setdefault((chosen.id, part), McpServerTool(**fields, tool_name=part))
        elif chosen is not None:
            tools.setdefault((chosen.id, ""), chosen)
    if errors:
        # All errors, not only the first 20: a caller may drop these tools and continue.
        raise DomainError("invalid_field", InvalidFields(errors).detail, errors)
    return list(tools.values())


def _split_reference(reference: str) -> tuple[str, str, str]:
    return reference.partition("/")


def _find_tool_problem(reference: str, tool: Tool | None, slash: str, part: str) -> str | None:
    if tool is None:
        return f"names no known tool: {reference!r}. GET /tools lists all tools."
    if slash and (tool.tool_type != "mcp" or not part):
        return f"{reference!r} is not a tool of an MCP server. Send {tool.name!r} instead."
    if not tool.enabled:
        return f"{tool.name!r} is disabled. Enable it first."
    return None
