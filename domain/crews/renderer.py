"""Writing a crew as CrewAI does: also one whose agents and tasks are those of the catalogue."""

from typing import Any

from domain.agents import Agent
from domain.crews.roster import CrewMember, CrewRoster, CrewTask
from domain.crews.schema import CrewYaml
from domain.shared import yaml_reader

_SAID = ("role", "goal", "backstory")


def render_crew(cast: CrewRoster) -> CrewYaml:
    """Both documents. Agents that run uploaded code have no place in them; tasks name those by their name."""
    settings = cast.settings
    if not settings.agents and not settings.tasks and settings.agents_yaml and settings.tasks_yaml:
        return CrewYaml(agents_yaml=settings.agents_yaml, tasks_yaml=settings.tasks_yaml)
    members = [one for one in cast.members.values() if one.agent.kind == "llm" and not _is_only_manager(cast, one)]
    agents = {one.key: _agent(one.agent) for one in members}
    tasks = {duty.key: _task(cast, duty) for duty in cast.tasks}
    return CrewYaml(agents_yaml=yaml_reader.dump_yaml(agents), tasks_yaml=yaml_reader.dump_yaml(tasks))


def _is_only_manager(cast: CrewRoster, member: CrewMember) -> bool:
    """A manager from the catalogue is named by the crew, and would be an agent of its own here."""
    return member is cast.manager and not member.is_from_yaml


def _agent(agent: Agent) -> dict[str, Any]:
    model = agent.model if agent.provider is None else f"{agent.provider}/{agent.model}"
    instructions = "\n\n".join(text for text in (agent.template_text, agent.instructions) if text)
    told = {
        **{name: getattr(agent, name) for name in _SAID},
        "instructions": instructions or None,
        "llm": model if agent.model is not None else None,
        "fallback_model": agent.fallback_model,
        "tools": agent.tools or None,
        "allow_delegation": agent.allow_delegation,
        "verbose": agent.verbose,
        "max_iter": agent.max_steps,
        "max_execution_time": agent.timeout,
        "temperature": agent.temperature,
        "max_tokens": agent.max_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}


def _task(cast: CrewRoster, duty: CrewTask) -> dict[str, Any]:
    member = cast.members.get(duty.agent or "")
    by_name = member is not None and (member.agent.kind == "code" or _is_only_manager(cast, member))
    told = {
        "name": duty.name if duty.name != duty.key else None,
        "description": duty.description,
        "expected_output": duty.expected_output,
        "agent": None if member is None else member.agent.name if by_name else member.key,
        "context": duty.context,
        "tools": duty.tools or None,
        "async_execution": duty.async_execution or None,
        "markdown": duty.markdown or None,
        "output_file": duty.output_file,
    }
    return {name: value for name, value in told.items() if value is not None}
