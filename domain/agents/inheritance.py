"""Resolve the fields that a model agent inherits from its parent agents."""

from typing import TYPE_CHECKING, Final

import msgspec

from domain.agents.schema import LLM_FIELDS, Agent
from domain.ports import Tx
from domain.shared.errors import InvalidField

if TYPE_CHECKING:
    from domain.builds import AgentVersion

MAX_ANCESTRY_DEPTH: Final = 5


async def resolve_agent(tx: Tx, agent: Agent) -> Agent:
    """Return the agent with its effective fields: its own, else those of the nearest ancestor that has them.

    Tools are combined, those of the oldest ancestor first. `template_text` holds the current text of its template.
    Errors: `invalid_field` for too many ancestors.
    """
    resolved = merge_ancestors(await load_ancestors(tx, agent))
    template = None if resolved.template_id is None else await tx.templates.find(resolved.template_id)
    resolved.template_text = None if template is None else template.template
    return resolved


async def resolve_code_agent(tx: Tx, agent: Agent) -> Agent:
    """Return an uploaded agent with the schemas that count for its current version."""
    version = None if agent.current_version_id is None else await tx.builds.get(agent.current_version_id)
    return agent if version is None else apply_version_schemas(agent, version)


def apply_version_schemas(agent: Agent, version: "AgentVersion") -> Agent:
    """Return an uploaded agent with the schemas of a version where it has none of its own."""
    values = {
        name: getattr(version, name) if getattr(agent, name) is None else getattr(agent, name)
        for name in ("input_schema", "output_schema")
    }
    return msgspec.structs.replace(agent, **values)


def merge_ancestors(chain: list[Agent]) -> Agent:
    """Merge an agent and its ancestors, youngest first, into one agent."""
    youngest = chain[0]
    values = {
        name: next((value for agent in chain if (value := getattr(agent, name)) is not None), None)
        for name in LLM_FIELDS
    }
    # A provider belongs to the model with which it was set.
    source = next((agent for agent in chain if agent.model is not None), youngest)
    values["provider"] = source.provider
    tools = list(dict.fromkeys(tool for agent in reversed(chain) for tool in agent.tools))
    return msgspec.structs.replace(youngest, tools=tools, **values)


async def load_ancestors(tx: Tx, agent: Agent) -> list[Agent]:
    """Return the agent and its ancestors, youngest first. Errors: `invalid_field`."""
    chain = [agent]
    while (parent_id := chain[-1].parent_id) is not None:
        parent = await tx.agents.find(parent_id)
        if parent is None:
            break
        chain.append(parent)
        if len(chain) > MAX_ANCESTRY_DEPTH:
            raise InvalidField("parent", f"makes a chain of more than {MAX_ANCESTRY_DEPTH} agents.")
    return chain


async def resolve_parent(tx: Tx, agent: Agent, reference: str) -> Agent:
    """Return the parent of `agent` by its reference.

    Errors: `invalid_field` for an unknown parent, one of another kind, a cycle, or too many ancestors.
    """
    parent = await tx.agents.find(reference, lock="share")
    if parent is None:
        raise InvalidField("parent", f"must be an existing agent; {reference!r} does not exist.")
    if parent.kind != "llm":
        raise InvalidField("parent", f"must be a model agent; {parent.name!r} runs uploaded code.")
    above = await load_ancestors(tx, parent)
    if any(ancestor.id == agent.id for ancestor in above):
        raise InvalidField("parent", f"must not make a cycle: {parent.name!r} inherits from this agent.")
    below = await _count_generations(tx, agent)
    if len(above) + below > MAX_ANCESTRY_DEPTH:
        raise InvalidField(
            "parent", f"makes a chain of {len(above) + below} agents; at most {MAX_ANCESTRY_DEPTH} are allowed."
        )
    return parent


async def _count_generations(tx: Tx, agent: Agent) -> int:
    """Return the number of generations from an agent down, including the agent."""
    generation, count = [agent], 0
    while generation and count <= MAX_ANCESTRY_DEPTH:
        count += 1
        generation = [child for parent in generation for child in await tx.agents.list_children(parent.id)]
    return count
