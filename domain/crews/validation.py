"""Whether a crew hangs together: everything that is wrong with it, and what is worth a second look."""

import re
from typing import Final

from domain import llms, tools
from domain.crews import crew_tasks, parser
from domain.crews import roster as casting
from domain.crews.roster import CrewRoster
from domain.crews.schema import CrewProblem, CrewSettings
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError

MAX_CREW_TOOLS: Final = 1_000
_NUMBER: Final = re.compile(r"tools\[(\d+)\]")


async def validate_crew(tx: Tx, caller: Caller, settings: CrewSettings) -> CrewRoster:
    """All there is to know of a crew made of this."""
    read = parser.parse_documents(settings)
    cast = CrewRoster(settings=settings, documents=read, errors=[*read.agents.problems, *read.tasks.problems])
    await casting.resolve_members(tx, caller, cast)
    await crew_tasks.resolve_tasks(tx, cast)
    await _tools(tx, cast)
    await _models(tx, cast)
    _idle(cast)
    for found in (cast.errors, cast.warnings):
        found.sort(key=_place)
    return cast


def _place(mistake: CrewProblem) -> tuple[int, int]:
    """In the order in which somebody reads: both documents line by line, and what is outside of them."""
    document = mistake.field.split(".")[0]
    order = {"agents_yaml": 0, "tasks_yaml": 1}
    return order.get(document, 2), mistake.line or 0


async def resolve_model_name(tx: Tx, reference: str) -> tuple[str, str | None]:
    """A model and its provider, by the name of one or as `provider/model`. Errors: `invalid_field` (`model`)."""
    model = (await llms.resolve_model(tx, reference)).model
    return (reference, None) if model.name == reference else (model.name, model.provider)


async def _tools(tx: Tx, cast: CrewRoster) -> None:
    wanted = [
        (f"{one.path}.tools[{number}]", tool)
        for one in cast.members.values()
        if one.is_from_yaml
        for number, tool in enumerate(one.agent.tools)
    ]
    wanted += [(f"{one.path}.tools[{number}]", tool) for one in cast.tasks for number, tool in enumerate(one.tools)]
    references = list(dict.fromkeys(tool for _, tool in wanted))
    if len(references) > MAX_CREW_TOOLS:
        cast.add_error("agents_yaml", f"names {len(references)} tools, with its tasks; {MAX_CREW_TOOLS} are allowed.")
        return
    try:
        await tools.resolve_tools(tx, references)
    except DomainError as error:
        why = {}
        for one in error.errors:
            number = _NUMBER.fullmatch(one.field)
            if number is not None:
                why[references[int(number[1])]] = one.message
        for field, tool in wanted:
            if tool in why:
                cast.add_error(field, why[tool])


async def _models(tx: Tx, cast: CrewRoster) -> None:
    settings = cast.settings
    wanted = [(name, getattr(settings, name)) for name in ("model", "manager_model", "planning_model")]
    for member in cast.members.values():
        if member.is_from_yaml:
            said = cast.documents.agents.items[member.key]
            wanted += [(f"{member.path}.{name}", getattr(said, name)) for name in ("llm", "model", "fallback_model")]
    known: dict[str, str | None] = {}
    for field, name in wanted:
        if name is None:
            continue
        if name not in known:
            known[name] = await _why_not(tx, name)
        why = known[name]
        if why is not None:
            cast.add_error(field, why)
    if settings.planning_model is not None and not settings.planning:
        cast.add_error("planning_model", "is the model that plans; planning is off.")
    if settings.model is None:
        _without_model(cast)


async def _why_not(tx: Tx, name: str) -> str | None:
    try:
        await llms.resolve_model(tx, name)
    except DomainError as error:
        return error.errors[0].message
    return None


def _without_model(cast: CrewRoster) -> None:
    told = "names no model, nor does the crew: one must be named when it is run."
    settings, manager = cast.settings, cast.manager
    for member in cast.members.values():
        led = member is manager and settings.manager_model is not None
        if member.agent.kind == "llm" and member.agent.model is None and not led:
            cast.add_warning(member.path, told)
    if cast.is_hierarchical and manager is None and settings.manager_model is None:
        cast.add_warning("manager_model", told)
    if settings.planning and settings.planning_model is None:
        cast.add_warning("planning_model", told)


def _idle(cast: CrewRoster) -> None:
    """Tell of agents that nobody asks, and of those that have nobody to ask."""
    if len(cast.team) < 2:
        for member in cast.team:
            if member.agent.allow_delegation:
                cast.add_warning(
                    f"{member.path}.allow_delegation", "does nothing: there is no other agent to delegate to."
                )
    used = {duty.agent for duty in cast.tasks}
    if cast.is_hierarchical or cast.documents.tasks.is_unreadable:
        return
    if any(cast.members[key].agent.allow_delegation for key in used if key is not None):
        return
    for member in cast.members.values():
        if member.key not in used:
            cast.add_warning(member.path, "is given no task.")
