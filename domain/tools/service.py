"""Tools that agents may call: built in, custom HTTP calls, MCP servers. Calling them is the workers' part."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import provider_keys
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, NotFound
from domain.shared.names import Name, make_slug
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.status import ExecutionStatus
from domain.tools import configuration as toolconfig
from domain.tools.builtin import BUILT_IN_TOOLS, BuiltInTool

__all__ = ["BUILT_IN_TOOLS", "make_slug"]

ToolType = Literal["builtin", "custom", "mcp"]
MAX_TENANT_TOOLS: Final = 500
MAX_CONFIGURATION_BYTES: Final = 64 * 1024
# Words of paths and of schemas; none of them can name a tool.
RESERVED_TOOL_NAMES: Final = frozenset({"enabled", "configurations", "custom", "http", "mcp", "builtin"})

Description = Annotated[str, Meta(max_length=4000, pattern=r"^[^\x00]*$")]
Category = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*(?!\n)$", examples=["search"])
]
Configuration = Annotated[
    dict[str, Any], Meta(examples=[{"api_endpoint": "https://api.example.com", "parameters": {}}])
]


class Tool(msgspec.Struct, kw_only=True):
    """A tool. Agents name it by id, name or `slug`; `parameters` is the JSON Schema of what a call takes.

    `effects` tells whether a call changes anything outside of its run, `fenced` whether it happens in the sandbox.
    The parameters of an MCP server's tools are its own to tell, and empty here.
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
        """Which provider key, by slug, goes into which header."""
        return dict(self.configuration.get("secrets") or {})


class McpServerTool(Tool, kw_only=True):
    """An MCP server of which an agent is given one tool alone: `server/tool`."""

    tool_name: str


class NewTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to add. `http` means `custom`. What `configuration` takes is at `/tools/configurations/{type}/schema`.

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
    """What to change; `configuration` is replaced as a whole. A built-in tool takes `enabled` alone."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    tool_type: Literal["custom", "http", "mcp"] | UnsetType = UNSET
    configuration: Configuration | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    effects: bool | UnsetType = UNSET


class ToolFilter(msgspec.Struct, frozen=True):
    """What a list of tools is narrowed to."""

    category: str | None = None
    enabled: bool | None = None
    tool_type: ToolType | None = None

    def matches(self, tool: Tool) -> bool:
        """Whether a tool is on the list."""
        wanted = (self.category, tool.category), (self.enabled, tool.enabled), (self.tool_type, tool.tool_type)
        return all(asked is None or asked == found for asked, found in wanted)


class ToolInvocation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Arguments for a tool. `tool` picks one of an MCP server's; `execution_id` is whose workspace files are meant."""

    args: Annotated[dict[str, Any], Meta(examples=[{"path": "test.txt"}])] = {}
    tool: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    execution_id: str | None = None


class ToolInvocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool answered, and the execution that the call is on record as. `result` is null while it goes on."""

    result: Any
    execution_id: str
    status: ExecutionStatus


class BuiltInToolState(msgspec.Struct, frozen=True, kw_only=True):
    """Since when a tenant has the built-in tools, and when it switched off which, by id."""

    since: datetime
    off: dict[str, datetime]


class Tools(Protocol):
    """The bound tenant's own tools, and which of the built-in ones it has switched off."""

    async def add(self, tool: Tool) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Tool | None: ...
    async def list_by_reference(self, references: list[str]) -> list[Tool]:
        """Those that one of the references names, by id, name or slug."""
        ...

    async def list_page(self, page: Page, narrowed: ToolFilter) -> Listing[Tool]: ...
    async def save(self, tool: Tool) -> bool: ...
    async def delete(self, tool_id: str) -> None: ...
    async def count(self) -> int:
        """How many there are. Holds off other additions until the commit."""
        ...

    async def list_by_provider_key(self, key_slug: str) -> list[Tool]:
        """Those whose secrets name this provider key, locked."""
        ...

    async def get_built_in_state(self) -> BuiltInToolState:
        """Return since when the bound tenant has the built-in tools, and which it has switched off."""
        ...

    async def switch_built_in(self, tool_id: str, enabled: bool | None, now: datetime) -> bool:
        """Switch a built-in tool on or off, or with None to what it is not. Returns whether it is on now."""
        ...


