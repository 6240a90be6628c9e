"""Render a crew as CrewAI's YAML, also one made of agents and tasks of the catalogue."""

from typing import Any, Final

from domain.crews.roster import CrewMember, CrewRoster, CrewTask
from domain.crews.schema import CrewYaml
from domain.crews.yaml_schema import list_task_fields
from domain.shared import yaml_reader

_TEXT_FIELDS: Final = ("role", "goal", "backstory")


def render_crew(roster: CrewRoster) -> CrewYaml:
    """Return both documents. Agents that run uploaded code are left out; tasks refer to them by name."""
    settings = roster.settings
    if not settings.agents and not settings.tasks and settings.agents_yaml and settings.tasks_yaml:
        return CrewYaml(agents_yaml=settings.agents_yaml, tasks_yaml=settings.tasks_yaml)
    members = [
        member
        for member in roster.members.values()
        if member.agent.kind == "llm" and not _is_only_manager(roster, member)
    ]
    agents = {member.key: _render_agent(member) for member in members}
    tasks = {task.key: _render_task(roster, task) for task in roster.tasks}
    return CrewYaml(agents_yaml=yaml_reader.dump_yaml(agents), tasks_yaml=yaml_reader.dump_yaml(tasks))


def _is_only_manager(roster: CrewRoster, member: CrewMember) -> bool:
    """Tell whether a member is the manager from the catalogue, which the crew names, and not an agent of the YAML."""
    return member is roster.manager and not member.is_from_yaml


def _render_agent(member: CrewMember) -> dict[str, Any]:
    agent, tools = member.agent, member.agent.tools if member.fields is None else member.fields.tools
    model = agent.model if agent.provider is None else f"{agent.provider}/{agent.model}"
    instructions = "\n\n".join(text for text in (agent.template_text, agent.instructions) if text)
    fields = {
        **{name: getattr(agent, name) for name in _TEXT_FIELDS},
        "instructions": instructions or None,
        "llm": model if agent.model is not None else None,
        "fallback_model": agent.fallback_model,
        "tools": tools or None,
        "allow_delegation": agent.allow_delegation,
        "verbose": agent.verbose,
        "max_iter": agent.max_steps,
        "max_execution_time": agent.timeout,
        "temperature": agent.temperature,
        "max_tokens": agent.max_tokens,
    }
    more = {} if member.fields is None else list_task_fields(member.fields, {**fields, "model": None})
    return {name: value for name, value in {**fields, **more}.items() if value is not None}


def _render_task(roster: CrewRoster, task: CrewTask) -> dict[str, Any]:
    member = roster.members.get(task.agent or "")
    by_name = member is not None and (member.agent.kind == "code" or _is_only_manager(roster, member))
    fields = {
        "name": task.name if task.name != task.key else None,
        "description": task.description,
        "expected_output": task.expected_output,
        "agent": None if member is None else member.agent.name if by_name else member.key,
        "context": task.context,
        "tools": task.tools or None,
        "async_execution": task.async_execution or None,
        "markdown": task.markdown or None,
        "output_file": task.output_file,
    }
    more = {} if task.fields is None else list_task_fields(task.fields, fields)
    return {name: value for name, value in {**fields, **more}.items() if value is not None}
