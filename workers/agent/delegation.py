"""How a model agent has others do something for it."""

from typing import Final

import msgspec

from domain.agents import Agent, AgentSpec
from domain.llms import ToolFailed, ToolSpec
from domain.shared.names import is_reference_to, make_slug

DELEGATE_TOOL: Final = ToolSpec(
    name="delegate",
    description="Ask another agent of this team to do a task, and get its answer.",
    parameters={
        "type": "object",
        "properties": {
            "agent": {"type": "string", "description": "The other agent's name."},
            "task": {"type": "string", "description": "What it shall do, with all that it needs to know."},
        },
        "required": ["agent", "task"],
        "additionalProperties": False,
    },
)


class DelegateArguments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `delegate` takes."""

    agent: str
    task: str


def describe_delegate_tool(agent: Agent) -> ToolSpec:
    """The tool as an agent is given it: with a team, it tells who is in it."""
    team = _list_team(agent)
    if not team:
        return DELEGATE_TOOL
    known = "; ".join(f"{one.name}: {one.role or one.goal or one.description or 'an agent'}" for one in team)
    named = {"type": "string", "enum": [one.name for one in team]}
    properties = {**DELEGATE_TOOL.parameters["properties"], "agent": named}
    return ToolSpec(
        name=DELEGATE_TOOL.name,
        description=f"{DELEGATE_TOOL.description} The team: {known}.",
        parameters={**DELEGATE_TOOL.parameters, "properties": properties},
    )


def find_teammate(agent: Agent, name: str) -> AgentSpec | None:
    """Who of an agent's team is meant; None if it has none, and may ask whom it likes. Errors: `ToolFailed`.

    Whoever is asked may ask the others of the team, if it may delegate at all.
    """
    team = _list_team(agent)
    if not team:
        return None
    named = [one for one in team if one.name == name]
    alike = (
        named
        or [one for one in team if is_reference_to(name, one.name)]
        or [one for one in team if _has_slug(one, name)]
    )
    if alike:
        found = alike[0]
        others = [one for one in team if one.name != found.name] if found.allow_delegation else []
        return AgentSpec.from_agent(msgspec.structs.replace(found, allow_delegation=None), team=others)
    raise ToolFailed(f"there is no {name!r} in this team; there are: {', '.join(one.name for one in team)}.")


def _has_slug(agent: Agent, name: str) -> bool:
    return make_slug(agent.name) == make_slug(name) != ""


def _list_team(agent: Agent) -> list[Agent]:
    return agent.team if isinstance(agent, AgentSpec) else []