def _shown(tool: BuiltInTool, tenant_id: str, state: BuiltInToolState) -> Tool:
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


def _taken_by(kind: type[Any]) -> dict[str, Any]:
    _, parts = msgspec.json.schema_components([kind])
    taken: dict[str, Any] = parts[kind.__name__]
    return taken


_CUSTOM: Final = _taken_by(toolconfig.CustomToolConfiguration)
_TAKES: Final = {"custom": _CUSTOM, "http": _CUSTOM, "mcp": _taken_by(toolconfig.McpServerConfiguration)}
_NAMED: Final = {reference: tool for tool in BUILT_IN_TOOLS for reference in (tool.name, tool.id)}


async def create_tool(tx: Tx, caller: Caller, data: NewTool) -> Tool:
    """Add a custom tool or an MCP server. Errors: `conflict` for a taken name, `invalid_field`."""
    if await tx.tools.count() >= MAX_TENANT_TOOLS:
        raise Conflict(f"A tenant has at most {MAX_TENANT_TOOLS} tools of its own.")
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
    await _check(tx, tool)
    tool.effects = _has_effects(tool) if data.effects is None else data.effects
    if not await tx.tools.add(tool):
        raise names.NameTaken("tool", tool.name)
    return tool


async def _check(tx: Tx, tool: Tool) -> None:
    """Complete a tool by what follows from its name and its configuration. Errors: `invalid_field`, `conflict`."""
    if names.fold_name(names.check_name(tool.name, "tool")) in RESERVED_TOOL_NAMES:
        raise InvalidField("name", f"{tool.name!r} means something else in a path.")
    others = await tx.tools.list_by_reference(names.list_slug_candidates("tool", tool.name))
    holders = {reference: one.name for reference, one in _NAMED.items()} | {word: word for word in RESERVED_TOOL_NAMES}
    holders |= {other.slug: other.name for other in others if other.id != tool.id}
    tool.slug = names.choose_slug("tool", tool.name, tool.slug, holders)
    if len(msgspec.json.encode(tool.configuration)) > MAX_CONFIGURATION_BYTES:
        raise InvalidField("configuration", f"must be at most {MAX_CONFIGURATION_BYTES // 1024} KiB of JSON.")
    if tool.tool_type == "mcp":
        tool.configuration, tool.parameters = toolconfig.check_mcp_configuration(tool.configuration), {}
    else:
        tool.configuration, tool.parameters = toolconfig.check_custom_configuration(tool.configuration)
    if tool.secrets:
        field = "configuration.secrets"
        found = {
            header: await provider_keys.resolve_key_slug(tx, reference, f"{field}.{header}")
            for header, reference in sorted(tool.secrets.items())
        }
        tool.configuration = {**tool.configuration, "secrets": found}


def _has_effects(tool: Tool) -> bool:
    return tool.tool_type == "mcp" or tool.configuration.get("method") != "GET"


async def get_tool(tx: Tx, caller: Caller, reference: str, lock: bool = False) -> Tool:
    """A tool by id, name or slug. Errors: `not_found`."""
    if reference in _NAMED:
        return _shown(_NAMED[reference], caller.tenant_id, await tx.tools.get_built_in_state())
    tool = await tx.tools.find(reference, lock)
    if tool is None:
        raise NotFound("tool", reference)
    return tool


async def list_tools(tx: Tx, caller: Caller, page: Page, narrowed: ToolFilter) -> Listing[Tool]:
    """The tenant's own tools, newest first, then the built-in ones."""
    own = await tx.tools.list_page(page, narrowed)
    state = await tx.tools.get_built_in_state()
    shown = [_shown(tool, caller.tenant_id, state) for tool in BUILT_IN_TOOLS]
    built_in = [tool for tool in shown if narrowed.matches(tool)]
    begin = max(0, page.offset - own.total)
    items = own.items + built_in[begin : begin + page.limit - len(own.items)]
    return build_listing(items, own.total + len(built_in), page)


