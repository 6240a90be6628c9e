"""Offer a model agent the `delegate` tool, by which other agents do tasks for it."""

from collections.abc import Sequence
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
    """Hold the arguments of `delegate`."""

    agent: str
    task: str


def describe_delegate_tool(agent: Agent) -> ToolSpec:
    """Return the tool for one agent. With a team, its description names the members."""
    team = _list_team(agent)
    if not team:
        return DELEGATE_TOOL
    members = "; ".join(f"{mate.name}: {mate.role or mate.goal or mate.description or 'an agent'}" for mate in team)
    name_schema = {"type": "string", "enum": [mate.name for mate in team]}
    properties = {**DELEGATE_TOOL.parameters["properties"], "agent": name_schema}
    return ToolSpec(
        name=DELEGATE_TOOL.name,
        description=f"{DELEGATE_TOOL.description} The team: {members}.",
        parameters={**DELEGATE_TOOL.parameters, "properties": properties},
    )


def find_teammate(agent: Agent, name: str) -> AgentSpec | None:
    """Return the member of an agent's team that a name means, None if the agent has no team. Errors: `ToolFailed`.

    The member may ask the others of the team, if it may delegate at all.
    """
    team = _list_team(agent)
    if not team:
        return None
    candidates = (
        [mate for mate in team if mate.name == name]
        or [mate for mate in team if is_reference_to(name, mate.name)]
        or [mate for mate in team if _has_slug(mate, name)]
    )
    if candidates:
        teammate = candidates[0]
        others = [mate for mate in team if mate.name != teammate.name] if teammate.allow_delegation else []
        return AgentSpec.from_agent(msgspec.structs.replace(teammate, allow_delegation=None), team=others)
    raise ToolFailed(f"there is no {name!r} in this team; its members are: {', '.join(mate.name for mate in team)}.")


def _has_slug(agent: Agent, name: str) -> bool:
    return make_slug(agent.name) == make_slug(name) != ""


def _list_team(agent: Agent) -> Sequence[Agent]:
    return agent.team if isinstance(agent, AgentSpec) else []
