"""Validate a crew: collect all errors, and warnings about what may be a problem."""

import re
from typing import Final

from domain import llms, tools
from domain.crews import crew_tasks, parser
from domain.crews.parser import CrewDocuments
from domain.crews.roster import CrewRoster, resolve_members
from domain.crews.schema import CrewProblem, CrewSettings
from domain.crews.task_rules import list_knowledge
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError

MAX_CREW_TOOLS: Final = 1_000
_TOOL_FIELD: Final = re.compile(r"tools\[(\d+)\]")


async def validate_crew(
    tx: Tx, caller: Caller, settings: CrewSettings, documents: CrewDocuments | None = None
) -> CrewRoster:
    """Resolve a crew with these settings, and collect its errors and warnings.

    The `documents` of files name their places; without them the YAML of the settings is parsed.
    """
    if documents is None:
        documents = parser.parse_documents(settings)
    roster = CrewRoster(
        settings=settings,
        documents=documents,
        errors=[*documents.agents.problems, *documents.tasks.problems],
        warnings=list(documents.agents.warnings),
    )
    await resolve_members(tx, caller, roster)
    await crew_tasks.resolve_tasks(tx, roster)
    try:
        list_knowledge(roster)
    except DomainError as error:
        roster.add_error(error.errors[0].field, error.errors[0].message)
    await _check_tools(tx, roster)
    await _check_models(tx, roster)
    _warn_about_idle_agents(roster)
    for problems in (roster.errors, roster.warnings):
        problems.sort(key=_get_position)
    return roster


def _get_position(problem: CrewProblem) -> tuple[int, int]:
    """Return the sort key of a problem: both documents line by line, then the other fields."""
    document = problem.field.split(".")[0]
    order = {"agents_yaml": 0, "tasks_yaml": 1}
    # Those of files stay in the order of reading: a line is one of several files.
    return order.get(document, 2), problem.line or 0 if document in order else 0


async def resolve_model_name(tx: Tx, reference: str) -> tuple[str, str | None]:
    """Return a model and its provider, by name or as `provider/model`. Errors: `invalid_field` (`model`)."""
    model = (await llms.resolve_model(tx, reference)).model
    return (reference, None) if model.name == reference else (model.name, model.provider)


async def _check_tools(tx: Tx, roster: CrewRoster) -> None:
    uses = [
        (f"{member.path}.tools[{number}]" if tool in member.fields.tools else f"{member.path}.mcps", tool)
        for member in roster.members.values()
        if member.fields is not None
        for number, tool in enumerate(member.agent.tools)
    ]
    uses += [(f"{task.path}.tools[{number}]", tool) for task in roster.tasks for number, tool in enumerate(task.tools)]
    references = list(dict.fromkeys(tool for _, tool in uses))
    if len(references) > MAX_CREW_TOOLS:
        message = f"the crew names {len(references)} tools; at most {MAX_CREW_TOOLS} are allowed."
        roster.add_error("agents_yaml", message)
        return
    try:
        await tools.resolve_tools(tx, references)
    except DomainError as error:
        messages = {}
        for field_error in error.errors:
            match = _TOOL_FIELD.fullmatch(field_error.field)
            if match is not None:
                messages[references[int(match[1])]] = field_error.message
        for field, tool in uses:
            if tool in messages:
                roster.add_error(field, messages[tool])


async def _check_models(tx: Tx, roster: CrewRoster) -> None:
    settings = roster.settings
    uses = [(name, getattr(settings, name)) for name in ("model", "manager_model", "planning_model")]
    for member in roster.members.values():
        if member.is_from_yaml:
            yaml_agent = roster.documents.agents.items[member.key]
            uses += [
                (f"{member.path}.{name}", getattr(yaml_agent, name)) for name in ("llm", "model", "fallback_model")
            ]
    messages: dict[str, str | None] = {}
    for field, name in uses:
        if name is None:
            continue
        if name not in messages:
            messages[name] = await _explain_unknown_model(tx, name)
        message = messages[name]
        if message is not None:
            roster.add_error(field, message)
    if settings.planning_model is not None and not settings.planning:
        roster.add_error("planning_model", "has no effect: planning is off.")
    if settings.model is None:
        _warn_about_missing_models(roster)


async def _explain_unknown_model(tx: Tx, name: str) -> str | None:
    try:
        await llms.resolve_model(tx, name)
    except DomainError as error:
        return error.errors[0].message
    return None


def _warn_about_missing_models(roster: CrewRoster) -> None:
    message = "neither this nor the crew names a model; name one for the run."
    settings, manager = roster.settings, roster.manager
    for member in roster.members.values():
        is_led = member is manager and settings.manager_model is not None
        if member.agent.kind == "llm" and member.agent.model is None and not is_led:
            roster.add_warning(member.path, message)
    if roster.is_hierarchical and manager is None and settings.manager_model is None:
        roster.add_warning("manager_model", message)
    if settings.planning and settings.planning_model is None:
        roster.add_warning("planning_model", message)


def _warn_about_idle_agents(roster: CrewRoster) -> None:
    """Warn about agents without tasks, and about agents that can delegate to no other agent."""
    if len(roster.team) < 2:
        for member in roster.team:
            if member.agent.allow_delegation:
                roster.add_warning(
                    f"{member.path}.allow_delegation", "has no effect: there is no other agent to delegate to."
                )
    used_keys = {task.agent for task in roster.tasks}
    if roster.is_hierarchical or roster.documents.tasks.is_unreadable:
        return
    if any(roster.members[key].agent.allow_delegation for key in used_keys if key is not None):
        return
    for member in roster.members.values():
        if member.key not in used_keys:
            roster.add_warning(member.path, "has no task.")
