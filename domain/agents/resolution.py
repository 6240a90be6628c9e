"""Resolve agents for runs: find one by name, and fix the model, the prompt and the version that the run uses."""

from typing import TYPE_CHECKING

import msgspec

from domain import egress, llms
from domain.agents.inheritance import resolve_agent
from domain.agents.schema import Agent, AgentSpec
from domain.ports import Tx
from domain.shared import names
from domain.shared.errors import Conflict, InvalidField

if TYPE_CHECKING:
    from domain.builds import AgentVersion


async def find_agent(tx: Tx, reference: str, field: str) -> Agent:
    """Return an agent by id, name, or slug of its name; it cannot be deleted until the commit.

    Errors: `invalid_field` naming `field` for an unknown or ambiguous reference.
    """
    agent = await tx.agents.find(reference, lock="share")
    if agent is not None:
        return agent
    slug = names.make_slug(reference)
    candidates = await tx.agents.list_by_slug(slug) if slug else []
    matches = [candidate for candidate in candidates if names.is_reference_to(reference, candidate.name)]
    if len(matches) > 1:
        listed = ", ".join(repr(agent.name) for agent in matches)
        raise InvalidField(field, f"{reference!r} is ambiguous; name one of {listed}.")
    if not matches:
        raise InvalidField(field, f"there is no agent {reference!r}.")
    return matches[0]


def refuse_archived(agent: Agent) -> None:
    """Refuse to run an archived agent. Errors: `agent_archived`."""
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived.", "agent_archived")


async def resolve_spec(tx: Tx, agent: Agent, model: str | None = None) -> AgentSpec:
    """Return a model agent as a run has it, with everything it inherits; `model` replaces its own.

    Errors: `conflict` for an agent without a model, `invalid_field` for an unknown model.
    """
    spec = AgentSpec.from_agent(await resolve_agent(tx, agent))
    if model is not None:
        await llms.resolve_model(tx, model)
        spec = msgspec.structs.replace(spec, model=model, provider=None)
    if spec.model is None:
        raise Conflict(f"The agent {agent.name!r} has no model: name one in it, in its parent or for the run.")
    return spec


async def get_runnable_version(tx: Tx, agent: Agent, version_id: str | None = None) -> "AgentVersion":
    """Return the version of an uploaded agent that a run uses: `version_id`, else the current one.

    Errors: `version_not_ready`, `egress_not_allowed`, `invalid_field`.
    """
    wanted_id = version_id or agent.current_version_id
    if wanted_id is None:
        newest = await tx.builds.find_newest(agent.id)
        state = "it has no version yet" if newest is None else f"its version {newest.version} is {newest.status}"
        raise Conflict(f"The agent {agent.name!r} has nothing to run: {state}.", "version_not_ready")
    version = await tx.builds.find(agent.id, wanted_id)
    if version is None:
        raise InvalidField("agent_version_id", f"the agent {agent.name!r} has no such version.")
    if version.status != "ready":
        raise Conflict(f"Version {version.version} is {version.status}, not ready.", "version_not_ready")
    await egress.check_egress(tx, version)
    return version
