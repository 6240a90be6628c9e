"""How a model agent takes from its parent what it does not say itself."""

from typing import Final

import msgspec

from domain.agents.schema import LLM_FIELDS, Agent
from domain.ports import Tx
from domain.shared.errors import InvalidField

MAX_ANCESTRY_DEPTH: Final = 5


async def resolve_agent(tx: Tx, agent: Agent) -> Agent:
    """The agent with what is in force: its own fields, else those of the nearest ancestor that has them.

    Tools add up, those of the oldest ancestor first. What its template says now comes along as `template_text`.
    Errors: `invalid_field` for a chain that is too long.
    """
    made = merge_ancestors(await load_ancestors(tx, agent))
    template = None if made.template_id is None else await tx.templates.find(made.template_id)
    made.template_text = None if template is None else template.template
    return made


def merge_ancestors(chain: list[Agent]) -> Agent:
    """One agent out of a line of descent, the youngest first."""
    youngest = chain[0]
    values = {
        name: next((value for one in chain if (value := getattr(one, name)) is not None), None) for name in LLM_FIELDS
    }
    # A provider belongs to the model beside which it was named.
    source = next((one for one in chain if one.model is not None), youngest)
    values["provider"] = source.provider
    tools = list(dict.fromkeys(tool for one in reversed(chain) for tool in one.tools))
    return msgspec.structs.replace(youngest, tools=tools, **values)


async def load_ancestors(tx: Tx, agent: Agent) -> list[Agent]:
    """The agent and its ancestors, the youngest first. Errors: `invalid_field`."""
    chain = [agent]
    while (parent_id := chain[-1].parent_id) is not None:
        parent = await tx.agents.find(parent_id)
        if parent is None:
            break
        chain.append(parent)
        if len(chain) > MAX_ANCESTRY_DEPTH:
            raise InvalidField("parent", f"makes a line of more than {MAX_ANCESTRY_DEPTH} agents.")
    return chain


async def resolve_parent(tx: Tx, agent: Agent, reference: str) -> Agent:
    """The parent of that name for `agent`.

    Errors: `invalid_field` for none, one of another kind, a circle, too long a line.
    """
    parent = await tx.agents.find(reference, lock="share")
    if parent is None:
        raise InvalidField("parent", f"there is no agent {reference!r}.")
    if parent.kind != "llm":
        raise InvalidField("parent", f"{parent.name!r} is an uploaded agent; only model agents can be inherited from.")
    above = await load_ancestors(tx, parent)
    if any(one.id == agent.id for one in above):
        raise InvalidField("parent", f"{parent.name!r} descends from this agent.")
    below = await _generations(tx, agent)
    if len(above) + below > MAX_ANCESTRY_DEPTH:
        raise InvalidField("parent", f"makes a line of {len(above) + below} agents; {MAX_ANCESTRY_DEPTH} are allowed.")
    return parent


async def _generations(tx: Tx, agent: Agent) -> int:
    """How many generations there are from an agent down, itself included."""
    here, count = [agent], 0
    while here and count <= MAX_ANCESTRY_DEPTH:
        count += 1
        here = [child for one in here for child in await tx.agents.list_children(one.id)]
    return count
