"""Crews: create, list, change, delete, and say what is wrong with one."""

from typing import Literal

from msgspec import UNSET

from domain.crews import compiler, renderer, validation
from domain.crews.roster import CrewRoster
from domain.crews.schema import (
    CREW_SETTING_FIELDS,
    RESERVED_CREW_NAMES,
    Crew,
    CrewAgentSummary,
    CrewSettings,
    CrewTaskSummary,
    CrewValidation,
    CrewYaml,
    NewCrew,
    PatchCrew,
)
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidFields, NotFound
from domain.shared.pages import Listing, Page


async def create_crew(tx: Tx, caller: Caller, data: NewCrew) -> Crew:
    """Create a crew. Errors: `conflict` for a taken name, `invalid_field` with all that is wrong with it."""
    crew = Crew(
        id=ids.generate_id("crew"),
        name=names.check_name(data.name, "crew", RESERVED_CREW_NAMES),
        description=data.description,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
        **{name: getattr(data, name) for name in CREW_SETTING_FIELDS},
    )
    await _check(tx, caller, crew)
    if not await tx.crews.add(crew):
        raise names.NameTaken("crew", crew.name)
    return crew


async def _check(tx: Tx, caller: Caller, crew: Crew) -> None:
    """See that the crew hangs together, and put ids for the agents and tasks named. Errors: `invalid_field`."""
    cast = await validation.validate_crew(tx, caller, crew.settings)
    if cast.errors:
        raise InvalidFields([one.field_error for one in cast.errors])
    members = [cast.members_by_reference[reference] for reference in crew.agents]
    crew.agents = [one.agent.id for one in members if one is not None]
    crew.tasks = [duty.task_id for duty in cast.tasks if duty.task_id is not None]


async def get_crew(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Crew:
    """A crew by id or name. Errors: `not_found`."""
    crew = await tx.crews.find(reference, lock)
    if crew is None:
        raise NotFound("crew", reference)
    return crew


async def list_crews(tx: Tx, page: Page) -> Listing[Crew]:
    """The tenant's crews, newest first."""
    return await tx.crews.list_page(page)


async def update_crew(tx: Tx, caller: Caller, reference: str, data: PatchCrew) -> Crew:
    """Change what was sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    crew = await get_crew(tx, reference, lock=True)
    sent = {name: value for name in PatchCrew.__struct_fields__ if (value := getattr(data, name)) is not UNSET}
    if "name" in sent:
        names.check_name(sent["name"], "crew", RESERVED_CREW_NAMES)
    for name, value in sent.items():
        setattr(crew, name, value)
    if sent.keys() & set(CREW_SETTING_FIELDS):
        await _check(tx, caller, crew)
    crew.updated_at = tx.now
    if not await tx.crews.save(crew):
        raise names.NameTaken("crew", crew.name)
    return crew


async def delete_crew(tx: Tx, reference: str) -> None:
    """Remove a crew. What runs of it goes on: it was written down when it began.

    Errors: `not_found`, `conflict` while a schedule starts it.
    """
    crew = await get_crew(tx, reference, lock=True)
    if named := await tx.schedules.list_names_by_target("crew", crew.id):
        raise Conflict(f"The schedule {named[0]!r} starts this crew.")
    await tx.crews.delete(crew.id)


async def export_crew(tx: Tx, caller: Caller, reference: str) -> CrewYaml:
    """A crew as CrewAI writes it. Errors: `not_found`, `invalid_field` with what is wrong with it by now."""
    crew = await get_crew(tx, reference)
    cast = await validation.validate_crew(tx, caller, crew.settings)
    if cast.errors:
        raise InvalidFields([one.field_error for one in cast.errors])
    return renderer.render_crew(cast)


async def debug_crew(tx: Tx, caller: Caller, data: CrewSettings) -> CrewValidation:
    """Everything that is wrong with a crew made of this, and what it comes to."""
    cast = await validation.validate_crew(tx, caller, data)
    valid = not cast.errors
    order = compiler.order_tasks(cast.tasks)
    return CrewValidation(
        valid=valid,
        errors=cast.errors,
        warnings=cast.warnings,
        agents=_agents(cast),
        tasks=[
            CrewTaskSummary(
                key=duty.key,
                name=duty.name,
                agent=duty.agent,
                context=order[duty.key].context,
                tools=duty.tools,
                async_execution=duty.async_execution,
                output_file=duty.output_file,
            )
            for duty in cast.tasks
        ],
        inputs=compiler.list_roster_inputs(cast),
        steps=compiler.outline_steps(cast) if valid else [],
    )


def _agents(cast: CrewRoster) -> list[CrewAgentSummary]:
    return [
        CrewAgentSummary(
            key=one.key,
            agent_id=one.agent.id or None,
            role=one.agent.role,
            model=one.agent.model or (cast.settings.model if one.agent.kind == "llm" else None),
            tools=one.agent.tools,
            allow_delegation=bool(one.agent.allow_delegation),
        )
        for one in cast.members.values()
    ]
