"""What a step works with, found by name and written down as it is now."""

import msgspec

from domain import agents, llms, tools
from domain.agents import Agent, AgentSpec
from domain.executions.service import get_runnable_version
from domain.plans.schema import AgentWork, ToolWork
from domain.ports import Tx
from domain.shared import names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, InvalidField


async def resolve_agent_work(tx: Tx, reference: str, field: str, model: str | None = None) -> AgentWork:
    """An agent by id, name, or slug of its name; a `model` is what it calls in place of its own.

    Errors: `invalid_field` for none or several of that slug, `agent_archived`, `version_not_ready`, `conflict` for a
    model agent without a model.
    """
    agent = await resolve_agent(tx, reference, field)
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    if agent.kind == "llm":
        return AgentWork(name=agent.name, agent_id=agent.id, spec=await build_spec(tx, agent, model))
    version = await get_runnable_version(tx, agent, None)
    return AgentWork(
        name=agent.name,
        agent_id=agent.id,
        version_id=version.id,
        timeout=version.timeout,
        calls_models=bool(version.models),
    )


async def resolve_agent(tx: Tx, reference: str, field: str) -> Agent:
    """An agent by id, name, or slug of its name. Errors: `invalid_field`."""
    found = await tx.agents.find(reference, lock="share")
    if found is not None:
        return found
    slug = names.make_slug(reference)
    alike = (
        [one for one in await tx.agents.list_by_slug(slug) if names.is_reference_to(reference, one.name)]
        if slug
        else []
    )
    if len(alike) > 1:
        raise InvalidField(field, f"{reference!r} may be any of {', '.join(repr(one.name) for one in alike)}.")
    if not alike:
        raise InvalidField(field, f"there is no agent {reference!r}.")
    return alike[0]


async def build_spec(tx: Tx, agent: Agent, model: str | None = None) -> AgentSpec:
    """A model agent as a run has it. Errors: `conflict` without a model, `invalid_field`."""
    made = AgentSpec.from_agent(await agents.resolve_agent(tx, agent))
    if model is not None:
        await llms.resolve_model(tx, model)
        made = msgspec.structs.replace(made, model=model, provider=None)
    if made.model is None:
        raise Conflict(f"The agent {agent.name!r} has no model: name one in it, in its parent or for the run.")
    return made


async def resolve_tool_work(tx: Tx, caller: Caller, reference: str, field: str) -> ToolWork:
    """A tool by id, name or slug; `server/tool` of an MCP server. Errors: `invalid_field`, `conflict` if disabled."""
    try:
        tool = await tools.get_tool(tx, caller, reference)
        only = None
    except DomainError:
        server, slash, only = reference.partition("/")
        try:
            tool = await tools.get_tool(tx, caller, server)
        except DomainError:
            raise InvalidField(field, f"there is no tool {reference!r}.") from None
        if not slash or tool.tool_type != "mcp":
            raise InvalidField(field, f"there is no tool {reference!r}.") from None
    if tool.tool_type == "mcp" and not only:
        raise InvalidField(field, f"{tool.name!r} is an MCP server; name one of its tools: {tool.slug}/name.")
    if not tool.enabled:
        raise Conflict(f"The tool {tool.name!r} is disabled.")
    return ToolWork(
        name=tool.slug if not only else f"{tool.slug}/{only}", tool=f"{tool.id}/{only}" if only else tool.id
    )
