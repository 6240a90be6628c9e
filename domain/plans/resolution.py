"""Resolve the agents and tools that the steps of a plan run, as they are when the plan is compiled."""

from domain import agents, secrets, tools
from domain.plans.schema import AgentWork, ToolWork
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, InvalidField


async def resolve_agent_work(tx: Tx, reference: str, field: str, model: str | None = None) -> AgentWork:
    """Resolve an agent by id, name, or slug of its name; `model` replaces a model agent's own.

    Errors: `invalid_field` naming `field`, `agent_archived`, `version_not_ready`, `secret_unavailable`, `conflict` for
    a model agent without a model.
    """
    agent = await agents.find_agent(tx, reference, field)
    agents.refuse_archived(agent)
    if agent.kind == "llm":
        spec = await agents.resolve_spec(tx, agent, model)
        return AgentWork(name=agent.name, agent_id=agent.id, spec=spec)
    version = await agents.get_runnable_version(tx, agent)
    await secrets.check_start_settings(tx, agent, agent.env, version)
    return AgentWork(
        name=agent.name,
        agent_id=agent.id,
        version_id=version.id,
        timeout=version.timeout,
        calls_models=bool(version.models),
        env=agent.env,
        input_schema=agents.apply_version_schemas(agent, version).input_schema,
        output_schema=agent.output_schema,
    )


async def resolve_tool_work(tx: Tx, caller: Caller, reference: str, field: str) -> ToolWork:
    """Resolve a tool by id, name or slug; `server/tool` is one tool of an MCP server.

    Errors: `invalid_field` naming `field`, `conflict` for a disabled tool.
    """
    server_tool: str | None = None
    try:
        tool = await tools.get_tool(tx, caller, reference)
    except DomainError:
        server, _, server_tool = reference.partition("/")
        unknown = InvalidField(field, f"there is no tool {reference!r}.")
        try:
            tool = await tools.get_tool(tx, caller, server)
        except DomainError:
            raise unknown from None
        if "/" not in reference or tool.tool_type != "mcp":
            raise unknown from None
    if tool.tool_type == "mcp" and not server_tool:
        raise InvalidField(field, f"{tool.name!r} is an MCP server; name one of its tools: {tool.slug}/name.")
    if not tool.enabled:
        raise Conflict(f"The tool {tool.name!r} is disabled.")
    if server_tool:
        return ToolWork(name=f"{tool.slug}/{server_tool}", tool=f"{tool.id}/{server_tool}")
    return ToolWork(name=tool.slug, tool=tool.id)