async def patch_tool(tx: Tx, caller: Caller, reference: str, data: PatchTool) -> Tool:
    """Change what was sent, and check the whole anew. Errors: `not_found`, `conflict`, `invalid_field`."""
    tool = await get_tool(tx, caller, reference, lock=True)
    sent = {field: value for field in PatchTool.__struct_fields__ if (value := getattr(data, field)) is not UNSET}
    if tool.tool_type == "builtin":
        if set(sent) - {"enabled"}:
            raise Conflict(f"{tool.name!r} is built in: it can be enabled and disabled, not changed.")
        return await _switched(tx, tool, sent.get("enabled", tool.enabled))
    followed = "effects" not in sent and tool.effects == _has_effects(tool)
    for field, value in sent.items():
        setattr(tool, field, "custom" if value == "http" and field == "tool_type" else value)
    await _check(tx, tool)
    if followed:
        tool.effects = _has_effects(tool)
    tool.updated_at = tx.now
    if not await tx.tools.save(tool):
        raise names.NameTaken("tool", tool.name)
    return tool


async def toggle_tool(tx: Tx, caller: Caller, reference: str) -> Tool:
    """Enable a disabled tool, disable an enabled one. Errors: `not_found`."""
    tool = await get_tool(tx, caller, reference, lock=True)
    if tool.tool_type == "builtin":
        return await _switched(tx, tool, None)
    tool.enabled, tool.updated_at = not tool.enabled, tx.now
    await tx.tools.save(tool)
    return tool


async def _switched(tx: Tx, tool: Tool, enabled: bool | None) -> Tool:
    was_enabled, tool.enabled = tool.enabled, await tx.tools.switch_built_in(tool.id, enabled, tx.now)
    if tool.enabled != was_enabled:
        tool.updated_at = tx.now
    return tool


async def delete_tool(tx: Tx, caller: Caller, reference: str) -> None:
    """Remove a tool. Errors: `not_found`, `conflict` for a built-in one."""
    tool = await get_tool(tx, caller, reference, lock=True)
    if tool.tool_type == "builtin":
        raise Conflict(f"{tool.name!r} is built in: it can be disabled, not deleted.")
    await tx.tools.delete(tool.id)


async def get_tool_schema(tx: Tx, caller: Caller, name: str) -> dict[str, Any]:
    """The JSON Schema of what a tool's calls take, or of a type's `configuration`. Errors: `not_found`."""
    return _TAKES[name] if name in _TAKES else (await get_tool(tx, caller, name)).parameters


async def resolve_tools(tx: Tx, references: list[str]) -> list[Tool]:
    """The tools that an agent's list names, each once, in its order: `server/tool` is a `ServerTool`.

    Two statements, however many there are. Errors: `invalid_field` naming each as `tools[2]` that is unknown
    or disabled.
    """
    own = [head for head, _, _ in map(_split, references) if head not in _NAMED]
    found: dict[str, Tool] = {}
    for tool in await tx.tools.list_by_reference(own) if own else []:
        found |= dict.fromkeys((tool.id, tool.name, tool.slug), tool)
    state = await tx.tools.get_built_in_state() if len(own) < len(references) else None
    tools: dict[tuple[str, str], Tool] = {}
    wrong: list[FieldError] = []
    for number, reference in enumerate(references):
        head, slash, part = _split(reference)
        chosen = _shown(_NAMED[head], "", state) if state and head in _NAMED else found.get(head)
        why = _unusable(reference, chosen, slash, part)
        if why is not None:
            wrong.append(FieldError(field=f"tools[{number}]", message=why))
        elif chosen is not None and part:
            fields = {field: getattr(chosen, field) for field in Tool.__struct_fields__}
            tools.setdefault((chosen.id, part), McpServerTool(**fields, tool_name=part))
        elif chosen is not None:
            tools.setdefault((chosen.id, ""), chosen)
    if wrong:
        # All of them, so that whoever can do without them knows which.
        raise DomainError("invalid_field", InvalidFields(wrong).detail, wrong)
    return list(tools.values())


def _split(reference: str) -> tuple[str, str, str]:
    return reference.partition("/")


def _unusable(reference: str, tool: Tool | None, slash: str, part: str) -> str | None:
    if tool is None:
        return f"there is no tool {reference!r}; see /tools for those there are."
    if slash and (tool.tool_type != "mcp" or not part):
        return f"{reference!r} names one tool of an MCP server, and {tool.name!r} has none of that name."
    if not tool.enabled:
        return f"{tool.name!r} is disabled."
    return None
